"""Small models with random weights in the layout of each family, for the engine's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection

from model import layout
from model.layout import write_checkpoint
from model.tokenizers import clip_tokenizer, t5_tokenizer

# Text lengths and head counts that degrees 2 and 4 divide, and such that they do not.
FLUX: dict[str, dict[str, Any]] = {
    "4 heads": {"heads": 4, "head_dim": 16, "text_length": 13, "guidance_embeds": True},
    "6 heads": {"heads": 6, "head_dim": 16, "text_length": 77, "guidance_embeds": False},
    "24 heads": {"heads": 24, "head_dim": 8, "text_length": 16, "guidance_embeds": True},
    "5 heads": {"heads": 5, "head_dim": 8, "text_length": 7, "guidance_embeds": False},
}
SD3: dict[str, dict[str, Any]] = {
    "sd3": {"heads": 4, "dual_layers": (), "qk_norm": None, "text_length": 5},
    "sd3.5": {"heads": 6, "dual_layers": (0, 1), "qk_norm": "rms_norm", "text_length": 12},
    "sd3.5, 5 heads": {"heads": 5, "dual_layers": (0,), "qk_norm": "rms_norm", "text_length": 9},
}
PIXART: dict[str, dict[str, Any]] = {
    "pixart": {"heads": 4, "text_length": 11},
    "pixart, 6 heads": {"heads": 6, "text_length": 20, "solver_order": 3, "learned_sigma": False},
}
NAMES = (*FLUX, *SD3, *PIXART)


def write(folder: Path, name: str, **changes: Any) -> str:
    """Write a checkpoint; returns the folder."""
    for shapes, writer in ((FLUX, _write_flux), (SD3, _write_sd3), (PIXART, _write_pixart)):
        if name in shapes:
            writer(folder, **{"seed": 3, **shapes[name], **changes})
            return str(folder)
    raise ValueError(f"no small model is called {name!r}")


def _write_flux(folder: Path, **shape: Any) -> None:
    small = {"double_blocks": 2, "single_blocks": 2, "text_width": 32, "vae_channels": (8, 8, 8, 8)}
    write_checkpoint(folder, **{**small, **shape})


def _write_sd3(
    folder: Path,
    *,
    seed: int,
    heads: int,
    dual_layers: tuple[int, ...],
    qk_norm: str | None,
    text_length: int,
    t5: bool = True,
    dynamic_shifting: bool = False,
    width: int = 16,
    latent_channels: int = 4,
) -> None:
    words, pieces = clip_tokenizer(77), t5_tokenizer(text_length)

    def parts() -> dict[str, Any]:
        return {
            "transformer": SD3Transformer2DModel(
                sample_size=16,
                in_channels=latent_channels,
                out_channels=latent_channels,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=heads,
                joint_attention_dim=2 * width,
                caption_projection_dim=8 * heads,
                pooled_projection_dim=2 * width,
                pos_embed_max_size=24,
                dual_attention_layers=dual_layers,
                qk_norm=qk_norm,
            ),
            "vae": _vae(latent_channels, shift_factor=0.06),
            "text_encoder": _projected_clip(words, width),
            "text_encoder_2": _projected_clip(words, width),
            "text_encoder_3": layout.build_t5(pieces, width=2 * width) if t5 else None,
        }

    pipeline = StableDiffusion3Pipeline(
        **_seeded(seed, parts),
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=pieces if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shifting),
    )
    pipeline.save_pretrained(folder)


def _write_pixart(
    folder: Path,
    *,
    seed: int,
    heads: int,
    text_length: int,
    solver_order: int = 2,
    learned_sigma: bool = True,
    beta_end: float = 0.002,
    text_width: int = 32,
    latent_channels: int = 4,
    additional_conditions: bool = False,
) -> None:
    # PixArt-Sigma's beta_end is 0.02. An untrained model's guess at such noise is off by a hundred times the
    # picture, and so are the digits that float32 has for it.
    pieces = t5_tokenizer(text_length)

    def parts() -> dict[str, Any]:
        return {
            "transformer": PixArtTransformer2DModel(
                num_attention_heads=heads,
                attention_head_dim=8,
                in_channels=latent_channels,
                out_channels=2 * latent_channels if learned_sigma else latent_channels,
                use_additional_conditions=additional_conditions,
                num_layers=3,
                cross_attention_dim=8 * heads,
                sample_size=16,
                caption_channels=text_width,
            ),
            "vae": _vae(latent_channels, shift_factor=None),
            "text_encoder": layout.build_t5(pieces, width=text_width),
        }

    pipeline = PixArtSigmaPipeline(
        **_seeded(seed, parts),
        tokenizer=pieces,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=beta_end, beta_schedule="linear", solver_order=solver_order
        ),
    )
    pipeline.save_pretrained(folder)


def _vae(latent_channels: int, **changes: Any) -> AutoencoderKL:
    config = dict(layout.build_vae(channels=(8, 8, 8, 8), latent_channels=latent_channels).config)
    return AutoencoderKL.from_config({**config, "scaling_factor": 1.5, **changes})


def _projected_clip(tokenizer: Any, width: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(layout.build_clip(tokenizer, width=width).config)


def _seeded(seed: int, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `build` makes with random weights from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
