"""`python -m executor profile`: measure a model's step times into a file."""

import os
import signal
import sys
from pathlib import Path

import click

from executor.config import ATTENTIONS, COMPILE_MODES, DTYPES, cache_folder, check_device, check_model
from executor.options import NumberList, SizeList
from tetriserve import logs

# Bytes/s each way and seconds a collective; docs/profiles.md tells what they were fitted to.
LINKS = {"nvlink": (300e9, 73e-6), "pcie": (10.5e9, 201e-6)}


class LinkSpeed(click.ParamType[tuple[str, float, float]]):
    """`nvlink`, `pcie`, `GB/s` or `GB/s:us`."""

    name = "nvlink|pcie|GB/s[:us]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float, float]:
        """Name, bytes/s and seconds a collective."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        if text in LINKS:
            return text, *LINKS[text]
        bandwidth, _, latency = text.partition(":")
        try:
            found = float(bandwidth) * 1e9, float(latency or 20) * 1e-6
        except ValueError:
            found = 0.0, 0.0
        if not (0 < found[0] < float("inf") and 0 <= found[1] < 1):
            self.fail(f"{text!r} is none of nvlink, pcie, GB/s (300) and GB/s:us (300:20)", param, ctx)
        return f"a link of {bandwidth} GB/s", *found


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    show_default="the built-in model",
    help="A checkpoint folder of diffusers (the one with model_index.json in it).",
)
@click.option("--device", default="cpu", help="Where to compute: cpu, or cuda:N; degrees take the next GPUs.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    show_default="bfloat16 on a GPU, float32 on a CPU",
    help="Precision of weights and latents.",
)
@click.option("--attention", type=click.Choice(ATTENTIONS), default="sdpa", help="Attention kernel.")
@click.option(
    "--compile",
    "compile_mode",
    metavar="[MODE]",
    type=click.Choice(COMPILE_MODES),
    is_flag=False,
    flag_value="default",
    show_default="off",
    help="Compile the transformer: default, reduce-overhead (CUDA graphs; on a CPU just as default) or "
    "max-autotune.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, help="CPU threads of each process.")
@click.option("--sizes", type=SizeList(), default="256x256,512x512", help="Picture sizes, in pixels.")
@click.option("--degrees", type=NumberList(), default="1", help="Degrees of sequence parallelism.")
@click.option("--batches", type=NumberList(), default="1", help="Pictures stepped together.")
@click.option(
    "--share",
    is_flag=True,
    help="Derive degrees above 1 from what one member computes alone, and --link; one device is enough.",
)
@click.option("--link", type=LinkSpeed(), default="nvlink", help="What joins the GPUs that --share imagines.")
@click.option("--warm-up", type=click.IntRange(min=1), default=2, help="Runs before each measurement.")
@click.option("--repeats", type=click.IntRange(min=2), default=10, help="Runs of each measurement.")
@click.option("--stages/--no-stages", default=True, help="Measure text encoding and decoding as well.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default="standard output",
    help="A CSV file; rewritten after each row.",
)
def profile(
    model: Path | None,
    device: str,
    dtype: str | None,
    attention: str,
    compile_mode: str | None,
    threads: int,
    sizes: list[tuple[int, int]],
    degrees: list[int],
    batches: list[int],
    share: bool,
    link: tuple[str, float, float],
    warm_up: int,
    repeats: int,
    stages: bool,
    output: Path | None,
) -> None:
    """Measure how long a model's steps, text encoding and decoding take, into a profile.

    Degrees above 1 are run by as many processes, which this command starts: on CPU with gloo, on CUDA
    one a GPU. With --share they are derived on one device instead, and are labelled so. Each row tells its
    source: model, device, libraries, date and the machine's load.

    \b
        python -m executor profile --sizes 256x256,512x512 --degrees 1,2 -o cpu.csv
        python -m executor profile --model FLUX.1-dev --device cuda:0 --degrees 1,2,4,8 --share -o h100.csv
        python -m bench simulate --profile cpu.csv --policy edf
        python -m scheduler --profile h100.csv
    """
    logs.setup("text", "warning")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_device(device)
        check_model(model)
        wide = [degree for degree in degrees if degree & (degree - 1)]
        if wide:
            raise ValueError(f"--degrees: powers of two are allowed, not {wide[0]}")
        if output is not None and not output.absolute().parent.is_dir():
            raise ValueError(f"--output: there is no folder {output.absolute().parent}")
        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        _run(
            (model, device, dtype, threads, attention, compile_mode),
            (sizes, degrees, batches, stages),
            (warm_up, repeats),
            link if share else None,
            output,
        )
    except KeyboardInterrupt:
        click.echo("stopped" + (f"; {output} has what was measured" if output else ""), err=True)
        sys.stdout.flush()
        os._exit(130)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _run(
    where: tuple[Path | None, str, str, int, str, str | None],
    what: tuple[list[tuple[int, int]], list[int], list[int], bool],
    effort: tuple[int, int],
    link: tuple[str, float, float] | None,
    output: Path | None,
) -> None:
    """Do it; torch takes seconds to import, so that is done only now."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from executor import quiet  # noqa: F401  (before diffusers)
    from executor.builtin import checkpoint
    from executor.profile_cache import Key
    from executor.profile_file import ProfileFile
    from executor.profiler import Effort, Link
    from executor.survey import Gone, Members, Setup, Skipped, survey, wishes

    model, device, dtype, threads, attention, compile_mode = where
    sizes, degrees, batches, stages = what
    warm_up, repeats = effort
    members = 1 if link else max(degrees)
    if device != "cpu":
        _check_gpus(device, members)
    wanted = list(wishes(sizes, degrees, batches, stages=stages))
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    skipped = 0
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading the model", total=len(wanted))
        folder = model or checkpoint(cache_folder())
        setup = Setup(folder, device, dtype, threads, attention, compile_mode)
        pipeline = setup.load()
        for width, height in sizes:
            pipeline.check_size(width, height)
        file = ProfileFile(output, folder.resolve().name if model else "the built-in model", Key.of(pipeline))
        try:
            with Members(setup, pipeline, members) as crew:
                rows = survey(
                    crew,
                    wanted,
                    Effort(0.0, warm_up, repeats, repeats),
                    Link(*link) if link else None,
                    lambda done, _, now: bar.update(task, completed=done, description=now),
                )
                for row in rows:
                    if isinstance(row, Skipped):
                        skipped += 1
                        title = f"{row.wish.title} at degree {row.wish.degree}"
                        console.print(f"not measured: {title}: {row.why}", highlight=False, soft_wrap=True)
                    else:
                        file.add(row)
                file.add_layer(pipeline.layers)
        except Gone as error:
            raise ValueError(str(error)) from None
    if output is None:
        click.echo(file.text(), nl=False)
    else:
        click.echo(f"{output}: {len(file)} rows" + (f", {skipped} not measured" if skipped else ""), err=True)
    sys.stdout.flush()
    # Python would take torch apart for seconds.
    os._exit(1 if skipped else 0)


def _check_gpus(device: str, members: int) -> None:
    import torch

    from executor import devices

    first, count = devices.find(device).index or 0, torch.cuda.device_count()
    if first + members > count:
        raise ValueError(
            f"--degrees: {members} need {members} GPUs from {device} on, and torch sees {count}; "
            "with --share one is enough"
        )
