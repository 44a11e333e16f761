"""PixArt-Sigma, and any model in its layout.

Text is not in one sequence with the image, but attended to by layers of its own: each member of a group
has all of it, and shares image tokens alone. The solver looks back at earlier steps, so what it needs of
them is part of the latent.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

from executor.image import ImageSpec
from executor.latents import Condition, State
from executor.pipelines.base import Limits, ModelError, Pipeline, register
from executor.pipelines.checkpoint import check_fit, load_parts
from executor.pipelines.diffusion import MAX_SIDE, MAX_TOKENS, DiffusionPipeline, Reader, unpatchify
from executor.pipelines.group_attention import GroupAttention
from executor.pipelines.guidance import Pass
from executor.sharding import Shard

# diffusers' own defaults.
_PROMPT_TOKENS = 300
_GUIDANCE = 4.5


class PixArtFamily(DiffusionPipeline):
    """A PixArt-Sigma model. See `Pipeline`.

    A latent is what the VAE decodes, and after it, as more channels, what the model made of the steps
    before, the latest last.
    """

    family = "pixart"

    def __init__(self, parts: PixArtSigmaPipeline, device: torch.device, dtype: torch.dtype) -> None:
        config = parts.transformer.config
        check_fit(
            (
                "latent_channels of vae",
                parts.vae.config.latent_channels,
                "in_channels of transformer",
                config.in_channels,
            ),
            (
                "d_model of text_encoder",
                parts.text_encoder.config.d_model,
                "caption_channels of transformer",
                config.caption_channels,
            ),
        )
        _check_solver(parts.scheduler)
        if parts.transformer.use_additional_conditions:
            raise ModelError(
                "use_additional_conditions is not supported: PixArt-Sigma has none, PixArt-alpha has"
            )
        limits = Limits(
            size_multiple=config.patch_size * parts.vae_scale_factor,
            max_side=MAX_SIDE,
            max_tokens=MAX_TOKENS,
            max_prompt_tokens=min(_PROMPT_TOKENS, parts.tokenizer.model_max_length),
            default_guidance=_GUIDANCE,
            two_passes=True,
        )
        super().__init__(parts, limits, device, dtype)
        for block in self._transformer.transformer_blocks:
            # The other attention of a block is of text, and needs nobody else.
            block.attn1.set_processor(GroupAttention())
        self._channels = config.in_channels
        self._solver = lru_cache(maxsize=256)(self._make_solver)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        scale, order = self._parts.vae_scale_factor, self._parts.scheduler.config.solver_order
        return (1, order * self._channels, height // scale, width // scale)

    @property
    def readers(self) -> Sequence[Reader]:
        return [("T5", self._parts.tokenizer, self.limits.max_prompt_tokens)]

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> Condition:
        text, mask, _, _ = self._parts.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.limits.max_prompt_tokens,
        )
        return {"text": text, "mask": mask}

    def blank_text(self) -> Condition:
        # T5 looks into its mask, which it cannot on the meta device.
        tokens, width = self.limits.max_prompt_tokens, self._parts.text_encoder.config.d_model
        return {
            "text": torch.zeros(1, tokens, width, dtype=self.dtype, device=self.device),
            "mask": torch.zeros(1, tokens, dtype=torch.int64, device=self.device),
        }

    def noise(self, image: ImageSpec) -> torch.Tensor:
        noise = self._parts.prepare_latents(
            batch_size=1,
            num_channels_latents=self._channels,
            height=image.height,
            width=image.width,
            dtype=self.dtype,
            device=self.device,
            generator=self.generator(image),
        )
        return torch.cat([noise, torch.zeros_like(noise).repeat(1, self._earlier, 1, 1)], dim=1)

    @property
    def _earlier(self) -> int:
        """How many steps the solver looks back."""
        return self._parts.scheduler.config.solver_order - 1

    def joint_text(self, condition: Condition) -> int:  # noqa: ARG002
        return 0

    def predict(self, passes: Sequence[Pass], shard: Shard) -> torch.Tensor:
        model = self._transformer
        # Patches get their places before they are shared, for those hang on the picture's shape.
        tokens = shard.take_image(model.pos_embed(self.latents(passes)[:, : self._channels]))
        moments, moment = model.adaln_single(
            torch.stack([self._solver(row.state.image.steps).timesteps[row.state.step] for row in passes]),
            batch_size=len(passes),
            hidden_dtype=tokens.dtype,
        )
        text = torch.cat([row.condition["text"] for row in passes])
        if model.caption_projection is not None:
            text = model.caption_projection(text)
        mask = torch.cat([row.condition["mask"] for row in passes])
        bias = ((1 - mask.to(tokens.dtype)) * -10000.0).unsqueeze(1)
        for block in model.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=text, encoder_attention_mask=bias, timestep=moments)
        shift, scale = (model.scale_shift_table[None] + moment[:, None]).chunk(2, dim=1)
        output = model.proj_out(model.norm_out(tokens) * (1 + scale) + shift)
        # The model may guess its variance, too, which nobody asks for.
        return output.unflatten(-1, (-1, model.out_channels))[..., : self._channels].flatten(-2)

    def advance(self, state: State, output: torch.Tensor) -> torch.Tensor:
        patch = self._transformer.config.patch_size
        latent, *earlier = state.latent.split(self._channels, dim=1)
        noise = unpatchify(output, latent.shape[2] // patch, latent.shape[3] // patch, patch)
        # A copy that is told its step and what came before shares nothing.
        solver = copy.copy(self._solver(state.image.steps))
        solver._step_index = state.step
        solver.lower_order_nums = min(state.step, solver.config.solver_order)
        # The first makes room for this step's.
        solver.model_outputs = [None, *earlier]
        latent = solver.step(noise, solver.timesteps[state.step], latent, return_dict=False)[0]
        return torch.cat([latent, *solver.model_outputs[1:]], dim=1)

    def _make_solver(self, steps: int) -> DPMSolverMultistepScheduler:
        """A solver set to so many steps; never stepped itself."""
        solver = DPMSolverMultistepScheduler.from_config(self._parts.scheduler.config)
        solver.set_timesteps(steps, device=self.device)
        return solver

    def image_latent(self, state: State) -> torch.Tensor:
        return state.latent[:, : self._channels]


def _check_solver(scheduler: object) -> None:
    if not isinstance(scheduler, DPMSolverMultistepScheduler):
        raise ModelError(
            f"unknown scheduler {type(scheduler).__name__}: there is DPMSolverMultistepScheduler"
        )
    if scheduler.config.algorithm_type not in ("dpmsolver", "dpmsolver++"):
        raise ModelError(
            f"a scheduler with algorithm_type {scheduler.config.algorithm_type!r} is not supported: "
            "its steps add noise; dpmsolver and dpmsolver++ are"
        )


@register("PixArtSigmaPipeline")
def load(folder: Path, device: torch.device, dtype: torch.dtype, roles: frozenset[str]) -> Pipeline:
    """Load a checkpoint folder in the layout of PixArt-Sigma."""
    return PixArtFamily(load_parts(folder, PixArtSigmaPipeline, dtype, roles), device, dtype)
