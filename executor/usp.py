"""xfuser's unified sequence parallelism (Ulysses x ring), also where there is no GPU.

xfuser takes a GPU for granted when it is imported: it asks for the version of the device's driver, and
imports triton for a sparse attention that nobody here uses. On a CPU-only torch both get stand-ins. At
work, USP reads its groups from globals; `use` sets them.

Written against xfuser 0.7.0 and yunchang 0.6.4.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from executor import quiet  # noqa: F401

if TYPE_CHECKING:
    from executor.group import Split


def _import_without_gpu() -> None:
    """Put what `import xfuser` needs, and a CPU-only machine lacks, into `sys.modules`."""
    spec = importlib.util.find_spec("xfuser")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("xfuser is not installed: pip install 'tetriserve[executor]'")
    # An empty shell of the package lets `xfuser.envs` be mended before the package itself runs.
    shell = ModuleType("xfuser")
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules["xfuser"] = shell
    try:
        import xfuser.envs

        xfuser.envs.get_device_version = lambda: None
        if importlib.util.find_spec("triton") is None:
            sparse = ModuleType("xfuser.core.sparge_attention.block_mask")
            sparse.get_block_map_meansim = None  # type: ignore[attr-defined]
            sys.modules[sparse.__name__] = sparse
    finally:
        del sys.modules["xfuser"]


if torch.version.cuda is None and torch.version.hip is None and "xfuser" not in sys.modules:
    _import_without_gpu()

# The order matters: xfuser's usp module can only be imported once the package has been.
import xfuser  # noqa: E402, F401
from xfuser.core.distributed import parallel_state, runtime_state  # noqa: E402
from xfuser.core.distributed.attention_backend import (  # noqa: E402
    ATTENTION_FUNCTION_REGISTRY,
    AttentionBackendType,
)
from xfuser.model_executor.layers import usp as _usp  # noqa: E402
from yunchang.globals import PROCESS_GROUP  # noqa: E402

# Left None where xfuser sees no GPU.
_usp.PROCESS_GROUP = PROCESS_GROUP

# What USP asks xfuser's runtime, which needs a whole engine of xfuser's to be made properly.
runtime_state._RUNTIME = SimpleNamespace(
    attention_backend=None,
    fp8_comms=None,
    runtime_config=SimpleNamespace(use_spargeattn_head_balance=False),
)


def register(name: str, function: Any) -> None:
    """Let `attend` use an attention function under a name; see xfuser's `register_attention_function`."""
    ATTENTION_FUNCTION_REGISTRY[name] = function


def kernel(name: str) -> Any:
    """xfuser's own attention function for one of its backends, e.g. "CUDNN" or "FLASH"."""
    return ATTENTION_FUNCTION_REGISTRY[AttentionBackendType[name]]


def use(split: Split) -> None:
    """Make this the group of all attention until the next call. It takes microseconds."""
    parallel_state._SP = SimpleNamespace(
        world_size=split.ulysses * split.ring,
        rank_in_group=split.ring_rank * split.ulysses + split.ulysses_rank,
        ulysses_world_size=split.ulysses,
        ulysses_rank=split.ulysses_rank,
        ring_world_size=split.ring,
        ring_rank=split.ring_rank,
    )
    PROCESS_GROUP.ULYSSES_PG = split.ulysses_pg
    PROCESS_GROUP.RING_PG = split.ring_pg


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, function: str, options: dict[str, Any]
) -> torch.Tensor:
    """Attention of this member's tokens over all tokens of the group.

    Args:
        query, key, value: [batch, heads, tokens of this member, head size]; as many tokens on each member.
        function: a registered name.
        options: handed to the function.

    Returns:
        [batch, heads, tokens of this member, head size].
    """
    return _usp.USP(query, key, value, combine_qkv_a2a=True, backend=function, attention_kwargs=options)
