"""FLUX.1 (dev and schnell), and any model in its layout.

The parts of diffusers' FluxPipeline (encoders, packing, noise, noise levels, VAE) are used as they are;
its loop is not: here each step stands alone, knows its place from the state, and can run on another
group than the one before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image

from executor import attention
from executor.groups import Group
from executor.image import ImageSpec
from executor.latents import Condition, State
from executor.pipelines.base import Limits, Pipeline, check_batch, register
from executor.pipelines.checkpoint import load_models
from executor.sharding import Shard

_MAX_SIDE = 4096
# 2048 x 2048, the largest that FLUX.1 was trained for.
_MAX_TOKENS = 16384
# As Black Forest Labs run their models: schnell, which has no guidance input, takes 256 text tokens.
_PROMPT_TOKENS = {True: 512, False: 256}
_GUIDANCE = 3.5


class FluxFamily(Pipeline):
    """A FLUX.1 model. See `Pipeline`."""

    family = "flux"

    def __init__(self, parts: FluxPipeline, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._parts = parts.to(device)
        self._transformer = parts.transformer.eval().requires_grad_(False)
        self._transformer.set_attn_processor(_FluxAttention())
        self.heads = self._transformer.config.num_attention_heads
        guided = bool(self._transformer.config.guidance_embeds)
        self.limits = Limits(
            size_multiple=2 * parts.vae_scale_factor,
            max_side=_MAX_SIDE,
            max_tokens=_MAX_TOKENS,
            max_prompt_tokens=min(_PROMPT_TOKENS[guided], parts.tokenizer_2.model_max_length),
            default_guidance=_GUIDANCE if guided else None,
        )
        self._schedule = lru_cache(maxsize=256)(self._make_schedule)
        self._ids = lru_cache(maxsize=64)(self._make_ids)

    @property
    def configuration(self) -> Mapping[str, object]:
        parts = self._parts
        models = (parts.transformer, parts.vae, parts.text_encoder, parts.text_encoder_2)
        shapes = [
            {k: v for k, v in m.config.to_dict().items() if k[0] != "_"}
            if hasattr(m.config, "to_dict")
            else {k: v for k, v in dict(m.config).items() if k[0] != "_"}
            for m in models
        ]
        return {"models": shapes, "prompt_tokens": self.limits.max_prompt_tokens}

    def tokens(self, width: int, height: int) -> int:
        multiple = self.limits.size_multiple
        return (width // multiple) * (height // multiple)

    def check_prompt(self, prompt: str) -> list[str]:
        parts, limits = self._parts, self.limits
        warnings = []
        for name, tokenizer, most in (
            ("T5", parts.tokenizer_2, limits.max_prompt_tokens),
            ("CLIP", parts.tokenizer, parts.tokenizer_max_length),
        ):
            length = len(tokenizer(prompt, verbose=False).input_ids)
            if length > most:
                warnings.append(f"the prompt is cut: it has {length} tokens, the {name} encoder reads {most}")
        return warnings

    @torch.inference_mode()
    def encode(self, prompt: str) -> Condition:
        text, pooled, _ = self._parts.encode_prompt(
            prompt, device=self.device, max_sequence_length=self.limits.max_prompt_tokens
        )
        return {"text": text, "pooled": pooled}

    @torch.inference_mode()
    def start(self, image: ImageSpec, condition: Condition) -> State:
        noise, _ = self._parts.prepare_latents(
            batch_size=1,
            num_channels_latents=self._transformer.config.in_channels // 4,
            height=image.height,
            width=image.width,
            dtype=self.dtype,
            device=self.device,
            generator=torch.Generator("cpu").manual_seed(image.seed),
        )
        return State(image, condition, noise, step=0)

    @torch.inference_mode()
    def step(self, states: Sequence[State], group: Group) -> list[State]:
        check_batch(states)
        shard = Shard(
            text=states[0].condition["text"].shape[1],
            image=states[0].latent.shape[1],
            degree=group.degree,
            rank=group.rank,
        )
        with group.running():
            attention.use_group(group, shard, self.heads)
            mine = self._velocity(states, shard)
            velocity = shard.gather_image(mine, group.pg if group.degree > 1 else None)
            return [state.after(self._euler(state, velocity[i : i + 1])) for i, state in enumerate(states)]

    def _velocity(self, states: Sequence[State], shard: Shard) -> torch.Tensor:
        """The transformer's output for this member's image tokens and padding."""
        image = states[0].image
        img_ids, txt_ids = self._ids(image.width, image.height, shard.text)
        latent = torch.cat([state.latent for state in states])
        text = torch.cat([state.condition["text"] for state in states])
        timesteps = [self._levels(state).timesteps[state.step] for state in states]
        return self._transformer(
            hidden_states=shard.take_image(latent),
            encoder_hidden_states=shard.take_text(text),
            pooled_projections=torch.cat([state.condition["pooled"] for state in states]),
            timestep=torch.stack(timesteps).to(self.dtype) / 1000,
            img_ids=shard.take_image(img_ids, dim=0),
            txt_ids=shard.take_text(txt_ids, dim=0),
            guidance=self._guidance(states),
            return_dict=False,
        )[0]

    def _guidance(self, states: Sequence[State]) -> torch.Tensor | None:
        default = self.limits.default_guidance
        if default is None:
            return None
        values = [default if s.image.guidance is None else s.image.guidance for s in states]
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _euler(self, state: State, velocity: torch.Tensor) -> torch.Tensor:
        # diffusers' schedulers count their steps; a copy that is told its step shares nothing.
        scheduler = copy.copy(self._levels(state))
        scheduler._step_index = state.step
        return scheduler.step(velocity, scheduler.timesteps[state.step], state.latent, return_dict=False)[0]

    def _levels(self, state: State) -> FlowMatchEulerDiscreteScheduler:
        return self._schedule(state.image.steps, state.latent.shape[1])

    def _make_schedule(self, steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
        """A scheduler set to the noise levels of so many steps on so many tokens; never stepped itself."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._parts.scheduler.config)
        config = scheduler.config
        mu = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        sigmas = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(steps, device=self.device, sigmas=sigmas, mu=mu)
        return scheduler

    def _make_ids(self, width: int, height: int, text: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of image and text tokens, [tokens, 3] each."""
        multiple = self.limits.size_multiple
        image = self._parts._prepare_latent_image_ids(
            1, height // multiple, width // multiple, self.device, self.dtype
        )
        return image, torch.zeros(text, 3, device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def decode(self, state: State) -> Image.Image:
        parts, image = self._parts, state.image
        latent = parts._unpack_latents(state.latent, image.height, image.width, parts.vae_scale_factor)
        latent = latent / parts.vae.config.scaling_factor + parts.vae.config.shift_factor
        pixels = parts.vae.decode(latent.to(self.dtype), return_dict=False)[0]
        return parts.image_processor.postprocess(pixels, output_type="pil")[0]


class _FluxAttention:
    """FLUX's joint attention of text and image tokens, over the step's group."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # noqa: ARG002  (FLUX has none)
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        text = 0
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            text_query, text_key, text_value = (
                project(encoder_hidden_states).unflatten(-1, (attn.heads, -1))
                for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            )
            query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        out = attention.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        out = out.transpose(1, 2).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        return attn.to_out[1](attn.to_out[0](out[:, text:])), attn.to_add_out(out[:, :text])


@register("FluxPipeline")
def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Load a checkpoint folder in the layout of FLUX.1-dev."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    models = load_models(folder, dtype)
    parts = FluxPipeline.from_pretrained(folder, local_files_only=True, **models)
    return FluxFamily(parts, device, dtype)
