"""The parts of the engine one by one, with gloo and real processes: groups, meetings, switches, aborts,
hand-over, and steps by degree.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from bench.crew import Crew, Worker
from bench.engine.figures import Figure
from executor import attention
from executor.groups import Group, GroupAborted
from executor.image import ImageSpec
from executor.latents import State, pack, pack_latent, unpack
from executor.sharding import Shard

PROMPT = "a red house under a yellow sun"
Size = tuple[int, int]


def groups(crew: Crew, repeats: int) -> Iterator[Figure]:
    """What it costs to have a group, to meet, to switch and to abort."""
    part = "Groups (gloo)"
    for degree in (d for d in (2, 4, 8) if d <= len(crew)):
        slots = list(range(degree))
        made = max(crew.all(slots, _new_group, slots, repeats))
        yield Figure(part, f"a group made anew, {degree} members", 1000 * made, "ms")
        met = max(crew.all(slots, _meet_again, slots, repeats))
        yield Figure(part, f"a meeting of a known group, {degree} members", 1000 * met, "ms")
    switch = max(crew.all([0, 1], _switch))
    yield Figure(part, "attention pointed at another group", 1000 * switch, "ms")
    to_and_fro = max(crew.all([0, 1], _switch_degree, repeats))
    note = "meeting and attention, degree 1 to 2 and back, halved; a warm group"
    yield Figure(part, "a switch of degree", 1000 * to_and_fro, "ms", "", note)
    freed = crew.run({0: (_abort_while_blocked, ()), 1: (_come, ())})[0]
    yield Figure(
        part, "from an abort to the error of this member, blocked in a collective", 1000 * freed, "ms"
    )
    at = crew.run({0: (_abort_in_a_while, ()), 1: (_block, ())})
    what = "from an abort to the error of a peer that waits for this member"
    yield Figure(part, what, 1000 * (at[1] - at[0]), "ms")


def degrees(crew: Crew, model: str, sizes: Sequence[Size], repeats: int) -> Iterator[Figure]:
    """Steps by degree, the degrees in turn."""
    part = "Steps by degree (gloo)"
    wide = [d for d in (1, 2, 4) if d <= len(crew)]
    for size in sizes:
        seconds: dict[int, list[float]] = {degree: [] for degree in wide}
        for turn in range(repeats):
            for degree in wide:
                slots = list(range(degree))
                seconds[degree].append(crew.all(slots, _steps, model, size, slots, turn)[0])
        for degree in wide:
            value = statistics.median(seconds[degree])
            ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[degree], strict=True))
            note = "" if degree == 1 else f"{ratio:.2f} times as fast as degree 1, median of pairs"
            yield Figure(part, f"degree {degree}", 1000 * value, "ms", _name(size), note)


def hand_over(sides: Sequence[int], repeats: int) -> Iterator[Figure]:
    """What it costs to pack and unpack states and checkpoints of FLUX.1's size."""
    part = "Hand-over of states of FLUX.1's size (bf16)"
    for side in sides:
        state = _flux_state(side)
        packed, latent = pack(state), pack_latent(state)
        both = _median(lambda state=state: unpack(pack(state)), repeats)  # type: ignore[misc]
        alone = _median(lambda state=state: pack_latent(state), repeats)  # type: ignore[misc]
        size = _name((side, side))
        yield Figure(part, "pack and unpack", 1000 * both, "ms", size, f"{len(packed) / 2**20:.2f} MiB")
        yield Figure(part, "pack a checkpoint", 1000 * alone, "ms", size, f"{len(latent) / 2**20:.2f} MiB")


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _flux_state(side: int) -> State:
    tokens = (side // 16) ** 2
    condition = {
        "text": torch.randn(1, 512, 4096, dtype=torch.bfloat16),
        "pooled": torch.randn(1, 768, dtype=torch.bfloat16),
    }
    image = ImageSpec(PROMPT, side, side, steps=20, seed=0)
    return State(image, condition, torch.randn(1, tokens, 64, dtype=torch.bfloat16), step=0)


def _median(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _state(worker: Worker, model: str, size: Size) -> State:
    pipeline = worker.pipeline(model)
    image = ImageSpec(PROMPT, *size, steps=20, seed=0)
    return pipeline.start(image, pipeline.encode(image))


def _steps(worker: Worker, model: str, size: Size, slots: list[int], turn: int) -> float:
    pipeline, state = worker.pipeline(model), _state(worker, model, size)
    group = worker.group(1, slots, f"steps {size} {turn}")
    pipeline.step([state], group)
    return _median(lambda: pipeline.step([state], group), 3)


def _new_group(worker: Worker, slots: list[int], repeats: int) -> float:
    epochs = iter(range(100, 100 + repeats))
    return _median(lambda: worker.group(next(epochs), slots, "new"), repeats)


def _meet_again(worker: Worker, slots: list[int], repeats: int) -> float:
    worker.group(1, slots, "first")
    meetings = iter(range(20 * repeats))
    return _median(lambda: worker.group(1, slots, f"again {next(meetings)}"), 20 * repeats)


def _switch(worker: Worker) -> float:
    groups = worker.group(1, [worker.slot], "alone"), worker.group(1, [0, 1], "both")
    shards = [Shard(24, 256, group.degree, group.rank) for group in groups]

    def there_and_back() -> None:
        for group, shard in zip(groups, shards, strict=True):
            attention.use_group(group, shard, heads=4)

    return _median(there_and_back, 1000) / 2


def _switch_degree(worker: Worker, repeats: int) -> float:
    """From one group's attention to the other's, as an order of the other degree begins."""
    alone = Shard(24, 256, 1, 0)
    worker.group(1, [0, 1], "switch first")
    seconds = []
    for turn in range(20 * repeats):
        begin = time.perf_counter()
        both = worker.group(1, [0, 1], f"switch {turn}")
        attention.use_group(both, Shard(24, 256, 2, both.rank), heads=4)
        attention.use_group(worker.group(1, [worker.slot], "alone"), alone, heads=4)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) / 2


def _abort_while_blocked(worker: Worker) -> float:
    """Block in a collective to which the other member does not come; seconds from an abort to the error."""
    group = worker.group(1, [0, 1], "abort")
    aborted_at: list[float] = []

    def abort() -> None:
        aborted_at.append(time.monotonic())
        group.abort("measured")

    threading.Timer(0.5, abort).start()
    return _failed_at(group) - aborted_at[0]


def _abort_in_a_while(worker: Worker) -> float:
    """When this member, who does not come to the collective, has aborted the group of the one who waits."""
    group = worker.group(1, [0, 1], "abort by peer")
    time.sleep(0.5)
    group.abort("measured")
    return time.monotonic()


def _block(worker: Worker) -> float:
    return _failed_at(worker.group(1, [0, 1], "abort by peer"))


def _come(worker: Worker) -> None:
    worker.group(1, [0, 1], "abort")


def _failed_at(group: Group) -> float:
    """When a collective of the group has failed; the clock is the same for all processes."""
    try:
        with group.running():
            dist.all_gather_single(torch.empty(group.degree), torch.zeros(1), group=group.pg)
    except GroupAborted:
        return time.monotonic()
    raise AssertionError("the other member has come")
