"""torch.compile for the transformer's blocks.

Each block is compiled by itself: blocks alike share their code, so that it takes as long as one of each
kind. Attention reads the step's group from globals and runs collectives; it stays outside
(`attention.attend` is excluded), and what stands before and after it in a block are graphs of their own.
"""

from __future__ import annotations

import torch

from executor.config import COMPILE_MODES

# A block's code for each kind of block, of one row or several, with tokens of one kind or both. Beyond the
# limit torch would go on without compiling.
_RECOMPILE_LIMIT = 64


def check(mode: str, device: torch.device | str) -> None:
    """Whether torch.compile works here, by compiling a little.

    Raises:
        ValueError: there is no such mode, or no compiler that works; the message says why.
    """
    if mode not in COMPILE_MODES:
        raise ValueError(f"--compile: expected one of {', '.join(COMPILE_MODES)}, not {mode!r}")
    device = torch.device(device)
    try:
        if device.type == "cpu":
            from torch._inductor.cpp_builder import get_cpp_compiler

            # What was compiled in an earlier process would hide that it has gone.
            get_cpp_compiler()
        with torch.inference_mode():
            torch.compile(_little)(torch.ones(8, device=device))
    except Exception as error:
        needs = "a C++ compiler (g++, or what CXX names)" if device.type == "cpu" else "triton"
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"--compile: torch.compile needs {needs} on {device}: {why}") from error


def compile_blocks(transformer: torch.nn.Module, mode: str) -> None:
    """Have the blocks compile themselves at their first use, and again for shapes that are new to them."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    for stack in transformer.children():
        if isinstance(stack, torch.nn.ModuleList):
            for block in stack:
                block.compile(mode=mode)


def begin_step() -> None:
    """Outputs of the step before may be overwritten: CUDA graphs use their memory again."""
    torch.compiler.cudagraph_mark_step_begin()


def _little(x: torch.Tensor) -> torch.Tensor:
    return (2 * x).sin() + 1
