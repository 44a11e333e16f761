"""Traces: recorded or made-up requests in a file, in any of three formats, told apart by their content.

Our own, JSON lines: a header, then one request a line; `deadline_s` counts from the arrival, and
`steps`, `deadline_s`, `weight` and `class` may be left out, or null (50, none, 1, none):

    {"format": "tetriserve-trace", "version": 1}
    {"arrival_s": 0.0, "width": 1024, "height": 1024, "steps": 28, "deadline_s": 5.0}

A CSV with the header arrival_s,width,height,steps,deadline_s and, optionally, weight and class; other
columns are ignored.

The one-line-per-request format of the vLLM-Omni and Hetu-DiT benchmarks:

    Request(request_id=0, timestamp=0.0, height=256, width=256, num_frames=1, prompt='a cat',
    num_inference_steps=28, slo_ms=5000)
"""

import ast
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.fields import amount, count
from bench.simulator import Arrival
from bench.workloads import STEPS
from scheduler.tracking import Submission

FORMAT, VERSION = "tetriserve-trace", 1


class BadTrace(ValueError):
    """A trace that cannot be read; the message names the file and the line."""


def load(path: Path) -> list[Arrival]:
    """The requests of a trace by arrival; ids are r0, r1, ... in that order.

    Raises BadTrace with the line that is wrong.
    """
    try:
        # Spreadsheets write a byte order mark in front.
        # Not `splitlines`, which would break prompts and classes at a form feed or U+2028, too.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise BadTrace(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadTrace(f"{path}: a trace is a text file, this is none") from None
    # Lines that begin with # are comments in every format; blanked, so that numbers stay right.
    lines = ["" if line.lstrip().startswith("#") else line for line in lines]
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("{"):
        rows = _json_lines(lines)
    elif first.startswith("Request("):
        rows = _calls(lines)
    elif "arrival_s" in first:
        rows = _csv(lines)
    else:
        raise BadTrace(
            f"{path}, line 1: neither a {FORMAT} header, nor a line Request(...), nor a CSV header with "
            "arrival_s,width,height,steps,deadline_s"
        )
    arrivals: list[Arrival] = []
    try:
        for number, fields in rows:
            try:
                arrivals.append(_arrival(fields))
            except ValueError as error:
                raise _WrongLine(number, str(error)) from None
    except _WrongLine as error:
        raise BadTrace(f"{path}, line {error.number}: {error}") from None
    if not arrivals:
        raise BadTrace(f"{path}: no request in it")
    arrivals.sort(key=lambda arrival: arrival.at)
    return [replace(a, submission=replace(a.submission, id=f"r{index}")) for index, a in enumerate(arrivals)]


def save(arrivals: Iterable[Arrival], path: Path) -> None:
    """Write a trace in our own format."""
    with path.open("w") as file:
        file.write(json.dumps({"format": FORMAT, "version": VERSION}) + "\n")
        for arrival in arrivals:
            s = arrival.submission
            fields: dict[str, Any] = {
                "arrival_s": arrival.at,
                "width": s.width,
                "height": s.height,
                "steps": s.steps,
            }
            if s.deadline_s is not None:
                fields["deadline_s"] = s.deadline_s
            if s.weight != 1.0:
                fields["weight"] = s.weight
            if arrival.label:
                fields["class"] = arrival.label
            file.write(json.dumps(fields) + "\n")


class _WrongLine(ValueError):
    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


Row = tuple[int, dict[str, Any]]
"""A line's number and what it says."""


def _json_lines(lines: list[str]) -> Iterator[Row]:
    header = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _WrongLine(number, f"not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise _WrongLine(number, "not a JSON object")
        if header:
            header = False
            if fields.get("format") != FORMAT or fields.get("version") != VERSION:
                header_line = json.dumps({"format": FORMAT, "version": VERSION})
                raise _WrongLine(number, f"the header is {header_line}")
        else:
            yield number, fields


def _csv(lines: list[str]) -> Iterator[Row]:
    # What comes before the header are comments and empty lines.
    above = next(number for number, line in enumerate(lines) if line.strip())
    # Strict: else a quote that is not closed takes all that follows for one value.
    reader = csv.DictReader(lines[above:], skipinitialspace=True, strict=True)
    began = above + 1
    try:
        missing = {"arrival_s", "width", "height", "steps", "deadline_s"} - set(reader.fieldnames or ())
        if missing:
            raise _WrongLine(above + reader.line_num, f"no column {', '.join(sorted(missing))}")
        for row in reader:
            number = above + reader.line_num
            if None in row:
                raise _WrongLine(number, "there are more values than columns")
            yield number, {name: text for name, text in row.items() if text not in (None, "")}
            began = number + 1
    except csv.Error as error:
        raise _WrongLine(began, f"not CSV: {error}") from None


_RENAMED = {
    "timestamp": "arrival_s",
    "width": "width",
    "height": "height",
    "num_inference_steps": "steps",
    "weight": "weight",
}


def _calls(lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = _keywords(line.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _WrongLine(number, f"not Request(name=value, ...): {error}") from None
        renamed = {ours: fields[theirs] for theirs, ours in _RENAMED.items() if theirs in fields}
        if fields.get("num_frames", 1) != 1:
            raise _WrongLine(number, f"num_frames is 1, not {fields['num_frames']}: videos are not served")
        if fields.get("slo_ms") is not None:
            try:
                renamed["deadline_s"] = amount(fields, "slo_ms", 0.0) / 1000
            except ValueError as error:
                raise _WrongLine(number, str(error)) from None
        yield number, renamed


def _keywords(line: str) -> dict[str, Any]:
    """The keyword arguments of one call, which are literals: read, never run."""
    call = ast.parse(line, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "Request":
        raise ValueError("no call of Request")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("only name=value")
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def _arrival(fields: dict[str, Any]) -> Arrival:
    # Programs write null for what they have not.
    fields = {name: value for name, value in fields.items() if value is not None}
    submission = Submission(
        id="",
        width=count(fields, "width"),
        height=count(fields, "height"),
        steps=count(fields, "steps") if "steps" in fields else STEPS,
        deadline_s=amount(fields, "deadline_s", 0.0) if "deadline_s" in fields else None,
        weight=amount(fields, "weight", 0.0) if "weight" in fields else 1.0,
    )
    return Arrival(amount(fields, "arrival_s", 0.0), submission, str(fields.get("class", "")))
