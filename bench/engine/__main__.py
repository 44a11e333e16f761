"""`python -m bench.engine`: what the engine costs on this machine."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from executor import quiet  # noqa: F401  (before diffusers)
from executor.config import check_device
from executor.options import NumberList, SizeList

if TYPE_CHECKING:
    from bench.crew import Crew
    from bench.engine.figures import Figure

PARTS = ("overhead", "gaps", "groups", "degrees", "hand-over", "models", "one-rank")
ON_CPU = ("overhead", "gaps", "groups", "degrees", "hand-over")
ON_GPU = ("one-rank", "models", "overhead", "hand-over")


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--device", default="cpu", help="cpu, or cuda:0 for the figures of one GPU.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    show_default=f"on CPU {', '.join(ON_CPU)}; on a GPU {', '.join(ON_GPU)}",
    help="What to measure; several times.",
)
@click.option(
    "--sizes",
    type=SizeList(),
    show_default="256x256,512x512,1024x1024, on a GPU 2048x2048, too",
    help="Picture sizes, in pixels.",
)
@click.option(
    "--models",
    default="flux1-dev,sd3-medium",
    help="Random models of --part models, and the first one of overhead on a GPU; tiny to try it out.",
)
@click.option("--batches", type=NumberList(), default="1,2,4", help="Stepped together, of the models.")
@click.option("--degrees", type=NumberList(), default="1,2,4,8", help="Degrees of the models, by shares.")
@click.option("--repeats", type=click.IntRange(min=1), default=9, help="Of most measurements.")
@click.option("--requests", type=click.IntRange(min=1), default=6, help="Of each size, in the service.")
@click.option("--steps", type=click.IntRange(min=2), default=20, help="Of each request.")
@click.option("--workers", type=click.IntRange(min=2), default=4, help="Processes for groups and degrees.")
@click.option("--name", help="Of the files.", show_default="engine, on a GPU engine-gpu")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent.parent / "results",
    show_default="bench/results",
    help="Folder of NAME.json and NAME.md.",
)
def main(
    device: str,
    parts: tuple[str, ...],
    sizes: list[tuple[int, int]] | None,
    models: str,
    batches: list[int],
    degrees: list[int],
    repeats: int,
    requests: int,
    steps: int,
    workers: int,
    name: str | None,
    out: Path,
) -> None:
    """Measure what the engine costs on this machine, and write it as JSON and Markdown.

    Ratios are of pairs that were run in turn, so that a busy machine harms them little; absolute times need a
    quiet one. The files have the machine's load.

    \b
        python -m bench.engine                            # CPU: some minutes
        python -m bench.engine --device cuda:0            # one GPU with 80 GB: less than ten minutes
        python -m bench.engine --part models --models tiny --sizes 128x128 --degrees 1,2   # to try it
    """
    from bench.engine import figures
    from executor import devices

    try:
        check_device(device)
        devices.find(device)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    on_gpu = device != "cpu"
    sides = [256, 512, 1024, *([2048] if on_gpu else [])]
    sizes = sizes or [(side, side) for side in sides]
    begun = figures.provenance(device)
    found: list[Figure] = []
    try:
        for part in parts or (ON_GPU if on_gpu else ON_CPU):
            click.echo(f"{part}:", err=True)
            with tempfile.TemporaryDirectory() as scratch:
                for figure in _measure(
                    part,
                    Path(scratch),
                    device,
                    sizes,
                    models.split(","),
                    (batches, degrees),
                    (repeats, requests, steps, workers),
                    out,
                ):
                    found.append(figure)
                    click.echo(f"  {figure.what} {figure.size}: {figure.value:.5g} {figure.unit}", err=True)
    finally:
        # What has been measured is kept, also where a later part fails.
        written = (
            figures.save(out, name or ("engine-gpu" if on_gpu else "engine"), found, begun) if found else []
        )
    for path in written:
        click.echo(path)


def _measure(
    part: str,
    scratch: Path,
    device: str,
    sizes: list[tuple[int, int]],
    models: list[str],
    shapes: tuple[list[int], list[int]],
    efforts: tuple[int, int, int, int],
    out: Path,
) -> "Iterator[Figure]":
    from bench.engine import gpu, hand_over, in_service, mechanics

    repeats, requests, steps, workers = efforts
    # One size is enough to plan with; measuring more would take longer than what is asked for.
    words = ["--cache-dir", str(scratch / "cache"), "--sizes", "{}x{}".format(*min(sizes)), "--batches", "1"]
    match part:
        case "overhead":
            random = models[0] if device != "cpu" else ""
            yield from in_service.overhead(scratch, sizes, requests, steps, device, words, random)
        case "gaps":
            # With one, a core of two is left for all that is not computing; with two, none is.
            for executors in (1, 2):
                yield from in_service.gaps(scratch, sizes, requests * len(sizes), steps, executors, words)
        case "groups" | "degrees":
            with _crew(workers) as crew:
                if part == "groups":
                    yield from mechanics.groups(crew, repeats)
                else:
                    from executor.builtin import checkpoint

                    yield from mechanics.degrees(crew, str(checkpoint(scratch)), sizes, repeats)
        case "hand-over":
            sides = sorted({max(size) for size in sizes} | {2048})
            yield from mechanics.hand_over(sides, repeats)
            with _crew(2) as crew:
                yield from hand_over.newcomers(crew, sides, repeats)
        case "models":
            batches, degrees = shapes
            out.mkdir(parents=True, exist_ok=True)
            for name in models:
                yield from gpu.model(name, device, sizes, batches, degrees, out, _quietly)
        case "one-rank":
            yield from gpu.one_rank(device)


@contextlib.contextmanager
def _crew(workers: int) -> "Iterator[Crew]":
    from bench.crew import Crew

    crew = Crew(workers)
    try:
        yield crew
    finally:
        crew.close()


def _quietly(_done: int, _all: int, _what: str) -> None:
    """Each figure is told as it comes; that is progress enough."""


if __name__ == "__main__":
    main(prog_name="python -m bench.engine")
