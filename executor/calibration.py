"""The step times of this device: measured once for all executors like it on this host, then from disk."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from executor import profiler
from executor.groups import Group
from executor.once import alone
from executor.pipelines import Pipeline
from executor.profile_cache import Key, ProfileCache
from executor.profiler import Kind, Measurement, Size
from executor.roles import DECODE, DENOISE, ENCODE
from tetriserve.logs import Logger
from tetriserve.v1 import executor_pb2 as pb

KINDS: dict[pb.StepTime.Kind, Kind] = {
    pb.StepTime.KIND_STEP: "step",
    pb.StepTime.KIND_ENCODE: "encode",
    pb.StepTime.KIND_DECODE: "decode",
}

BATCHES = profiler.Effort(budget_s=0.5, warm_up=1)
"""Spent on batches; there are more of them, and they take longer."""

log = Logger("executor.calibration")


@dataclass(frozen=True)
class Wish:
    """One entry of the profile that is wanted."""

    kind: Kind
    width: int
    height: int
    degree: int
    batch: int

    @classmethod
    def of(cls, entry: "pb.StepTime | Measurement") -> "Wish":
        """The wish that this entry would fulfil. ValueError where its kind is unknown."""
        if isinstance(entry, Measurement):
            kind = entry.kind
        elif entry.kind in KINDS:
            kind = KINDS[entry.kind]
        else:
            raise ValueError(f"no step time is of kind {entry.kind}")
        return cls(kind, entry.width, entry.height, entry.degree, entry.batch)

    @property
    def title(self) -> str:
        """For the log."""
        what = {"step": "step times", "encode": "text encoding", "decode": "decoding"}[self.kind]
        size = f" {self.width}x{self.height}" if self.width else ""
        return what + size + (f" in batches of {self.batch}" if self.batch > 1 else "")


class Calibration:
    """Step times known and to be measured.

    Args:
        pipeline: the model on its device.
        folder: of the cache.
    """

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._pipeline = pipeline
        key = Key.of(pipeline)
        self._cache = ProfileCache(folder, key)
        self._lock = folder / f"{key.digest}.lock"

    def prepare(self, alone_group: Group, sizes: Sequence[Size], batches: Sequence[int] = (1,)) -> None:
        """Have the step times of degree 1 at these sizes and batches: measured by one executor, read by the
        others.

        Several that measured at once would slow each other down. Batches that do not fit into the device's
        memory are left out.
        """
        roles = self._pipeline.roles
        wishes = [Wish("encode", 0, 0, 1, 1)] if ENCODE in roles else []
        kinds: dict[str, Kind] = {DENOISE: "step", DECODE: "decode"}
        wishes += [Wish(kinds[role], *size, 1, 1) for size in sizes for role in kinds if role in roles]
        if DENOISE in roles:
            wishes += [Wish("step", *size, 1, batch) for batch in batches for size in sizes if batch > 1]
        with alone(self._lock, "measuring step times"):
            known = {Wish.of(row) for row in self._cache.load()}
            for wish in wishes:
                if wish in known:
                    continue
                try:
                    self._cache.add([self._measure(alone_group, wish)])
                except torch.OutOfMemoryError:
                    if wish.batch == 1:
                        raise
                    torch.cuda.empty_cache()
                    log.warning(f"no memory for {wish.title}")
        if known.issuperset(wishes):
            self._warm_up(alone_group)
        if self._pipeline.compile_mode is not None:
            self._compile(alone_group, [wish for wish in wishes if wish.kind == "step" and wish in known])

    def _compile(self, alone_group: Group, wishes: Iterable[Wish]) -> None:
        """Compile what a measurement would have compiled: before the executor is ready, not in an order."""
        for wish in wishes:
            log.info(f"compiling for {wish.title}")
            for _ in range(2):  # CUDA graphs are recorded at the second
                profiler.warm_up(self._pipeline, alone_group, (wish.width, wish.height), wish.batch)

    def known(self) -> list[pb.StepTime]:
        """All that has been measured, at any degree, and what a layer takes: an equal share of a step."""
        entries = [_entry(row) for row in self._cache.load()]
        for e in entries:
            if e.kind == pb.StepTime.KIND_STEP and e.degree == e.batch == 1:
                layer = pb.StepTime()
                layer.CopyFrom(e)
                layer.kind, layer.seconds = pb.StepTime.KIND_LAYER, e.seconds / self._pipeline.layers
                return [*entries, layer]
        return entries

    def measure(self, group: Group, wanted: Iterable[pb.StepTime]) -> list[pb.StepTime]:
        """Measure these at the degree of the group; every member calls it with the same wishes.

        Raises:
            GroupAborted: a member failed or was lost.
            ValueError: a wish is of another degree, or the model cannot draw that size.
        """
        wishes = dict.fromkeys(Wish.of(entry) for entry in wanted)
        for wish in wishes:
            if wish.degree != group.degree or (wish.kind != "step" and wish.degree > 1):
                raise ValueError(
                    f"{wish.title} at degree {wish.degree}: the group has {group.degree} members"
                )
        rows = [self._measure(group, wish) for wish in wishes]
        if group.leads:
            with alone(self._lock, "writing its profile"):
                self._cache.add(rows)
        return [_entry(row) for row in rows]

    def _measure(self, group: Group, wish: Wish) -> Measurement:
        log.info(f"measuring {wish.title}", degree=wish.degree)
        size = (wish.width, wish.height)
        match wish.kind:
            case "step":
                effort = profiler.USUAL if wish.batch == 1 else BATCHES
                (row,) = profiler.measure_steps(self._pipeline, group, [size], [wish.batch], effort)
            case "encode":
                row = profiler.measure_encoding(self._pipeline)
            case "decode":
                (row,) = profiler.measure_decoding(self._pipeline, [size])
        return row

    def warm_up(self, group: Group) -> None:
        """Use the group once, in a small step, so that the next one finds it warm; all members call it.

        Raises:
            GroupAborted: a member failed or was lost.
        """
        log.info("warming a group", slots=group.slots)
        profiler.warm_up(self._pipeline, group)

    def _warm_up(self, alone_group: Group) -> None:
        """Go through all stages once: first calls are slow."""
        log.info("warming up")
        if DENOISE in self._pipeline.roles:
            profiler.warm_up(self._pipeline, alone_group)
        self._pipeline.rehearse()


def _entry(row: Measurement) -> pb.StepTime:
    kind = next(number for number, name in KINDS.items() if name == row.kind)
    return pb.StepTime(
        kind=kind,
        width=row.width,
        height=row.height,
        degree=row.degree,
        batch=row.batch,
        seconds=row.seconds,
        cv=row.cv,
    )
