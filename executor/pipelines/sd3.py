"""Stable Diffusion 3 and 3.5, and any model in their layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from executor import attention
from executor.image import ImageSpec
from executor.latents import Condition, State
from executor.pipelines.base import Limits, Pipeline, register
from executor.pipelines.checkpoint import check_fit, load_parts
from executor.pipelines.diffusion import MAX_SIDE, MAX_TOKENS, DiffusionPipeline, Reader, unpatchify
from executor.pipelines.flow import FlowMatching
from executor.pipelines.group_attention import GroupAttention
from executor.pipelines.guidance import Pass
from executor.sharding import Shard

# diffusers' own defaults.
_PROMPT_TOKENS = 256
_GUIDANCE = 7.0


class Sd3Family(DiffusionPipeline):
    """A Stable Diffusion 3 or 3.5 model. See `Pipeline`. A latent is what the VAE decodes."""

    family = "sd3"

    def __init__(self, parts: StableDiffusion3Pipeline, device: torch.device, dtype: torch.dtype) -> None:
        config = parts.transformer.config
        clips = [parts.text_encoder.config, parts.text_encoder_2.config]
        check_fit(
            (
                "latent_channels of vae",
                parts.vae.config.latent_channels,
                "in_channels of transformer",
                config.in_channels,
            ),
            (
                "projection_dim of both CLIP encoders",
                sum(clip.projection_dim for clip in clips),
                "pooled_projection_dim of transformer",
                config.pooled_projection_dim,
            ),
        )
        if parts.text_encoder_3:
            width = parts.text_encoder_3.config.d_model
            check_fit(
                (
                    "d_model of text_encoder_3",
                    width,
                    "joint_attention_dim of transformer",
                    config.joint_attention_dim,
                )
            )
        pixels = config.patch_size * parts.vae_scale_factor
        tokenizer = parts.tokenizer_3
        limits = Limits(
            size_multiple=pixels,
            # As far as there are positions.
            max_side=min(MAX_SIDE, config.pos_embed_max_size * pixels),
            max_tokens=min(MAX_TOKENS, config.pos_embed_max_size**2),
            max_prompt_tokens=_PROMPT_TOKENS
            if tokenizer is None
            else min(_PROMPT_TOKENS, tokenizer.model_max_length),
            default_guidance=_GUIDANCE,
            two_passes=True,
        )
        super().__init__(parts, limits, device, dtype)
        # 3.5's dual layers have a second attention, of image tokens alone.
        self._transformer.set_attn_processor(GroupAttention(alone=attention.attend_image))
        # Guidance multiplies what the last layers round off.
        parts.transformer.norm_out.float()
        parts.transformer.proj_out.float()
        self._flow = FlowMatching(parts.scheduler, device)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        scale = self._parts.vae_scale_factor
        return (1, self._transformer.config.in_channels, height // scale, width // scale)

    @property
    def readers(self) -> Sequence[Reader]:
        parts = self._parts
        clips = [("CLIP", t, parts.tokenizer_max_length) for t in (parts.tokenizer, parts.tokenizer_2)]
        t5 = [("T5", parts.tokenizer_3, self.limits.max_prompt_tokens)] if parts.text_encoder_3 else []
        return [*t5, *clips]

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> Condition:
        text, _, pooled, _ = self._parts.encode_prompt(
            prompt,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.limits.max_prompt_tokens,
        )
        return {"text": text, "pooled": pooled}

    def noise(self, image: ImageSpec) -> torch.Tensor:
        return self._parts.prepare_latents(
            batch_size=1,
            num_channels_latents=self._transformer.config.in_channels,
            height=image.height,
            width=image.width,
            dtype=self.dtype,
            device=self.device,
            generator=self.generator(image),
        )

    def joint_text(self, condition: Condition) -> int:
        return condition["text"].shape[1]

    def predict(self, passes: Sequence[Pass], shard: Shard) -> torch.Tensor:
        model = self._transformer
        # Patches get their places before they are shared, for those hang on the picture's shape.
        tokens = shard.take_image(model.pos_embed(self.latents(passes)))
        text = model.context_embedder(shard.take_text(torch.cat([row.condition["text"] for row in passes])))
        timesteps = torch.stack([self._flow.timestep(row.state, shard.image) for row in passes])
        moment = model.time_text_embed(timesteps, torch.cat([row.condition["pooled"] for row in passes]))
        for block in model.transformer_blocks:
            text, tokens = block(hidden_states=tokens, encoder_hidden_states=text, temb=moment)
        return model.proj_out(model.norm_out(tokens.float(), moment))

    def advance(self, state: State, output: torch.Tensor) -> torch.Tensor:
        patch = self._transformer.config.patch_size
        height, width = (side // patch for side in state.latent.shape[-2:])
        velocity = unpatchify(output, height, width, patch)
        return self._flow.euler(state, output.shape[1], state.latent, velocity)

    def denoised(self, before: State, after: State) -> State:
        tokens = self.tokens(after.image.width, after.image.height)
        return replace(after, latent=self._flow.denoised(before, after, tokens))

    def image_latent(self, state: State) -> torch.Tensor:
        return state.latent


@register("StableDiffusion3Pipeline")
def load(folder: Path, device: torch.device, dtype: torch.dtype, roles: frozenset[str]) -> Pipeline:
    """Load a checkpoint folder in the layout of Stable Diffusion 3 medium or 3.5 medium."""
    # T5 may be left out, to save memory.
    optional = ("text_encoder_3", "tokenizer_3")
    parts = load_parts(folder, StableDiffusion3Pipeline, dtype, roles, optional)
    return Sd3Family(parts, device, dtype)
