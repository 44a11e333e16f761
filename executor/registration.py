"""How an executor introduces itself to the scheduler."""

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from executor.calibration import Calibration
from executor.latents import Store
from executor.pipelines import Pipeline
from executor.pipelines.base import MAX_STEPS
from executor.profile_cache import device_name
from executor.roles import DECODE, DENOISE, ENCODE, ROLES
from tetriserve.v1 import executor_pb2, scheduler_pb2, types_pb2

DEFAULT_STEPS = 20
STAGES = {
    ENCODE: types_pb2.STAGE_ENCODING,
    DENOISE: types_pb2.STAGE_DENOISING,
    DECODE: types_pb2.STAGE_DECODING,
}
# Bytes of each weights file that its identity rests on, besides its name and length.
SAMPLE_BYTES = 1 << 16


def introduction(
    pipeline: Pipeline,
    calibration: Calibration,
    states: Store,
    *,
    folder: Path,
    address: str,
    store: str,
    node: str,
    island: str = "",
) -> Callable[[], executor_pb2.Registration]:
    """The introduction, as it is when called, of an executor that has loaded `folder`.

    It is reached at `address`, and the groups that it leads meet at `store`.
    """
    device = pipeline.device
    constant = executor_pb2.Registration(
        instance=uuid.uuid4().hex,
        address=address,
        store=store,
        node=node,
        island=island,
        device=device_name(device),
        model=model_info(pipeline, folder),
        device_index=device.index or 0 if device.type == "cuda" else None,
        roles=[STAGES[role] for role in ROLES if role in pipeline.roles],
    )

    def now() -> executor_pb2.Registration:
        registration = executor_pb2.Registration()
        registration.CopyFrom(constant)
        registration.step_times.extend(calibration.known())
        for request_id, step in states.held().items():
            registration.held.add(request_id=request_id, step=step)
        return registration

    return now


def model_info(pipeline: Pipeline, folder: Path) -> scheduler_pb2.ModelInfo:
    """What the model can do, and which one it is."""
    limits, loras = pipeline.limits, pipeline.adapters
    # All that decides the picture, besides the weights and the request.
    kind = f"{pipeline.fingerprint} {loras.digest if loras else ''} {pipeline.step_cache}"
    if pipeline.compile_mode:
        kind += f" {pipeline.compile_mode}"
    return scheduler_pb2.ModelInfo(
        family=pipeline.family,
        name=folder.resolve().name,
        size_multiple=limits.size_multiple,
        max_side=limits.max_side,
        max_steps=MAX_STEPS,
        default_steps=DEFAULT_STEPS,
        max_prompt_tokens=limits.max_prompt_tokens,
        fingerprint=fingerprint(kind, pipeline.dtype, folder),
        step_cache=pipeline.step_cache,
        loras=loras.names if loras else (),
        max_pixels=limits.max_tokens * limits.size_multiple**2,
    )


def fingerprint(shapes: str, dtype: torch.dtype, folder: Path) -> str:
    """The same for executors that make the same pictures: same shapes, same weights, same precision.

    Reads samples of the weights, because all of them can be tens of gigabytes.
    """
    digest = hashlib.sha256(f"{shapes} {dtype}".encode())
    for file in sorted(folder.rglob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)} {size}".encode())
        with file.open("rb") as weights:
            for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
                weights.seek(start)
                digest.update(weights.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
