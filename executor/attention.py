"""Attention of a step, over the group that the step runs on.

`use_group` points attention at a step's group and shard; `attend` is what a model's attention layers
call. Each member ends with the exact attention over the whole sequence: padding is cut from the keys
before any kernel sees it, so that no kernel needs a mask.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from executor import usp
from executor.groups import Group
from executor.sharding import Shard

# Query, key and value as [batch, heads, tokens, head size], and whether the log-sum-exp of the scores
# is wanted; output like the query, and that log-sum-exp as [batch, heads, tokens], or None.
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]

_FUNCTION = "tetriserve"
_XFUSER_KERNELS = {"cudnn": "CUDNN", "flash": "FLASH", "flash3": "FLASH_3"}
BACKENDS = ("sdpa", *_XFUSER_KERNELS)


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


def _from_xfuser(name: str) -> Kernel:
    function = usp.kernel(name)

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, want_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        out, lse = function(query, key, value, dropout_p=0.0, is_causal=False)
        return out, lse if want_lse else None

    return kernel


@dataclass
class _Settings:
    """How this process attends now. USP reads globals: one step at a time runs in a process."""

    kernel: Kernel = _sdpa
    # The real keys of each block that attention will see in this step, in the order it sees them.
    blocks: tuple[int, ...] = ()
    ring: bool = False


_settings = _Settings()


def use_backend(name: str, device: torch.device | str) -> None:
    """Choose the attention kernel of this process: one of `BACKENDS`.

    Raises:
        ValueError: there is no such backend, or not on this device.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name == "sdpa":
        _settings.kernel = _sdpa
        return
    if torch.device(device).type != "cuda":
        raise ValueError(f"attention backend {name!r} needs a CUDA device, not {device}: use 'sdpa'")
    package = {"flash": "flash_attn", "flash3": "flash_attn_interface"}.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ValueError(f"attention backend {name!r} needs the package {package}, which is not installed")
    _settings.kernel = _from_xfuser(_XFUSER_KERNELS[name])


def use_group(group: Group, shard: Shard, heads: int) -> None:
    """Point attention at the group and shard of the step that follows. The first time for a group, all
    of its members must call it together."""
    split = group.split(heads)
    usp.use(split)
    _settings.ring = split.ring > 1
    # A ring member sees its own block first, then that of the member before it, and so on round.
    order = [(split.ring_rank - turn) % split.ring for turn in range(split.ring)]
    _settings.blocks = tuple(shard.keys_in_block(block, split.ring) for block in order)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of this member's tokens over all tokens of the group's sequence.

    Args:
        query, key, value: [batch, heads, tokens of this member, head size].

    Returns:
        The same shape.
    """
    return usp.attend(query, key, value, _FUNCTION, {"blocks": iter(_settings.blocks)})


def _attend_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,  # noqa: ARG001
    is_causal: bool,  # noqa: ARG001
    attention_kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What USP calls for each block of keys that it brings before this member's queries."""
    blocks: Iterator[int] = attention_kwargs["blocks"]
    keys = next(blocks)
    if keys == 0:
        return _nothing(query, first=_settings.blocks[0] == 0)
    return _settings.kernel(query, key[:, :, :keys], value[:, :, :keys], _settings.ring)


def _nothing(query: torch.Tensor, *, first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over no keys at all: a weight of zero in the ring's sum.

    Where a member's own block, its first, is all padding, so are its queries, and any finite weight will
    do; minus infinity would make NaNs of them.
    """
    weight = 0.0 if first else float("-inf")
    return torch.zeros_like(query), query.new_full(query.shape[:3], weight, dtype=torch.float32)


usp.register(_FUNCTION, _attend_block)
