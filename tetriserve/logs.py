"""Structured logs of the servers: an event in plain words and named fields, the request's id among them.

    log = Logger("scheduler.rounds")
    log.info("order given", request="r-17", order=42, slots=[0, 1])

Readable text by default, one JSON object a line with `--log-format json`; both on standard error.
"""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
OWN_PACKAGES = ("tetriserve", "scheduler", "executor")

_FIELDS = "fields"  # the record's attribute that carries them
_Command = TypeVar("_Command", bound=Callable[..., Any])


class Logger:
    """A named logger whose methods take the event and its fields; `bind` keeps fields for later events."""

    def __init__(self, name: str, **fields: object) -> None:
        self._logger = logging.getLogger(name)
        self._fields = fields

    def bind(self, **fields: object) -> "Logger":
        """The same logger with these fields on every event."""
        return Logger(self._logger.name, **(self._fields | fields))

    def debug(self, event: str, **fields: object) -> None:
        """What only somebody who looks for a fault wants to see."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """What an operator wants to see."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something is wrong and the server goes on."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something failed."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Something failed, with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, object], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            extra = {_FIELDS: self._fields | fields}
            self._logger.log(level, "%s", event, extra=extra, exc_info=exc_info, stacklevel=3)


def setup(fmt: str = "text", level: str = "info") -> None:
    """Send this process's logs to standard error; other packages speak from warnings up."""
    if fmt not in FORMATS:
        raise ValueError(f"the log format is one of {', '.join(FORMATS)}, not {fmt!r}")
    if level not in LEVELS:
        raise ValueError(f"the log level is one of {', '.join(LEVELS)}, not {level!r}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(level.upper())
    logging.captureWarnings(True)


def options(command: _Command) -> _Command:
    """Add `--log-format` and `--log-level` to a click command, as `log_format` and `log_level`."""
    command = click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        envvar="TETRISERVE_LOG_LEVEL",
        show_envvar=True,
        help="Least severe events to log.",
    )(command)
    return click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        envvar="TETRISERVE_LOG_FORMAT",
        show_envvar=True,
        help="Lines for people, or one JSON object a line for machines.",
    )(command)


class TextFormatter(logging.Formatter):
    """`12:00:01.250 INFO    executor.runner  order done  request=r-17 order=42`."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        line = f"{at} {record.levelname:<7} {record.name}  {record.getMessage()}"
        if fields := _fields(record):
            line += "  " + " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, event, then the fields; `traceback` with an exception."""

    def format(self, record: logging.LogRecord) -> str:
        # The fixed names come last: a field of the same name must not make the line unreadable.
        line = _fields(record) | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return dict(getattr(record, _FIELDS, {}))


def _plain(value: object) -> str:
    """A value without blanks or line ends, so that the line can be split again."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() for c in text) else text
