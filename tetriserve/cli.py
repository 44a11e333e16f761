"""The command line: `tetriserve submit "a red house under a yellow sun" -o house.png`."""

import errno
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from tetriserve import show
from tetriserve.as_json import cluster_json, event_json, policy_json, quote_json, status_json
from tetriserve.client import DEFAULT_TARGET, TARGET_VARIABLE, Client
from tetriserve.entry import INTERRUPTED
from tetriserve.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    RequestEnded,
    TetriServeError,
    Unavailable,
)
from tetriserve.files import replacing
from tetriserve.options import Output, Picture
from tetriserve.timeline import courses, draw
from tetriserve.types import Event, OnLate, RequestStatus, Stage

ENDED_WITHOUT_IMAGE, BAD_ARGUMENT, NOT_FOUND, UNREACHABLE, REFUSED = 1, 2, 3, 4, 5

# A first call fails soon; who waits for an image sits out a scheduler's restart.
_PATIENCE, _PATIENCE_WAITING = 2.0, 60.0

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = """\b
Exit status:
  0    done; an image that is late is done too, --json tells
  1    the request failed, was cancelled or was dropped: there is no image
  2    a bad argument
  3    no such request
  4    the scheduler cannot be reached, or cannot work yet
  5    the scheduler refuses, e.g. a full queue or an image that is not ready
  130  interrupted; a request that was waited for goes on
"""


class Failure(click.ClickException):
    """An error in one line, with the exit status that the help lists."""

    def __init__(self, error: TetriServeError) -> None:
        super().__init__(show.printable(str(error)))
        self.error = error

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        match self.error:
            case RequestEnded():
                return ENDED_WITHOUT_IMAGE
            case InvalidArgument():
                return BAD_ARGUMENT
            case NotFound():
                return NOT_FOUND
            case Unavailable() | DeadlineExceeded():
                return UNREACHABLE
        return REFUSED


class Commands(click.Group):
    """Commands whose errors are one line, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TetriServeError as error:
            raise Failure(error) from error
        except UnicodeEncodeError as error:
            raise click.UsageError(f"{error.object!r:.80} is not valid text.") from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader has seen enough; click leaves quietly
            raise click.ClickException(f"cannot write: {error}") from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def common(command: F) -> F:
    """The options that every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs to read.")(
        command
    )
    return click.option(
        "--scheduler",
        metavar="HOST:PORT",
        envvar=TARGET_VARIABLE,
        default=DEFAULT_TARGET,
        show_default=True,
        show_envvar=True,
        help="Where the scheduler listens.",
    )(command)


image_size = click.option("--size", default="512x512", show_default=True, help="WIDTHxHEIGHT in pixels.")
image_steps = click.option("--steps", type=int, help="Denoising steps. [default: the model's]")
image_previews = click.option(
    "--previews",
    type=click.IntRange(min=0),
    default=0,
    metavar="K",
    help="Write a small, rough preview after every K steps beside the output, NAME-STEP.jpg. [default: none]",
)
output_png = click.option(
    "-o",
    "--output",
    type=Output(allow_dash=True),
    help="Write the PNG here; - is standard output.",
)


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tetriserve")
def main() -> None:
    """Ask a TetriServe scheduler for images, each with a deadline."""


@main.command()
@click.argument("prompt")
@image_size
@image_steps
@click.option("--seed", type=int, help="Same seed, same picture. [default: random, or from --id]")
@click.option("--guidance", type=float, help="How closely to follow the prompt. [default: the model's]")
@click.option(
    "--lora", metavar="NAME[:SCALE]", help="A LoRA adapter that the executors have. [default: none]"
)
@click.option("--negative-prompt", default="", help="What not to draw; a model that takes none warns.")
@click.option("--deadline", help="From now to the finished image, e.g. 8s or 1.5m. [default: best effort]")
@click.option("--weight", type=float, default=1.0, show_default=True, help="Worth of meeting the deadline.")
@click.option(
    "--on-late",
    type=click.Choice([choice.value for choice in OnLate]),
    default=OnLate.DEFAULT.value,
    show_default=True,
    help="When the deadline cannot be met: run on, or drop it; default is the scheduler's choice.",
)
@click.option(
    "--unpromised",
    is_flag=True,
    help="Where deadlines are promised: be content without, if this one cannot be.",
)
@click.option("--id", help="An id of your own: submitting it again is harmless. [default: random]")
@click.option("--wait/--no-wait", default=True, help="Wait for the image, or print the id and leave.")
@output_png
@image_previews
@common
def submit(
    prompt: str,
    wait: bool,
    output: str | None,
    previews: int,
    scheduler: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask for an image of PROMPT and wait for it."""
    if output and not wait:
        raise click.UsageError("--no-wait leaves before there is an image for --output.")
    if previews and not wait:
        raise click.UsageError("--no-wait leaves before there are --previews.")
    with Client(scheduler, patience=_PATIENCE) as client:
        status = client.submit(prompt, **options)
    if wait:
        _see_to_the_end(status.id, output, scheduler, as_json, previews)
    else:
        _print(status_json(status) if as_json else status.id)


@main.command()
@click.argument("id")
@output_png
@image_previews
@common
def watch(id: str, output: str | None, previews: int, scheduler: str, as_json: bool) -> None:
    """Follow request ID until it ends. With --json: one event a line, previews in base64."""
    if not as_json:
        _see_to_the_end(id, output, scheduler, False, previews)
        return
    with Client(scheduler, patience=_PATIENCE) as client:
        client.get(id)
    with Client(scheduler, patience=_PATIENCE_WAITING) as client:
        for event in client.watch(id, previews=previews):
            _print(event_json(event), lines=True)
        if output:
            _write(output, client.image(id))


@main.command()
@click.argument("id")
@output_png
@common
def get(id: str, output: str | None, scheduler: str, as_json: bool) -> None:
    """Show request ID, or write its image with --output."""
    with Client(scheduler, patience=_PATIENCE) as client:
        status = client.get(id)
        if output:
            _write(output, client.image(id))
    if as_json and output != "-":
        _print(status_json(status, spans=True))
    elif not output:
        show.console().print(show.request_details(status))


@main.command("list")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice([stage.value for stage in Stage if stage is not Stage.UNKNOWN]),
    help="Only requests in this stage; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@common
def list_(stages: tuple[str, ...], limit: int, scheduler: str, as_json: bool) -> None:
    """List requests, newest first."""
    with Client(scheduler, patience=_PATIENCE) as client:
        statuses = list(client.list(*stages, limit=limit))
    if as_json:
        _print([status_json(status) for status in statuses])
    else:
        show.console().print(show.request_table(statuses) if statuses else "no requests")


@main.command()
@click.argument("id")
@common
def cancel(id: str, scheduler: str, as_json: bool) -> None:
    """End request ID.

    It ends at its next step; one that has ended stays as it is.
    """
    with Client(scheduler, patience=_PATIENCE) as client:
        status = client.cancel(id)
    _print(status_json(status) if as_json else f"{status.id}: {status.stage}")


@main.command()
@common
def cluster(scheduler: str, as_json: bool) -> None:
    """Show the executors and what each runs.

    And the policy, the model and how full the queue is.
    """
    with Client(scheduler, patience=_PATIENCE) as client:
        answer = client.cluster()
    if as_json:
        _print(cluster_json(answer))
    else:
        show.console().print(show.cluster_view(answer, scheduler))


@main.command()
@image_size
@image_steps
@common
def quote(size: str, steps: int | None, scheduler: str, as_json: bool) -> None:
    """Say when an image could be done."""
    with Client(scheduler, patience=_PATIENCE) as client:
        answer = client.quote(size, steps=steps)
    if as_json:
        _print(quote_json(answer))
    else:
        _print(
            f"earliest deadline {answer.earliest:.2f}s, on an idle cluster {answer.alone:.2f}s,"
            f" {answer.gpu_seconds:.2f} GPU-seconds"
        )


@main.command()
@click.argument("change", nargs=-1, metavar="[set NAME]")
@common
def policy(change: tuple[str, ...], scheduler: str, as_json: bool) -> None:
    """Show the policy in force, or change it.

    `tetriserve policy set edf` plans by another one from the next round on.
    """
    if change and (len(change) != 2 or change[0] != "set"):
        raise click.UsageError("Say `policy` to see it or `policy set NAME` to change it.")
    with Client(scheduler, patience=_PATIENCE) as client:
        if change:
            client.set_policy(change[1])
        answer = client.cluster()
    if as_json:
        _print(policy_json(answer))
    else:
        _print(f"{answer.policy} (there are: {', '.join(answer.policies)})")


@main.command()
@click.option(
    "-o",
    "--output",
    type=Picture(),
    help="A PNG, PDF or SVG file, by its ending. [default: timeline.png, or none with --json]",
)
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="Requests to draw.")
@common
def timeline(output: str | None, last: int, scheduler: str, as_json: bool) -> None:
    """Draw which request ran on which GPUs, and when."""
    with Client(scheduler, patience=_PATIENCE) as client:
        statuses = [client.get(status.id) for status in client.list(limit=last)]
        gpus = 1 + max((executor.slot for executor in client.cluster().executors), default=0)
    if as_json:
        _print([status_json(status, spans=True) for status in statuses])
    if output or not as_json:
        path = output or "timeline.png"
        try:
            used = [slot for status in statuses for span in status.spans for slot in span.slots]
            with replacing(path) as draft:
                draw(courses(statuses), draft, gpus=max([gpus, *(slot + 1 for slot in used)]))
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        _say(f"wrote {path}")


def _see_to_the_end(id: str, output: str | None, scheduler: str, as_json: bool, previews: int = 0) -> None:
    """Follow a request, write its image, and say how it ended."""
    try:
        with Client(scheduler, patience=_PATIENCE) as client:
            client.get(id)
        with Client(scheduler, patience=_PATIENCE_WAITING) as client:
            events = _save_previews(client.watch(id, previews=previews), id, output)
            show.follow(events, show.console(stderr=True))
            status = client.get(id)
            image = client.image(id) if output and status.stage is Stage.DONE else b""
    except KeyboardInterrupt:
        again = f"tetriserve watch {id}" + (f" -o {output}" if output else "")
        _say(f"\nThe request goes on. Watch it: {again}\nEnd it: tetriserve cancel {id}")
        raise
    if image and output:
        _write(output, image)
    if as_json and output != "-":
        _print(status_json(status, spans=True))
    if status.stage is not Stage.DONE:
        raise RequestEnded(status)
    for warning in status.warnings:
        _say(f"warning: {show.printable(warning)}")
    if not as_json:
        _report(status, output)


def _save_previews(events: Iterable[Event], id: str, output: str | None) -> Iterator[Event]:
    folder, name = Path(), id
    if output and output != "-":
        folder, name = Path(output).parent, Path(output).stem
    for event in events:
        if event.preview:
            with replacing(folder / f"{name}-{event.preview.step}.jpg") as draft:
                draft.write_bytes(event.preview.jpeg)
        yield event


def _report(status: RequestStatus, output: str | None) -> None:
    line = f"{output or status.id}: {show.outcome(status)}"
    if output == "-":
        _say(line)
        return
    _print(line)
    if not output:
        _say(f"Get the image: tetriserve get {status.id} -o FILE.png")


def _write(output: str, image: bytes) -> None:
    if output == "-":
        sys.stdout.buffer.write(image)
        sys.stdout.buffer.flush()
    else:
        with replacing(output) as draft:
            draft.write_bytes(image)


def _print(answer: object, *, lines: bool = False) -> None:
    """To standard output: text as it is, anything else as JSON."""
    if not isinstance(answer, str):
        answer = json.dumps(answer, indent=None if lines else 2)
    click.echo(answer)


def _say(words: str) -> None:
    click.echo(words, err=True)
