"""Profiles on disk: what one executor has measured, the next start need not measure again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from executor import attention
from executor.pipelines import Pipeline
from executor.profiler import Measurement
from tetriserve.logs import Logger

log = Logger("executor.profile_cache")

_LIBRARIES = ("torch", "diffusers", "xfuser")


@dataclass(frozen=True)
class Key:
    """What step times depend on; profiles with different keys have nothing to do with each other.

    Attributes:
        model: the pipeline's fingerprint.
        device: its name, e.g. "NVIDIA H100 80GB HBM3".
        dtype: e.g. "torch.bfloat16".
        threads: that torch computes with.
        versions: of the libraries that compute.
        attention: the attention kernel.
        compile_mode: of torch.compile; None: not compiled.
    """

    model: str
    device: str
    dtype: str
    threads: int
    versions: tuple[str, ...]
    attention: str = "sdpa"
    compile_mode: str | None = None

    @classmethod
    def of(cls, pipeline: Pipeline) -> Key:
        """The key of a pipeline in this process."""
        return cls(
            model=pipeline.fingerprint,
            device=device_name(pipeline.device),
            dtype=str(pipeline.dtype),
            threads=torch.get_num_threads(),
            versions=tuple(f"{library} {version(library)}" for library in _LIBRARIES),
            attention=attention.backend(),
            compile_mode=pipeline.compile_mode,
        )

    @property
    def digest(self) -> str:
        """A short name for it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class ProfileCache:
    """Measurements of one key, in one file of a folder."""

    def __init__(self, folder: Path, key: Key) -> None:
        self._key = key
        self._file = folder / f"{key.digest}.json"

    def load(self) -> list[Measurement]:
        """What was measured before. A file that cannot be read is as good as none."""
        try:
            content = json.loads(self._file.read_text())
            return [Measurement(**row) for row in content["measurements"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the cached profile is unreadable, measuring anew", file=self._file, why=error)
            return []

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Write these to the file, in place of earlier ones of the same kind, size, degree and batch.

        Nobody ever sees half a file: it is written beside its place and moved there.
        """
        rows = {(m.kind, m.width, m.height, m.degree, m.batch): m for m in [*self.load(), *measurements]}
        content = {"key": asdict(self._key), "measurements": [asdict(m) for m in rows.values()]}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as draft:
            json.dump(content, draft, indent=1)
        os.replace(draft.name, self._file)


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
