"""Attention of a step, over the group that the step runs on.

`use_group` points attention at a step's group and shard; `attend` is what a model's attention layers
call. Each member ends with the exact attention over the whole sequence: padding is cut from the keys
before any kernel sees it, so that no kernel needs a mask. Graphs of compiled models end before `attend`,
which reads what `use_group` has set.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from executor import usp
from executor.config import ATTENTIONS
from executor.groups import Group
from executor.sharding import Shard

# Query, key and value as [batch, heads, tokens, head size], and whether the log-sum-exp of the scores
# is wanted; output like the query, and that log-sum-exp as [batch, heads, tokens], or None.
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]

_FUNCTION = "tetriserve"
# xfuser's name for a kernel, and the package that it needs. Those that quantize are left out: they would
# make the picture depend on the degree.
_XFUSER_KERNELS: dict[str, tuple[str, str | None]] = {
    "cudnn": ("CUDNN", None),
    "efficient": ("SDPA_EFFICIENT", None),
    "flash": ("FLASH", "flash_attn"),
    "flash3": ("FLASH_3", "flash_attn_interface"),
    "flash4": ("FLASH_4", "flash_attn.cute"),
}


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, want_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """torch's own attention; the public function does not give the log-sum-exp, the ones beneath do."""
    if not want_lse:
        return F.scaled_dot_product_attention(query, key, value), None
    aten = torch.ops.aten
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    elif query.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value)
    else:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
    return out, lse[..., : query.shape[2]]


def _math(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, want_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """By the book, in float32: slow, and with memory for all scores; to compare others with."""
    scores = query.float() @ key.float().transpose(-2, -1) * query.shape[-1] ** -0.5
    out = (scores.softmax(dim=-1) @ value.float()).to(query.dtype)
    return out, scores.logsumexp(dim=-1) if want_lse else None


def _from_xfuser(name: str) -> Kernel:
    function = usp.kernel(name)

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, want_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out, lse = function(query, key, value, dropout_p=0.0, is_causal=False)
        # Some kernels give the sum for whole tiles of queries.
        return out, lse[..., : query.shape[2]] if want_lse else None

    return kernel


@dataclass(frozen=True)
class _View:
    """What one attention layer sees.

    Attributes:
        keys: which keys are real in each block, in the order in which this member sees the blocks.
        queries: which of this member's queries are real; None: all may be computed.
    """

    keys: tuple[slice, ...] = ()
    queries: slice | None = None

    @property
    def no_queries(self) -> bool:
        """Whether none is real: none of the keys of this member's own block, its first, are."""
        return self.keys[0].start == self.keys[0].stop


@dataclass
class _Settings:
    """How this process attends now. USP reads globals: one step at a time runs in a process."""

    backend: str = "sdpa"
    kernel: Kernel = _sdpa
    ring: bool = False
    # Of all tokens, and of image tokens alone; where the latter are, this many are put before them.
    tokens: _View = _View()
    image: _View = _View()
    before_image: int = 0
    look: Callable[[], None] | None = None


_settings = _Settings()


def use_backend(name: str, device: torch.device | str, dtype: torch.dtype) -> None:
    """Choose the attention kernel of this process: one of `ATTENTIONS`.

    Raises:
        ValueError: there is no such kernel, or it does not work here; the message names those that do.
    """
    try:
        kernel = _try(name, torch.device(device), dtype)
    except ValueError as error:
        here = ", ".join(_working(torch.device(device), dtype))
        raise ValueError(f"attention {name!r} {error}; here there are {here}") from error
    _settings.backend, _settings.kernel = name, kernel


def backend() -> str:
    """The attention kernel of this process."""
    return _settings.backend


def _working(device: torch.device, dtype: torch.dtype) -> list[str]:
    names = []
    for name in ATTENTIONS:
        with suppress(ValueError):
            _try(name, device, dtype)
            names.append(name)
    return names


def _try(name: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel, which has been seen to work on this device. ValueError says why it does not."""
    kernel = _find(name, device, dtype)
    if kernel is _sdpa:
        return kernel
    generator = torch.Generator("cpu").manual_seed(0)
    tokens = (torch.randn(1, 4, length, 64, generator=generator) for length in (40, 56, 56))
    query, key, value = (tensor.to(device, dtype) for tensor in tokens)
    try:
        found, expected = kernel(query, key, value, True), _math(query, key, value, True)
        # The sum of exponentials is what a ring adds up by.
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2, check_dtype=False)
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"does not work on {device} with {dtype}: {why}") from error
    return kernel


def _find(name: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    if name in ("sdpa", "math"):
        return _sdpa if name == "sdpa" else _math
    if name not in _XFUSER_KERNELS:
        raise ValueError("is unknown")
    function, package = _XFUSER_KERNELS[name]
    if device.type != "cuda":
        raise ValueError(f"needs a CUDA device, not {device}")
    if package is not None and not _installed(package):
        raise ValueError(f"needs the package {package}, which is not installed")
    if name != "efficient" and dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"needs bfloat16, not {dtype}")
    return _from_xfuser(function)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def use_group(group: Group, shard: Shard, heads: int) -> None:
    """Point attention at the group and shard of the step that follows. The first time for a group, all
    of its members must call it together."""
    split = group.split(heads)
    usp.use(split)
    _settings.ring = split.ring > 1
    # A ring member sees its own block first, then that of the member before it, and so on round.
    order = [(split.ring_rank - turn) % split.ring for turn in range(split.ring)]
    _settings.tokens = _View(tuple(shard.keys_in_block(block, split.ring) for block in order))
    # A member that has all of them needs no text to stand before them.
    images = shard if shard.degree > 1 else replace(shard, text=0)
    keys = tuple(images.keys_in_block(block, split.ring, image_only=True) for block in order)
    _settings.image = _View(keys, queries=keys[0])
    _settings.before_image = images.text_slice.stop - images.text_slice.start


@contextmanager
def between_layers(look: Callable[[], None] | None) -> Iterator[None]:
    """Have `look` called before each attention layer of a step (None: nothing); what it raises ends the step.

    It is called in the same place on all members: none is in a layer that others are not to come to.
    """
    _settings.look = look
    try:
        yield
    finally:
        _settings.look = None


@torch.compiler.disable
def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of this member's tokens over all tokens of the group's sequence.

    Args:
        query, key, value: [batch, heads, tokens of this member, head size].

    Returns:
        The same shape.
    """
    return _attend(query, key, value, _settings.tokens)


@torch.compiler.disable
def attend_image(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of this member's image tokens over all image tokens of the group's sequence.

    Args:
        query, key, value: [batch, heads, image tokens and padding of this member, head size].

    Returns:
        The same shape.
    """
    # Members have different numbers of image tokens; with zeros in place of text they are alike.
    before = _settings.before_image
    if before:
        query, key, value = (F.pad(tensor, [0, 0, before, 0]) for tensor in (query, key, value))
    return _attend(query, key, value, _settings.image)[:, :, before:]


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: _View) -> torch.Tensor:
    if _settings.look is not None:
        _settings.look()
    return usp.attend(query, key, value, _FUNCTION, {"view": view, "keys": iter(view.keys)})


def _attend_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,  # noqa: ARG001
    is_causal: bool,  # noqa: ARG001
    attention_kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What USP calls for each block of keys that it brings before this member's queries."""
    view: _View = attention_kwargs["view"]
    keys: slice = next(attention_kwargs["keys"])
    if keys.start == keys.stop or view.no_queries:
        return _nothing(query, matters=not view.no_queries)
    key, value = key[:, :, keys], value[:, :, keys]
    if view.queries is None:
        return _settings.kernel(query, key, value, _settings.ring)
    # The others' output is never used; zeros in the ring's sum keep it finite.
    before, after = view.queries.start, query.shape[2] - view.queries.stop
    out, lse = _settings.kernel(query[:, :, view.queries], key, value, _settings.ring)
    return F.pad(out, [0, 0, before, after]), None if lse is None else F.pad(lse, [before, after])


def _nothing(query: torch.Tensor, *, matters: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over no keys at all: a weight of zero in the ring's sum.

    Where the output does not matter any finite weight will do; minus infinity would make NaNs of it, as
    there is no key in the first block, either.
    """
    weight = float("-inf") if matters else 0.0
    return torch.zeros_like(query), query.new_full(query.shape[:3], weight, dtype=torch.float32)


usp.register(_FUNCTION, _attend_block)
