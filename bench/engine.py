"""What the execution engine costs on this machine, with gloo and real processes.

    python -m bench.engine [--model FOLDER] [--size 256x256 ...] [--workers 4]

prints, as Markdown: the CPU time of a step at degree 1 in the engine against diffusers' own loop, taken
in turn; the time of a step by degree; and the cost of groups, meetings, switches, hand-over and failure.
The latter mean little on a machine that does something else at the same time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from bench.crew import Crew, Worker
from executor import attention
from executor.groups import Group, GroupAborted
from executor.image import ImageSpec
from executor.latents import State, pack, pack_latent, unpack
from executor.sharding import Shard

PROMPT = "a red house under a yellow sun"
Size = tuple[int, int]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a diffusers checkpoint folder; without it a small random model")
    parser.add_argument("--size", nargs="+", default=["256x256", "512x512"], metavar="WxH", help="in pixels")
    parser.add_argument("--workers", type=int, default=4, help="processes (default 4)")
    parser.add_argument("--repeats", type=int, default=9, help="of each measurement (default 9)")
    args = parser.parse_args()
    sizes = [(int(w), int(h)) for w, h in (size.split("x") for size in args.size)]
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or _random_model(folder)
        crew = Crew(args.workers)
        try:
            _report(crew, model, sizes, args.repeats)
        finally:
            crew.close()


def _random_model(folder: str) -> str:
    from model.layout import write_checkpoint

    return str(write_checkpoint(folder))


def _report(crew: Crew, model: str, sizes: Sequence[Size], repeats: int) -> None:
    degrees = [d for d in (1, 2, 4, 8) if d <= len(crew)]
    print(
        "| milliseconds per step | diffusers, CPU | engine, CPU |"
        + "".join(f" degree {d} |" for d in degrees)
    )
    print("|---|---|---|" + "---|" * len(degrees))
    for size in sizes:
        columns = [*crew.all([0], _bare_and_ours, model, size, repeats)[0]]
        for degree in degrees:
            slots = list(range(degree))
            columns.append(crew.all(slots, _steps, model, size, slots, repeats)[0])
        print(f"| {size[0]}x{size[1]} | " + " | ".join(f"{1000 * c:.1f}" for c in columns) + " |")
    print("\n| what | milliseconds |\n|---|---|")
    for what, job in (("a group made anew", _new_group), ("a meeting of a known group", _meet_again)):
        for degree in degrees[1:]:
            slots = list(range(degree))
            seconds = max(crew.all(slots, job, slots, repeats))
            print(f"| {what}, {degree} members | {1000 * seconds:.2f} |")
    if len(crew) > 1:
        switch = max(crew.all([0, 1], _switch))
        print(f"| a switch of attention to another group | {1000 * switch:.4f} |")
        freed = crew.run({0: (_abort_while_blocked, ()), 1: (_come, ())})[0]
        print(f"| from an abort to the error of this member, blocked in a collective | {1000 * freed:.1f} |")
        at = crew.run({0: (_abort_in_a_while, ()), 1: (_block, ())})
        freed = at[1] - at[0]
        print(f"| from an abort to the error of a peer that waits for this member | {1000 * freed:.1f} |")
    for size in sizes:
        hand_over, checkpoint, nbytes = crew.all([0], _hand_over, model, size, repeats)[0]
        name = f"{size[0]}x{size[1]}"
        print(f"| pack and unpack a state, {name} ({nbytes / 1e6:.2f} MB) | {1000 * hand_over:.2f} |")
        print(f"| pack a checkpoint, {name} | {1000 * checkpoint:.2f} |")


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


def _steps(worker: Worker, model: str, size: Size, slots: list[int], repeats: int) -> float:
    pipeline, state = worker.pipeline(model), _state(worker, model, size)
    group = worker.group(1, slots, f"steps {size}")
    pipeline.step([state], group)
    return _median(lambda: pipeline.step([state], group), repeats)


def _bare_and_ours(worker: Worker, model: str, size: Size, repeats: int) -> tuple[float, float]:
    """Seconds per step of diffusers' own pipeline and of the engine at degree 1, in turn.

    On one thread, of CPU time: neighbours on the same cores do not show in it.
    """
    from diffusers import FluxPipeline

    stock = FluxPipeline.from_pretrained(model)
    stock.set_progress_bar_config(disable=True)
    pipeline, state = worker.pipeline(model), _state(worker, model, size)
    group = worker.group(1, [0], "alone")
    times: list[float] = []

    def note(*_: object) -> dict[str, object]:
        times.append(time.thread_time())
        return {}

    bare, ours = [], []
    for _ in range(repeats):
        times.clear()
        stock(
            width=size[0],
            height=size[1],
            num_inference_steps=4,
            prompt_embeds=state.condition["text"],
            pooled_prompt_embeds=state.condition["pooled"],
            latents=state.latent,
            output_type="latent",
            callback_on_step_end=note,
        )
        bare += [b - a for a, b in itertools.pairwise(times)]
        now, times = state, []
        for _ in range(4):
            (now,) = pipeline.step([now], group)
            note()
        ours += [b - a for a, b in itertools.pairwise(times)]
    return statistics.median(bare), statistics.median(ours)


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
            dist.all_reduce(torch.zeros(1), group=group.pg)
    except GroupAborted:
        return time.monotonic()
    raise AssertionError("the other member has come")


def _hand_over(worker: Worker, model: str, size: Size, repeats: int) -> tuple[float, float, int]:
    state = _state(worker, model, size)
    hand_over = _median(lambda: unpack(pack(state)), repeats)
    return hand_over, _median(lambda: pack_latent(state), repeats), len(pack(state))


if __name__ == "__main__":
    main()
