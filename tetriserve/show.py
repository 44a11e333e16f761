"""How requests and the cluster look, in a terminal or a pipe, for the command line and the demo."""

import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from tetriserve.quantities import show_duration
from tetriserve.types import Cluster, Event, RequestStatus, Stage, Verdict

_ROLES = (Stage.ENCODING, Stage.DENOISING, Stage.DECODING)
_GIVING_WAY = ("prompt", "device")  # columns, where a terminal is narrow
_VERDICT_STYLES = {Verdict.ON_TIME: "green", Verdict.LATE: "red", Verdict.OPEN: ""}
_STAGE_STYLES = {Stage.DONE: "green", Stage.FAILED: "red", Stage.CANCELLED: "yellow", Stage.DROPPED: "yellow"}


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is; in a pipe it is wide, so that nothing is cut, and plain."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False, width=width)


def printable(text: str) -> str:
    """Somebody's words without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def plain_table(*headings: str, numbers: Iterable[str] = ()) -> Table:
    """A table without lines; the columns in `numbers` are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in numbers else "left",
            no_wrap=heading not in _GIVING_WAY,
            overflow="ellipsis",
        )
    return table


def one_line(text: str) -> Text:
    """Somebody's words for a column that gives way: cut where there is no room, not wrapped."""
    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def request_table(statuses: Iterable[RequestStatus]) -> Table:
    """One row a request."""
    table = plain_table(
        "id",
        "stage",
        "size",
        "steps",
        "degree",
        "deadline",
        "latency",
        "prompt",
        numbers=("steps", "latency"),
    )
    now = datetime.now(UTC)
    for status in statuses:
        image = status.request.image
        left = (status.deadline_at - now).total_seconds() if status.deadline_at else None
        table.add_row(
            status.id,
            stage_text(status),
            f"{image.width}x{image.height}",
            f"{status.steps_done}/{image.steps}",
            str(status.degree) if status.degree else "",
            deadline_text(status, left),
            show_duration(status.latency) if status.latency is not None else "",
            one_line(image.prompt),
        )
    return table


def request_details(status: RequestStatus) -> RenderableType:
    """All about one request."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    image, request = status.request.image, status.request
    now = datetime.now(UTC)
    left = (status.deadline_at - now).total_seconds() if status.deadline_at else None
    table.add_row("id", status.id)
    table.add_row("prompt", printable(image.prompt))
    if image.lora:
        table.add_row("LoRA", f"{printable(image.lora)} x {image.lora_scale:g}")
    if image.negative_prompt:
        table.add_row("negative prompt", printable(image.negative_prompt))
    table.add_row("size", f"{image.width}x{image.height}")
    table.add_row("seed", str(image.seed))
    table.add_row("stage", stage_text(status))
    table.add_row("steps", f"{status.steps_done} of {image.steps}")
    if status.degree:
        table.add_row("runs on", f"GPU {', '.join(map(str, status.slots))} (degree {status.degree})")
    if status.degrees:
        table.add_row("degrees", ">".join(map(str, status.degrees)))
    if request.deadline is not None:
        table.add_row(
            "deadline",
            f"{show_duration(request.deadline)} from {status.submitted_at:%H:%M:%S} UTC"
            + (", promised" if status.promised else ""),
        )
    table.add_row("verdict", deadline_text(status, left))
    if status.latency is not None:
        table.add_row("latency", show_duration(status.latency))
    table.add_row("GPU-seconds", f"{status.gpu_seconds:.2f}")
    if status.error:
        table.add_row("error", Text(printable(status.error), "red"))
    for warning in status.warnings:
        table.add_row("warning", Text(printable(warning), "yellow"))
    return table


def cluster_view(cluster: Cluster, target: str) -> RenderableType:
    """The executors, what each runs, the policy and the queue."""
    here = len(cluster.executors)
    expected = f" of {cluster.expected_executors}" if here < cluster.expected_executors else ""
    facts = [
        f"{target}: {'ready' if cluster.ready else 'not ready'}, policy {cluster.policy},"
        f" {here}{expected} executor{'s' * (max(here, cluster.expected_executors) != 1)},"
        f" {cluster.outstanding} of at most {cluster.queue_limit} requests outstanding,"
        f" {cluster.rounds} round{'s' * (cluster.rounds != 1)}"
    ]
    if cluster.model:
        model = cluster.model
        facts.append(
            f"model {model.name} ({model.family}): sides in multiples of {model.size_multiple} up to"
            f" {model.max_side} pixels, up to {model.max_steps} steps, {model.default_steps} by default"
            + (f"; LoRA: {', '.join(map(printable, model.loras))}" if model.loras else "")
        )
    facts += [f"warning: {printable(warning)}" for warning in cluster.warnings]
    columns = ["slot", "device", "node", "address", "runs", "stage", "degree", "orders", "busy"]
    # Where all do everything, nobody need read it.
    split = any(len(executor.roles) not in (0, len(_ROLES)) for executor in cluster.executors)
    table = plain_table(*columns, *(["roles"] if split else []), numbers=("busy",))
    for executor in cluster.executors:
        table.add_row(
            str(executor.slot),
            one_line(executor.device),
            executor.node,
            executor.address,
            ", ".join(executor.request_ids) or "idle",
            executor.stage.value if executor.stage else "",
            str(executor.degree) if executor.request_ids else "",
            str(executor.orders),
            show_duration(executor.busy_seconds),
            *([", ".join(role.value for role in executor.roles)] if split else []),
        )
    return (
        Group(*(Text(fact) for fact in facts), Text(), table)
        if cluster.executors
        else Group(*map(Text, facts))
    )


def stage_text(status: RequestStatus) -> Text:
    """The stage in its colour."""
    return Text(status.stage.value, _STAGE_STYLES.get(status.stage, ""))


def deadline_text(status: RequestStatus, left: float | None) -> Text:
    """A request against its deadline, `left` seconds before it."""
    style = _VERDICT_STYLES[status.verdict]
    if status.deadline_at is None:
        return Text("best effort", "dim")
    if status.finished_at is not None:
        spare = (status.deadline_at - status.finished_at).total_seconds()
        if status.stage is not Stage.DONE:
            return Text(status.stage.value, _STAGE_STYLES[status.stage])
        return Text("on time" if spare >= 0 else f"late by {show_duration(-spare)}", style)
    if left is not None and left < 0:
        return Text(f"late by {show_duration(-left)}", "red")
    words = f"{show_duration(left)} left" if left is not None else ""
    return Text(words + (", will be late" if status.verdict is Verdict.LATE else ""), style)


def outcome(status: RequestStatus) -> str:
    """One line on how a request ended."""
    image = status.request.image
    words = [f"{image.width}x{image.height}", f"{image.steps} steps"]
    if status.degrees:
        words.append(f"degree {'>'.join(map(str, status.degrees))}")
    words.append(f"{status.gpu_seconds:.1f} GPU-seconds")
    if status.latency is not None:
        words.append(show_duration(status.latency))
    words.append(deadline_text(status, None).plain)
    return ", ".join(words)


class Tracked:
    """A request as its events tell, with its deadline on this machine's clock.

    The time left is counted from the moment that an event came, so that the clocks of the client
    and the scheduler need not agree.
    """

    def __init__(self, event: Event) -> None:
        self.follow(event)

    def follow(self, event: Event) -> None:
        """Take the next event."""
        self.status = event.status
        left = event.time_left
        self._due = None if left is None else time.monotonic() + left.total_seconds()

    def deadline_text(self) -> Text:
        """As the function, now."""
        return deadline_text(self.status, None if self._due is None else self._due - time.monotonic())


class _Tracking(ProgressColumn):
    """Stage, degree and deadline of the request that the task carries."""

    def render(self, task: Task) -> Text:
        tracked: Tracked = task.fields["tracked"]
        words = stage_text(tracked.status)
        if tracked.status.degree:
            words.append(f", degree {tracked.status.degree}")
        return words.append(", ").append_text(tracked.deadline_text())


def follow(events: Iterable[Event], to: Console) -> RequestStatus:
    """Show a request's progress until it ends: a bar in a terminal, else a line at each new stage."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        _Tracking(),
        console=to,
        disable=not to.is_terminal,
    )
    bar: TaskID | None = None
    tracked: Tracked | None = None
    with progress:
        for event in events:
            stage = tracked.status.stage if tracked else None
            if tracked is None:
                tracked = Tracked(event)
            tracked.follow(event)
            status = event.status
            if bar is None:
                bar = progress.add_task(status.id, total=status.request.image.steps, tracked=tracked)
            progress.update(bar, completed=status.steps_done)
            if not to.is_terminal and status.stage is not stage:
                to.print(f"{status.id}: {status.stage.value}")
    if tracked is None:
        raise ValueError("a watch has at least one event")
    return tracked.status
