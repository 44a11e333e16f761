"""FLUX.1 (dev and schnell), and any model in its layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline

from executor.image import ImageSpec
from executor.latents import Condition, State
from executor.pipelines.base import Limits, Pipeline, register
from executor.pipelines.checkpoint import check_fit, load_parts
from executor.pipelines.diffusion import MAX_SIDE, MAX_TOKENS, DiffusionPipeline, Reader
from executor.pipelines.flow import FlowMatching
from executor.pipelines.group_attention import GroupAttention
from executor.pipelines.guidance import Pass
from executor.sharding import Shard

# As Black Forest Labs run their models: schnell, which has no guidance input, takes 256 text tokens.
_PROMPT_TOKENS = {True: 512, False: 256}
_GUIDANCE = 3.5


class FluxFamily(DiffusionPipeline):
    """A FLUX.1 model. See `Pipeline`. A latent is packed: a token has 2 x 2 values of each channel."""

    family = "flux"

    def __init__(self, parts: FluxPipeline, device: torch.device, dtype: torch.dtype) -> None:
        model, vae, clip, t5 = (
            part.config for part in (parts.transformer, parts.vae, parts.text_encoder, parts.text_encoder_2)
        )
        check_fit(
            (
                "2 x 2 latent_channels of vae",
                4 * vae.latent_channels,
                "in_channels of transformer",
                model.in_channels,
            ),
            (
                "d_model of text_encoder_2",
                t5.d_model,
                "joint_attention_dim of transformer",
                model.joint_attention_dim,
            ),
            (
                "hidden_size of text_encoder",
                clip.hidden_size,
                "pooled_projection_dim of transformer",
                model.pooled_projection_dim,
            ),
        )
        guided = bool(parts.transformer.config.guidance_embeds)
        limits = Limits(
            size_multiple=2 * parts.vae_scale_factor,
            max_side=MAX_SIDE,
            max_tokens=MAX_TOKENS,
            max_prompt_tokens=min(_PROMPT_TOKENS[guided], parts.tokenizer_2.model_max_length),
            default_guidance=_GUIDANCE if guided else None,
        )
        super().__init__(parts, limits, device, dtype)
        self._transformer.set_attn_processor(GroupAttention())
        flow_sigmas = parts.scheduler.config.get("use_flow_sigmas")
        self._flow = FlowMatching(
            parts.scheduler,
            device,
            sigmas=lambda steps: None if flow_sigmas else np.linspace(1.0, 1 / steps, steps),
        )
        self._ids = lru_cache(maxsize=64)(self._make_ids)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return (1, self.tokens(width, height), self._transformer.config.in_channels)

    @property
    def readers(self) -> Sequence[Reader]:
        parts = self._parts
        return [
            ("T5", parts.tokenizer_2, self.limits.max_prompt_tokens),
            ("CLIP", parts.tokenizer, parts.tokenizer_max_length),
        ]

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> Condition:
        text, pooled, _ = self._parts.encode_prompt(
            prompt, device=self.device, max_sequence_length=self.limits.max_prompt_tokens
        )
        return {"text": text, "pooled": pooled}

    def noise(self, image: ImageSpec) -> torch.Tensor:
        return self._parts.prepare_latents(
            batch_size=1,
            num_channels_latents=self._transformer.config.in_channels // 4,
            height=image.height,
            width=image.width,
            dtype=self.dtype,
            device=self.device,
            generator=self.generator(image),
        )[0]

    def joint_text(self, condition: Condition) -> int:
        return condition["text"].shape[1]

    def predict(self, passes: Sequence[Pass], shard: Shard) -> torch.Tensor:
        image = passes[0].state.image
        img_ids, txt_ids = self._ids(image.width, image.height, shard.text)
        timesteps = [self._flow.timestep(row.state, shard.image) for row in passes]
        return self._transformer(
            hidden_states=shard.take_image(self.latents(passes)),
            encoder_hidden_states=shard.take_text(torch.cat([row.condition["text"] for row in passes])),
            pooled_projections=torch.cat([row.condition["pooled"] for row in passes]),
            timestep=torch.stack(timesteps).to(self.dtype) / 1000,
            img_ids=shard.take_image(img_ids, dim=0),
            txt_ids=shard.take_text(txt_ids, dim=0),
            guidance=self._guidance_input([row.state.image for row in passes]),
            return_dict=False,
        )[0]

    def _guidance_input(self, images: Sequence[ImageSpec]) -> torch.Tensor | None:
        values = [self.guidance(image) for image in images]
        if None in values:
            return None
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def advance(self, state: State, output: torch.Tensor) -> torch.Tensor:
        return self._flow.euler(state, output.shape[1], state.latent, output)

    def _make_ids(self, width: int, height: int, text: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of image and text tokens, [tokens, 3] each."""
        multiple = self.limits.size_multiple
        image = self._parts._prepare_latent_image_ids(
            1, height // multiple, width // multiple, self.device, self.dtype
        )
        return image, torch.zeros(text, 3, device=self.device, dtype=self.dtype)

    def denoised(self, before: State, after: State) -> State:
        tokens = self.tokens(after.image.width, after.image.height)
        return replace(after, latent=self._flow.denoised(before, after, tokens))

    def image_latent(self, state: State) -> torch.Tensor:
        image, parts = state.image, self._parts
        return parts._unpack_latents(state.latent, image.height, image.width, parts.vae_scale_factor)


@register("FluxPipeline")
def load(folder: Path, device: torch.device, dtype: torch.dtype, roles: frozenset[str]) -> Pipeline:
    """Load a checkpoint folder in the layout of FLUX.1-dev."""
    return FluxFamily(load_parts(folder, FluxPipeline, dtype, roles), device, dtype)
