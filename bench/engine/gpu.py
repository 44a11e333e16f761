"""One GPU: models of FLUX.1-dev's and SD3-medium's size with random weights, and one-rank NCCL groups.

Steps at every size and batch at degree 1, one member's share of wider degrees (with what a link would add),
encoding, decoding, peak memory. For one H100 or H200, in less than ten minutes; `tiny` tries it on CPU.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from bench.engine.figures import Figure
from bench.engine.random_models import build
from executor.groups import Groups
from executor.profile_cache import Key
from executor.profile_command import LINKS
from executor.profile_file import ProfileFile
from executor.profiler import Effort, Link, Measurement
from executor.survey import Members, Setup, Skipped, survey, wishes

EFFORT = Effort(budget_s=0.5, warm_up=1, fewest=3, most=10)
Size = tuple[int, int]
Tell = Callable[[int, int, str], None]


def model(
    name: str,
    device: str,
    sizes: Sequence[Size],
    batches: Sequence[int],
    degrees: Sequence[int],
    folder: Path,
    tell: Tell,
) -> Iterator[Figure]:
    """Figures of one model; its profile goes to a file in `folder`, which the simulator reads."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    begin = time.perf_counter()
    pipeline = build(name, device, dtype)
    yield Figure(name, "made on the device", time.perf_counter() - begin, "s")
    if device != "cpu":
        yield Figure(name, "memory of weights", torch.cuda.memory_allocated() / 2**30, "GiB")
    file = ProfileFile(folder / f"{name}.csv", f"random weights in the size of {name}", Key.of(pipeline))
    setup = Setup(Path(name), device, str(dtype).removeprefix("torch."))
    with Members(setup, pipeline) as members:
        link = Link("nvlink", *LINKS["nvlink"])
        for row in survey(members, list(wishes(sizes, degrees, batches)), EFFORT, link, tell):
            if isinstance(row, Skipped):
                wish = row.wish
                size = f"{wish.width}x{wish.height}"
                what = f"{wish.title} at degree {wish.degree}, not measured"
                yield Figure(name, what, float("nan"), "", size, row.why)
            else:
                file.add(row)
                yield from _row(name, row)
    del pipeline, members
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _row(name: str, row: Measurement) -> Iterator[Figure]:
    what = {"step": f"step, degree {row.degree}, batch {row.batch}"}.get(row.kind, row.kind)
    memory = f", peak {row.peak_bytes / 2**30:.1f} GiB" if row.peak_bytes else ""
    note = f"cv {row.cv:.3f}, {row.repeats} runs{memory}"
    size = f"{row.width}x{row.height}" if row.width else ""
    yield Figure(
        name, what, 1000 * row.seconds, "ms", size, f"{note}; {row.derivation}" if row.derivation else note
    )


def one_rank(device: str) -> Iterator[Figure]:
    """What a communicator costs: made, used the first time, used again, aborted."""
    backend = "gloo" if device == "cpu" else "NCCL"
    part = f"A group of one rank ({backend})"
    groups = Groups(device)
    world = groups._world
    used = 0 if device == "cpu" else torch.cuda.mem_get_info()[0]
    try:
        for number in itertools.count(1):
            begin = time.perf_counter()
            link = world.create(f"one/{number}", dist.HashStore(), 0, 1, ())
            made = time.perf_counter() - begin
            first, again = _exchange(link.pg, device), _exchange(link.pg, device)
            if number <= 2:
                which = "first" if number == 1 else "second"
                yield Figure(part, f"the {which} group is made in", 1000 * made, "ms")
                yield Figure(part, f"the {which} group's first all-to-all", 1000 * first, "ms")
                yield Figure(part, f"the {which} group's next all-to-all", 1000 * again, "ms")
                if device != "cpu":
                    held = (used - torch.cuda.mem_get_info()[0]) / 2**20
                    yield Figure(part, f"memory of {number} group(s)", held, "MiB")
            begin = time.perf_counter()
            link.cut()
            link.close()
            if number == 2:
                yield Figure(part, "abort and close", 1000 * (time.perf_counter() - begin), "ms")
                return
    finally:
        with contextlib.suppress(Exception):
            groups.close()


def _exchange(pg: dist.ProcessGroup, device: str) -> float:
    sent = torch.zeros(1024, device=device)
    begin = time.perf_counter()
    dist.all_to_all_single(torch.empty_like(sent), sent, group=pg)
    if sent.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
