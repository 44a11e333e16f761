"""Cheap previews: a latent's channels as colours, by one linear map fitted to the VAE."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

_SIDE, _PICTURES = 128, 8


class Sketch:
    """The linear map from a latent to small pictures, one pixel a latent pixel.

    Fitted once, by least squares, to what the VAE's encoder makes of smooth random colours.
    """

    def __init__(self, vae: Any, device: torch.device) -> None:
        chance = torch.Generator().manual_seed(0)
        coarse = torch.rand(_PICTURES, 3, 6, 6, generator=chance) * 2 - 1
        colours = F.interpolate(coarse, (_SIDE, _SIDE), mode="bilinear").to(device, vae.dtype)
        with torch.inference_mode():
            latent = vae.encode(colours).latent_dist.mean.float().cpu()
        latent = (latent - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        target = F.adaptive_avg_pool2d(colours.float().cpu(), latent.shape[-2:])
        rows = _with_one(latent.movedim(1, -1).flatten(0, -2))
        self._map = torch.linalg.lstsq(rows, target.movedim(1, -1).flatten(0, -2)).solution

    def draw(self, latent: torch.Tensor) -> Image.Image:
        """A picture of a latent, [1, channels, height, width]."""
        colours = _with_one(latent[0].float().cpu().movedim(0, -1)) @ self._map
        pixels = ((colours + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(pixels.numpy())


def _with_one(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
