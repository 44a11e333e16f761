"""What a request asks to be drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSpec:
    """All that decides the picture: the same spec gives the same picture, wherever its steps run.

    Attributes:
        prompt: what to draw.
        width: in pixels.
        height: in pixels.
        steps: denoising steps, 1 or more.
        seed: of the initial noise, 0 to 2**64 - 1.
        guidance: how closely to follow the prompt; None: the model's default.
        negative_prompt: what not to draw; empty: nothing in particular.
        lora: name of an adapter; empty: none.
        lora_scale: how much of it is added.
    """

    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance: float | None = None
    negative_prompt: str = ""
    lora: str = ""
    lora_scale: float = 1.0

    @property
    def batch_key(self) -> tuple[object, ...]:
        """What is equal for all requests that can be stepped as one batch."""
        return self.width, self.height, self.lora, self.lora_scale
