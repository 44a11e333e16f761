"""Small FLUX models with random weights, for the engine's tests."""

from pathlib import Path
from typing import Any

from model.layout import write_checkpoint

# Text lengths and head counts that degrees 2 and 4 divide, and such that they do not.
SHAPES: dict[str, dict[str, Any]] = {
    "4 heads": {"heads": 4, "head_dim": 16, "text_length": 13, "guidance_embeds": True},
    "6 heads": {"heads": 6, "head_dim": 16, "text_length": 77, "guidance_embeds": False},
    "24 heads": {"heads": 24, "head_dim": 8, "text_length": 16, "guidance_embeds": True},
    "5 heads": {"heads": 5, "head_dim": 8, "text_length": 7, "guidance_embeds": False},
}


def write(folder: Path, name: str, **changes: Any) -> str:
    """Write a checkpoint; returns the folder."""
    shape = {
        "seed": 3,
        "double_blocks": 2,
        "single_blocks": 2,
        "text_width": 32,
        "vae_channels": (8, 8, 8, 8),
        **SHAPES[name],
    }
    write_checkpoint(folder, **{**shape, **changes})
    return str(folder)
