"""Logs carry their fields in both formats."""

import json
import logging
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from tetriserve import logs


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for package in logs.OWN_PACKAGES:
        logging.getLogger(package).setLevel(logging.NOTSET)


def test_json_lines_carry_request_and_fields(capsys):
    logs.setup("json")
    logs.Logger("executor.runner").bind(request="r-1").info("order done", order=7, seconds=0.25)
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "order done"
    assert line["level"] == "info"
    assert line["logger"] == "executor.runner"
    assert (line["request"], line["order"], line["seconds"]) == ("r-1", 7, 0.25)
    assert line["time"].endswith("+00:00")


def test_json_is_one_line_whatever_is_logged(capsys):
    logs.setup("json")
    log = logs.Logger("scheduler")
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        log.exception("round failed", prompt="a\nb", level="mine", thing=object())
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["level"] == "error"
    assert entry["prompt"] == "a\nb"
    assert "two\nlines" in entry["traceback"]


def test_text_is_readable(capsys):
    logs.setup("text")
    logs.Logger("scheduler.fleet").warning("executor lost", slot=3, why="lease ended", seconds=1.23456789)
    line = capsys.readouterr().err.rstrip()
    assert line.endswith('WARNING scheduler.fleet  executor lost  slot=3 why="lease ended" seconds=1.235')


def test_levels_filter_own_packages_and_quieten_others(capsys):
    logs.setup("text", "warning")
    logs.Logger("executor").info("hidden")
    logs.setup("text", "debug")
    logs.Logger("executor").debug("shown")
    logging.getLogger("somebody.else").info("noise")
    err = capsys.readouterr().err
    assert "shown" in err
    assert "hidden" not in err
    assert "noise" not in err


def test_unknown_format_and_level_are_refused():
    with pytest.raises(ValueError, match="log format is one of text, json"):
        logs.setup("xml")
    with pytest.raises(ValueError, match="log level is one of"):
        logs.setup("text", "loud")


def test_options_of_a_command():
    @click.command()
    @logs.options
    def command(log_format: str, log_level: str) -> None:
        click.echo(f"{log_format} {log_level}")

    runner = CliRunner()
    assert runner.invoke(command, []).output == "text info\n"
    assert runner.invoke(command, [], env={"TETRISERVE_LOG_FORMAT": "json"}).output == "json info\n"
    assert runner.invoke(command, ["--log-level", "loud"]).exit_code == 2


def test_grpc_writes_nothing_between_the_lines():
    """Its notes go past `logging`; it reads its setting once, so that must come before its import."""
    packages = "scheduler.command", "tetriserve.client", "executor.command, executor.link"
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    for package in packages:
        code = (
            "import os, sys\n"
            "class Watch:\n"
            "    def find_spec(self, name, *_):\n"
            "        if name == 'grpc': print(os.environ.get('GRPC_VERBOSITY'))\n"
            "sys.meta_path.insert(0, Watch())\n"
            f"import {package}"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout == "ERROR\n", package
