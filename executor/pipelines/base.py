"""The interface of a model family: how its pictures are encoded, stepped and decoded."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from executor.adapters import Adapters
from executor.groups import Group
from executor.image import ImageSpec
from executor.latents import Condition, State
from executor.pipelines import guidance
from executor.roles import DECODE, ENCODE, EVERY_ROLE

MAX_STEPS = 1000
MAX_SEED = 2**64 - 1


class ModelError(ValueError):
    """A model folder that cannot be loaded; the message says what is missing or wrong."""


@dataclass(frozen=True)
class Limits:
    """What a model can draw.

    Attributes:
        size_multiple: width and height are multiples of it, in pixels.
        max_side: the longest side, in pixels.
        max_tokens: the most image tokens.
        max_prompt_tokens: what is longer is cut, with a warning.
        default_guidance: where a request has none; None: the model takes no guidance.
        two_passes: guidance is classifier-free: beyond 1 each step has a second pass, with the negative
            prompt. Else guidance is an input of the model, which takes no negative prompt.
    """

    size_multiple: int
    max_side: int
    max_tokens: int
    max_prompt_tokens: int
    default_guidance: float | None
    two_passes: bool = False


class Pipeline(ABC):
    """A loaded model on one device. One thread uses it, the one that owns the device.

    Attributes:
        family: its name.
        roles: what it can do; the models that other roles would need are not loaded.
        limits: what it can draw.
        heads: attention heads, which sequence parallelism divides.
        layers: how often a step attends: it can be left before each of these.
        device: where it runs.
        dtype: of weights and latents.
        decoding_tile: in pixels; pictures with a longer side are decoded in tiles of it. 0: none are.
        step_cache: in the middle of a request only each of so many steps is computed, and the others use its
            output again (`tetriserve.step_cache`). 1: all are computed.
        compile_mode: of torch.compile, which the transformer is compiled with; None: it is not.
        adapters: LoRA adapters that requests can name; None: there are none.
    """

    family: str
    roles: frozenset[str] = EVERY_ROLE
    limits: Limits
    heads: int
    layers: int
    device: torch.device
    dtype: torch.dtype
    decoding_tile: int = 0
    step_cache: int = 1
    compile_mode: str | None = None
    adapters: Adapters | None = None

    @property
    @abstractmethod
    def configuration(self) -> Mapping[str, object]:
        """All that the duration of its stages depends on, as JSON."""

    @property
    def fingerprint(self) -> str:
        """The same for models with the same shapes, so with the same step times."""
        text = json.dumps([self.family, self.configuration], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def tokens(self, width: int, height: int) -> int:
        """Image tokens of a picture of that size in pixels: one for each square of `size_multiple`."""
        multiple = self.limits.size_multiple
        return (width // multiple) * (height // multiple)

    @abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Shape of a state's latent for a picture of that size in pixels."""

    def checked(self, state: State) -> State:
        """A state that came from elsewhere. ValueError where its latent is not one of this model."""
        shape, expected = tuple(state.latent.shape), self.latent_shape(state.image.width, state.image.height)
        if shape != expected:
            raise ValueError(f"the latent is {shape}, this model has {expected} for such a picture")
        return state

    def guidance(self, image: ImageSpec) -> float | None:
        """How closely its prompt is followed; None where the model takes no guidance."""
        default = self.limits.default_guidance
        return default if image.guidance is None or default is None else image.guidance

    def is_guided(self, image: ImageSpec) -> bool:
        """Whether each of its steps has a second pass, with the negative prompt."""
        guidance = self.guidance(image)
        return self.limits.two_passes and guidance is not None and guidance > 1

    def check(self, image: ImageSpec) -> list[str]:
        """Whether the model can draw it.

        Returns:
            Warnings for who asked for it, e.g. that its prompt will be cut.

        Raises:
            ValueError: it cannot; the message names the field and what is allowed.
        """
        limits = self.limits
        self.check_size(image.width, image.height)
        if not 1 <= image.steps <= MAX_STEPS:
            raise ValueError(f"steps must be from 1 to {MAX_STEPS}, not {image.steps}")
        if not 0 <= image.seed <= MAX_SEED:
            raise ValueError(f"seed must be from 0 to {MAX_SEED}, not {image.seed}")
        if image.guidance is not None and not 0 <= image.guidance <= 100:
            raise ValueError(f"guidance must be from 0 to 100, not {image.guidance}")
        if self.adapters is not None:
            self.adapters.check(image.lora)
        elif image.lora:
            raise ValueError(f"lora: {image.lora!r} is not known; this executor has no --lora-dir")
        warnings = self.check_prompt(image.prompt, "prompt")
        if image.guidance is not None and limits.default_guidance is None:
            warnings.append("guidance is ignored: this model has it built in")
        if self.is_guided(image):
            warnings += self.check_prompt(image.negative_prompt, "negative prompt")
        elif image.negative_prompt:
            why = "guidance is not above 1" if limits.two_passes else "this model takes none"
            warnings.append(f"the negative prompt is ignored: {why}")
        return warnings

    def check_size(self, width: int, height: int) -> None:
        """ValueError where the model cannot draw that size, in pixels; the message says what it can."""
        limits = self.limits
        for field, pixels in (("width", width), ("height", height)):
            if pixels <= 0 or pixels % limits.size_multiple or pixels > limits.max_side:
                raise ValueError(
                    f"{field} must be a multiple of {limits.size_multiple} from {limits.size_multiple} "
                    f"to {limits.max_side}, not {pixels}"
                )
        tokens = self.tokens(width, height)
        if tokens > limits.max_tokens:
            raise ValueError(
                f"width x height must be at most {limits.max_tokens} image tokens, "
                f"not {tokens} ({width}x{height})"
            )

    @abstractmethod
    def check_prompt(self, prompt: str, what: str) -> list[str]:
        """Warnings about a prompt, e.g. that it will be cut; ValueError where it cannot be encoded.

        `what` names it, "prompt" or "negative prompt".
        """

    def encode(self, image: ImageSpec, encode_text: Callable[[str], Condition] | None = None) -> Condition:
        """What the text encoders make of its prompt and, where it is guided, of its negative prompt.

        `encode_text`: a cache in front of the method of that name.
        """
        encode_text = encode_text or self.encode_text
        condition = encode_text(image.prompt)
        if not self.is_guided(image):
            return condition
        return guidance.both(condition, encode_text(image.negative_prompt))

    @abstractmethod
    def encode_text(self, prompt: str) -> Condition:
        """What the text encoders make of one text."""

    @abstractmethod
    def blank(self, image: ImageSpec) -> Condition:
        """Zeros in the shape of what `encode` gives; needs no text encoders."""

    def rehearse(self) -> None:
        """Encode and decode a small picture, as far as its roles go: first calls are slow."""
        side = self.limits.size_multiple
        image = ImageSpec("a warm sun", side, side, steps=1, seed=0)
        if ENCODE in self.roles:
            self.encode(image)
        if DECODE in self.roles:
            self.decode(self.start(image, {}))

    @abstractmethod
    def start(self, image: ImageSpec, condition: Condition) -> State:
        """The state before the first step. Its noise comes from the seed, on the CPU, so that it is
        the same on every device."""

    @abstractmethod
    def load_adapters(self, folder: Path, limit: int) -> None:
        """Have requests choose from the LoRA adapters in a folder; up to `limit` bytes stay in memory.

        Raises:
            AdapterError: one of them cannot be used, or the family has none.
        """

    @abstractmethod
    def compile(self, mode: str) -> None:
        """Compile the transformer, at its first steps; not together with adapters."""

    @abstractmethod
    def step(self, states: Sequence[State], group: Group) -> list[State]:
        """One denoising step of each state, all in one batch, shared by the members of the group.

        Every member calls it with equal states and ends with equal states, each with its whole latent.
        The states given stay as they are, so that a step that failed can be done again. They may be at
        different steps and have different guidance and step counts, but are of one size.

        Raises:
            GroupAborted: a member failed or was lost.
            ValueError: there are none, they are of different sizes, or one has no step left.
        """

    @abstractmethod
    def prepare_previews(self) -> None:
        """Make ready for `preview`; where it has no VAE there are none."""

    @abstractmethod
    def preview(self, before: State, after: State) -> Image.Image | None:
        """A small, rough picture of where the step from `before` to `after` was heading; None: there is none.

        Any thread may call it while others use the pipeline.
        """

    @abstractmethod
    def decode(self, state: State) -> Image.Image:
        """The picture of a latent."""


def check_batch(states: Sequence[State]) -> None:
    """Whether these can be stepped together, and be stepped at all. ValueError where not."""
    kinds = sorted({f"{s.image.width}x{s.image.height} {s.image.lora}".strip() for s in states})
    if len({state.image.batch_key for state in states}) != 1:
        raise ValueError(f"a batch has one size and one LoRA, not {', '.join(kinds) or 'none'}")
    for state in states:
        if state.done:
            raise ValueError(f"all {state.image.steps} steps are done")


# A loader makes a Pipeline of a checked folder, on a device, with a dtype, for some roles.
Loader = Callable[[Path, torch.device, torch.dtype, frozenset[str]], Pipeline]

_LOADERS: dict[str, Loader] = {}


def register(class_name: str) -> Callable[[Loader], Loader]:
    """Make a loader the one for checkpoints whose model_index.json names this diffusers pipeline."""

    def decorate(loader: Loader) -> Loader:
        _LOADERS[class_name] = loader
        return loader

    return decorate


def loader_for(class_name: str) -> Loader:
    """The loader registered for a diffusers pipeline. ModelError where there is none."""
    try:
        return _LOADERS[class_name]
    except KeyError:
        known = ", ".join(sorted(_LOADERS))
        raise ModelError(f"unknown model family {class_name!r}: there are {known}") from None
