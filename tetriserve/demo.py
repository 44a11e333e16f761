"""The whole system on this machine, end to end: `python -m tetriserve.demo`, or `make run`.

Starts a scheduler and an executor a core, asks for a mixed batch of images (batch.py) through the
Python client, shows how they come along, and leaves pictures, a timeline and results in out/.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tetriserve import show
from tetriserve.as_json import status_json
from tetriserve.batch import PICTURES, Wish, plan, warm_up
from tetriserve.client import AsyncClient, Client
from tetriserve.errors import RequestEnded, TetriServeError
from tetriserve.local import ChildDied, LocalCluster, NotReady
from tetriserve.quantities import show_duration
from tetriserve.sheet import draw_sheet
from tetriserve.timeline import courses, draw
from tetriserve.types import Stage, Verdict


async def serve(cluster: LocalCluster, wishes: Sequence[Wish], folder: Path, console: Console) -> None:
    """Ask for every wish when it is due, write the pictures, and show all of it."""

    async def serve_all() -> None:
        async with AsyncClient(cluster.target) as client:
            begin = time.monotonic()
            requests = await asyncio.gather(
                *(_serve_one(client, wish, folder, begin, console) for wish in wishes)
            )
            # Asked for now that all is quiet: the last reports of a group come after the picture.
            for wish, request in zip(wishes, requests, strict=True):
                wish.status = await client.get(request)

    batch, watchdog = asyncio.create_task(serve_all()), asyncio.create_task(_watch_children(cluster))
    try:
        with Live(get_renderable=lambda: _live_table(wishes), console=console, transient=True):
            await asyncio.wait({batch, watchdog}, return_when=asyncio.FIRST_COMPLETED)
        if watchdog.done():
            watchdog.result()
        batch.result()
    finally:
        for task in (batch, watchdog):
            task.cancel()
        await asyncio.gather(batch, watchdog, return_exceptions=True)


async def _serve_one(client: AsyncClient, wish: Wish, folder: Path, begin: float, console: Console) -> str:
    """See to one wish; returns the request's id."""
    await asyncio.sleep(max(0.0, begin + wish.arrival - time.monotonic()))
    request = await client.submit(
        wish.prompt, wish.size, steps=wish.steps, seed=wish.number, deadline=wish.deadline
    )
    async for event in client.watch(request.id):
        stage = wish.tracked.status.stage if wish.tracked else None
        if wish.tracked is None:
            wish.tracked = show.Tracked(event)
        wish.tracked.follow(event)
        if not console.is_terminal and event.status.stage is not stage:
            words = event.status.stage.value
            if event.status.ended:
                words += f", {show.deadline_text(event.status, None)}"
            console.print(f"{time.monotonic() - begin:6.1f}s  {wish.number:2d}  {words}")
    if wish.tracked and wish.tracked.status.stage is Stage.DONE:
        (folder / wish.file).write_bytes(await client.image(request.id))
    return request.id


async def _watch_children(cluster: LocalCluster) -> None:
    while True:
        cluster.check()
        await asyncio.sleep(0.5)


def _live_table(wishes: Sequence[Wish]) -> Table:
    table = show.plain_table(
        "#", "size", "stage", "steps", "", "degree", "deadline", "prompt", numbers=("#",)
    )
    for wish in wishes:
        tracked, size = wish.tracked, f"{wish.size[0]}x{wish.size[1]}"
        done = tracked.status.steps_done if tracked else 0
        table.add_row(
            str(wish.number),
            size,
            show.stage_text(tracked.status) if tracked else Text("to come", "dim"),
            ProgressBar(wish.steps, done, width=20),
            f"{done}/{wish.steps}",
            str(tracked.status.degree)
            if tracked and tracked.status.degree and not tracked.status.ended
            else "",
            tracked.deadline_text() if tracked else Text(show_duration(wish.deadline), "dim"),
            show.one_line(wish.prompt),
        )
    return table


def final_table(wishes: Sequence[Wish]) -> Table:
    """One row a request, once all have ended."""
    table = show.plain_table(
        "#", "size", "steps", "degrees", "latency", "deadline", "on time", "GPU-seconds", "prompt",
        numbers=("#", "steps", "latency", "deadline", "GPU-seconds"),
    )  # fmt: skip
    for wish in wishes:
        if (status := wish.status) is None:
            continue
        on_time = status.verdict is Verdict.ON_TIME
        words = "yes" if on_time else "late" if status.stage is Stage.DONE else status.stage.value
        table.add_row(
            str(wish.number),
            f"{wish.size[0]}x{wish.size[1]}",
            str(wish.steps),
            ">".join(map(str, status.degrees)),
            show_duration(status.latency or 0.0),
            show_duration(wish.deadline),
            Text(words, "green" if on_time else "red"),
            f"{status.gpu_seconds:.1f}",
            show.one_line(wish.prompt),
        )
    return table


def report(
    wishes: Sequence[Wish], cluster: LocalCluster, folder: Path, batch_seconds: float, console: Console
) -> None:
    """Print the table and the sums; write results.json, timeline.png and a sheet of the pictures."""
    statuses = [wish.status for wish in wishes if wish.status]
    on_time = sum(status.verdict is Verdict.ON_TIME for status in statuses)
    gpu_seconds = sum(status.gpu_seconds for status in statuses)
    results = {
        "policy": cluster.policy,
        "executors": cluster.executors,
        "requests": len(statuses),
        "on_time": on_time,
        "sar": on_time / len(statuses),
        "gpu_seconds": gpu_seconds,
        "batch_s": batch_seconds,
        "images": [
            {"file": wish.file if wish.status.stage is Stage.DONE else None}
            | status_json(wish.status, spans=True)
            for wish in wishes
            if wish.status
        ],
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    summary = (
        f"SAR {on_time / len(statuses):.2f} ({on_time} of {len(statuses)} on time),"
        f" {gpu_seconds:.1f} GPU-seconds, {batch_seconds:.1f} s on {cluster.executors} executors,"
        f" policy {cluster.policy}"
    )
    draw(courses(statuses), folder / "timeline.png", gpus=cluster.executors, title=summary)
    console.print(final_table(wishes))
    console.print(f"\n{summary}")
    made = [wish for wish in wishes if wish.status and wish.status.stage is Stage.DONE]
    if made:
        draw_sheet([(folder / wish.file, wish.prompt) for wish in made], folder / "sheet.jpg")
    console.print(
        f"Pictures, sheet.jpg with all of them, timeline.png, results.json and logs/ are in {folder}/"
    )


def run(cluster: LocalCluster, count: int, seed: int, folder: Path, console: Console) -> bool:
    """The whole demo; says whether every image was made."""
    began = time.monotonic()
    console.print(
        f"Starting a scheduler ({cluster.policy}) and {cluster.executors} executors ({cluster.device})"
    )
    with cluster:
        _wait_ready(cluster, console)
        console.print(f"Ready after {time.monotonic() - began:.1f} s; warming up")
        with Client(cluster.target) as client:
            slowness = warm_up(client, cluster.executors)
            if slowness > 1.2:
                console.print(f"Steps take {slowness:.1f} times what was measured: the machine is busy")
            wishes = plan(client, count, cluster.executors, seed, slowness)
        console.print(f"Asking for {count} images\n")
        batch_began = time.monotonic()
        asyncio.run(serve(cluster, wishes, folder, console))
        report(wishes, cluster, folder, time.monotonic() - batch_began, console)
    console.print(f"Stopped everything; {time.monotonic() - began:.1f} s in all")
    return all(wish.status and wish.status.stage is Stage.DONE for wish in wishes)


def _wait_ready(cluster: LocalCluster, console: Console) -> None:
    said = ""

    def progress(words: str) -> None:
        nonlocal said
        if not words:
            return
        if words != said and not console.is_terminal:
            console.print(words)
        said = words
        spinner.update(f"{words} ({time.monotonic() - began:.0f} s)")

    began = time.monotonic()
    with console.status("starting") as spinner:
        cluster.wait_ready(progress=progress)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    signal.raise_signal(signal.SIGINT)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True)
@click.option("--executors", type=click.IntRange(1), help="How many. [default: one a core, 2 to 4]")
@click.option("--requests", type=click.IntRange(1), default=len(PICTURES), show_default=True)
@click.option("--policy", default="cp-sat", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda for one GPU an executor.")
@click.option("--model", type=click.Path(exists=True, file_okay=False), help="[default: the built-in one]")
@click.option("--seed", default=57, show_default=True, help="Of arrivals and deadlines.")
def main(
    out: Path, executors: int | None, requests: int, policy: str, device: str, model: str | None, seed: int
) -> None:
    """Serve a batch of images on this machine and show how it goes.

    Pictures, a sheet of them, timeline.png, results.json and the logs go to --out. Exit status: 0 when
    every image was made, late or not.
    """
    console = show.console()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_interrupt)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"{out}: {error.strerror}", param_hint="--out") from None
    options = ["--model", model] if model else []
    cluster = LocalCluster(
        out, executors=executors or min(4, max(2, _cores())), policy=policy, device=device, options=options
    )
    try:
        complete = run(cluster, requests, seed, out, console)
    except KeyboardInterrupt:
        console.print("Interrupted; stopped everything")
        sys.exit(130)
    except (ChildDied, NotReady, TetriServeError, RequestEnded) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
