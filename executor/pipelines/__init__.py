"""Model families: one file each, behind the interface in `base`."""

from __future__ import annotations

from pathlib import Path

import torch

from executor import compiling, quiet  # noqa: F401
from executor.attention import use_backend
from executor.pipelines import flux, pixart, sd3  # noqa: F401  (register the families)
from executor.pipelines.base import Limits, Loader, ModelError, Pipeline, loader_for, register
from executor.pipelines.checkpoint import read_index
from executor.roles import DENOISE, EVERY_ROLE

__all__ = ["DTYPES", "Limits", "Loader", "ModelError", "Pipeline", "load", "register"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    roles: frozenset[str] = EVERY_ROLE,
    attention: str = "sdpa",
    compile_mode: str | None = None,
) -> Pipeline:
    """Load an ordinary diffusers checkpoint folder.

    Args:
        path: the folder, with model_index.json in it.
        device: where to run.
        dtype: of the weights, e.g. torch.bfloat16 for FLUX.1-dev on a GPU.
        roles: what it is for; models that no role needs are not loaded.
        attention: the kernel, one of `executor.config.ATTENTIONS`; for all models of this process.
        compile_mode: compile the transformer, one of `executor.config.COMPILE_MODES`; None: do not.

    Raises:
        ModelError: the folder is missing, incomplete or corrupt, or of a family that is not known.
        ValueError: the attention kernel or the compiler does not work on this device.
    """
    use_backend(attention, device, dtype)
    if compile_mode is not None and DENOISE in roles:
        compiling.check(compile_mode, device)
    folder = Path(path)
    index = read_index(folder)
    loader = loader_for(str(index["_class_name"]))
    try:
        pipeline = loader(folder, torch.device(device), dtype, roles)
    except ModelError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(f"cannot load {folder}: {error}") from error
    pipeline.roles = roles
    if compile_mode is not None:
        pipeline.compile(compile_mode)
    return pipeline
