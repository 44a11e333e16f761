"""What families made of a diffusers pipeline have in common.

The pipeline's parts (encoders, noise, noise levels, VAE) are used as they are; its loop is not: here each
step stands alone, knows its place from the state, and can run on another group than the one before.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from executor import attention, compiling
from executor.adapters import Adapters
from executor.groups import Group
from executor.image import ImageSpec
from executor.latents import Condition, State
from executor.pipelines import guidance
from executor.pipelines.base import Limits, Pipeline, check_batch
from executor.pipelines.checkpoint import place
from executor.pipelines.guidance import Pass
from executor.pipelines.sketch import Sketch
from executor.roles import DECODE
from executor.sharding import Shard
from tetriserve.step_cache import computed

MAX_SIDE = 4096
# 2048 x 2048 at 16 x 16 pixels a token.
MAX_TOKENS = 16384

# Name, tokenizer, and the most tokens that the encoder behind it reads.
Reader = tuple[str, Any, int]


class DiffusionPipeline(Pipeline):
    """A diffusers pipeline, taken apart.

    Args:
        parts: the diffusers pipeline; its transformer attends by `executor.attention`.
        limits: what it can draw.
        device: where to run.
        dtype: of weights and latents.
    """

    def __init__(self, parts: Any, limits: Limits, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.limits = limits
        # As `load_parts` has it; whoever makes parts otherwise gets the same pictures and times.
        parts.vae.float()
        self._parts = place(parts, device)
        self._transformer = parts.transformer.eval().requires_grad_(False)
        self._sketch: Sketch | None = None
        self.heads = self._transformer.config.num_attention_heads
        stacks = [part for part in self._transformer.children() if isinstance(part, torch.nn.ModuleList)]
        self.layers = max(1, sum(map(len, stacks)))

    @property
    def configuration(self) -> Mapping[str, object]:
        models = {
            name: _settings(part.config)
            for name, part in sorted(self._parts.components.items())
            if isinstance(part, torch.nn.Module)
        }
        return {
            "models": models,
            "prompt_tokens": self.limits.max_prompt_tokens,
            "decoding_tile": self.decoding_tile,
        }

    @property
    @abstractmethod
    def readers(self) -> Sequence[Reader]:
        """The text encoders that there are."""

    def check_prompt(self, prompt: str, what: str) -> list[str]:
        warnings = []
        for name, tokenizer, most in self.readers:
            length = len(tokenizer(prompt, verbose=False).input_ids)
            if length > most:
                warnings.append(f"the {what} is cut: it has {length} tokens, the {name} encoder reads {most}")
        # Two encoders may read alike.
        return list(dict.fromkeys(warnings))

    def blank(self, image: ImageSpec) -> Condition:
        return self.encode(image, lambda _: self.blank_text())

    @torch.inference_mode()
    def blank_text(self) -> Condition:
        """Zeros in the shape of what `encode_text` gives."""
        # On the meta device, where a text encoder that is not loaded is, tensors have shapes only.
        device, self.device = self.device, torch.device("meta")
        try:
            shapes = self.encode_text("")
        finally:
            self.device = device
        return {name: torch.zeros(s.shape, dtype=s.dtype, device=device) for name, s in shapes.items()}

    @torch.inference_mode()
    def start(self, image: ImageSpec, condition: Condition) -> State:
        # Latents stay in float32 whatever the model computes in: rounded at each step, they would differ
        # visibly where attention has added up in another order.
        return State(image, condition, self.noise(image).float(), step=0)

    @abstractmethod
    def noise(self, image: ImageSpec) -> torch.Tensor:
        """The latent before the first step, of `latent_shape`."""

    def load_adapters(self, folder: Path, limit: int) -> None:
        if self.compile_mode is not None:
            # Their hooks change layers from step to step, which a graph would not see.
            raise ValueError("--compile: not together with --lora-dir")
        self.adapters = Adapters(self._parts, folder, self.device, self.dtype, limit)

    def compile(self, mode: str) -> None:
        if self.adapters is not None:
            raise ValueError("--compile: not together with --lora-dir")
        compiling.compile_blocks(self._transformer, mode)
        self.compile_mode = mode

    @torch.inference_mode()
    def step(self, states: Sequence[State], group: Group) -> list[State]:
        check_batch(states)
        # What a step cache passes over uses the output of the step before again.
        outputs = {id(state): state.output for state in states if state.step not in self._computed(state)}
        fresh = [state for state in states if id(state) not in outputs]
        with group.running():
            for state, output in zip(fresh, self._outputs(fresh, group) if fresh else (), strict=True):
                outputs[id(state)] = output
            return [self._after(state, outputs[id(state)]) for state in states]

    def _outputs(self, states: Sequence[State], group: Group) -> list[torch.Tensor]:
        """What the model makes of each state, guidance included: [1, image tokens, channels]."""
        image = states[0].image
        shard = Shard(
            text=self.joint_text(states[0].condition),
            image=self.tokens(image.width, image.height),
            degree=group.degree,
            rank=group.rank,
        )
        attention.use_group(group, shard, self.heads)
        if self.adapters is not None:
            self.adapters.use(image.lora, image.lora_scale)
        if self.compile_mode is not None:
            compiling.begin_step()
        mine = self.predict(guidance.passes(states), shard)
        outputs = shard.gather_image(mine, group.pg if group.degree > 1 else None)
        scales = [self.guidance(state.image) or 0.0 for state in states]
        return guidance.combine(states, outputs.float(), scales)

    def _after(self, state: State, output: torch.Tensor | None) -> State:
        if output is None:
            raise ValueError(f"step {state.step} is not computed here, and the last output is not held")
        again = state.step + 1 < state.image.steps and state.step + 1 not in self._computed(state)
        return state.after(self.advance(state, output), output if again else None)

    def _computed(self, state: State) -> Sequence[int]:
        return computed(state.image.steps, self.step_cache)

    @abstractmethod
    def joint_text(self, condition: Condition) -> int:
        """Text tokens that are in one sequence with the image's; 0 where text is only attended to."""

    @abstractmethod
    def predict(self, passes: Sequence[Pass], shard: Shard) -> torch.Tensor:
        """The transformer's output for this member's image tokens and padding: [passes, tokens, channels]."""

    def latents(self, passes: Sequence[Pass]) -> torch.Tensor:
        """The latents of these rows, in the model's dtype."""
        return torch.cat([row.state.latent for row in passes]).to(self.dtype)

    @abstractmethod
    def advance(self, state: State, output: torch.Tensor) -> torch.Tensor:
        """The latent one step on, from the whole output: [1, image tokens, channels]."""

    def prepare_previews(self) -> None:
        if DECODE in self.roles:
            self._sketch = Sketch(self._parts.vae, self.device)

    @torch.inference_mode()
    def preview(self, before: State, after: State) -> Image.Image | None:
        if self._sketch is None:
            return None
        return self._sketch.draw(self.image_latent(self.denoised(before, after)))

    def denoised(self, before: State, after: State) -> State:  # noqa: ARG002
        """What the last step takes the picture for, without the noise that is still in the latent."""
        return after

    @torch.inference_mode()
    def decode(self, state: State) -> Image.Image:
        parts = self._parts
        config = parts.vae.config
        self._tile(state.image)
        latent = self.image_latent(state) / config.scaling_factor + (config.shift_factor or 0.0)
        pixels = parts.vae.decode(latent.to(parts.vae.dtype), return_dict=False)[0]
        return parts.image_processor.postprocess(pixels, output_type="pil")[0]

    def _tile(self, image: ImageSpec) -> None:
        """Have the VAE decode the picture in tiles if it is a large one: that needs less memory."""
        vae, scale = self._parts.vae, self._parts.vae_scale_factor
        vae.use_tiling = 0 < self.decoding_tile < max(image.width, image.height)
        # A quarter of a tile is overlap: diffusers wants whole latent pixels, or it misplaces the tiles.
        vae.tile_latent_min_size = self.decoding_tile // (4 * scale) * 4
        vae.tile_sample_min_size = vae.tile_latent_min_size * scale

    @abstractmethod
    def image_latent(self, state: State) -> torch.Tensor:
        """A state's latent as the VAE knows it: [1, channels, height, width]."""

    def generator(self, image: ImageSpec) -> torch.Generator:
        """Of the request's noise: on the CPU, so that it is the same on every device."""
        return torch.Generator("cpu").manual_seed(image.seed)


def unpatchify(tokens: torch.Tensor, height: int, width: int, patch: int) -> torch.Tensor:
    """[batch, height x width tokens, patch x patch x channels] -> [batch, channels, rows, columns]."""
    grid = tokens.unflatten(-1, (patch, patch, -1)).unflatten(1, (height, width))
    return torch.einsum("nhwpqc->nchpwq", grid).flatten(4, 5).flatten(2, 3)


def _settings(config: Any) -> dict[str, object]:
    """A model's configuration without what says where it comes from."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in values.items() if not key.startswith("_")}
