"""The real scheduler process lets in, refuses and promises; its executors sleep instead of computing."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from test_scheduler import Processes

from scheduler.command import main
from tetriserve import Client, errors
from tetriserve.types import Stage, Verdict


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.stop()


def ready(processes: Processes, client: Client, *options: str, executors: int = 1) -> None:
    processes.scheduler(*options)
    for _ in range(executors):
        processes.executor()
    processes.wait(client, executors)


def test_a_promised_deadline_is_kept_and_others_are_refused(processes):
    with Client(processes.target, patience=20) as client:
        ready(processes, client, "--admission", "promise", "--margin", "0.5")
        assert client.cluster().admission == "promise"
        # A step takes 30 ms.
        first = client.submit("first", steps=40, deadline="6s")
        assert first.promised
        with pytest.raises(errors.FailedPrecondition, match=r"deadline: 2 s cannot be promised .* earliest"):
            client.submit("pushy", steps=40, deadline="2s")
        hopeful = client.submit("hopeful", steps=40, deadline="2s", unpromised=True)
        assert not hopeful.promised
        assert not client.submit("easy-going", steps=2).promised
        done = client.wait(first.id)
        assert done.promised
        assert done.verdict is Verdict.ON_TIME
        assert client.wait(hopeful.id).stage is Stage.DONE


def test_what_cannot_be_on_time_is_refused_with_a_quote(processes):
    with Client(processes.target, patience=20) as client:
        ready(processes, client, "--admission", "reject-late")
        with pytest.raises(
            errors.FailedPrecondition, match=r"deadline: 0.5 s cannot be met now; .* is \S+ s"
        ):
            client.submit("hasty", steps=40, deadline="0.5s")
        with pytest.raises(errors.NotFound):
            client.get("hasty")
        accepted = client.submit("patient", steps=10, deadline="30s", id="patient")
        assert not accepted.promised
        # A retry is answered as before, whatever the queue looks like now.
        assert client.submit("patient", steps=10, deadline="30s", id="patient").id == "patient"


def test_a_promise_outlives_the_scheduler(processes):
    with Client(processes.target, patience=20) as client:
        processes.scheduler("--admission", "promise")
        processes.executor()
        processes.wait(client, 1)
        promised = client.submit("long", steps=100, deadline="60s")
        scheduler = processes.running[0]
        scheduler.kill()
        scheduler.wait()
        processes.scheduler("--admission", "promise")
        assert client.get(promised.id).promised


def test_nothing_is_promised_before_step_times_are_known(processes):
    processes.scheduler("--admission", "promise", "--expect", "2")
    processes.executor()
    with Client(processes.target, patience=20) as client:
        until = time.monotonic() + 20
        while not client.cluster().executors and time.monotonic() < until:
            time.sleep(0.05)
    with Client(processes.target, patience=1) as client, pytest.raises(errors.Unavailable, match="not ready"):
        client.submit("early", deadline="60s")


def test_the_command_line_asks_for_promises(processes):
    with Client(processes.target, patience=20) as client:
        ready(processes, client, "--admission", "promise")
    words = [sys.executable, "-m", "tetriserve", "submit", "a boat", "--steps", "40", "--no-wait"]
    words += ["--scheduler", processes.target, "--deadline", "0.5s"]
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "cannot be promised" in refused.stderr
    taken = subprocess.run([*words, "--unpromised", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(taken.stdout)["promised"] is False


def test_late_requests_are_dropped_where_they_or_the_scheduler_say_so(processes):
    with Client(processes.target, patience=20) as client:
        ready(processes, client, "--late", "drop")
        dropped = client.submit("hopeless", steps=40, deadline="0.2s")
        run = client.submit("hopeless but run", steps=5, deadline="0.05s", on_late="run")
        assert client.wait(run.id).verdict is Verdict.LATE
        assert client.wait(dropped.id).stage is Stage.DROPPED


def test_every_option_can_be_set_by_the_environment():
    """By its name, as the help says."""
    for option in main.params:
        assert option.name == option.opts[0].removeprefix("--").replace("-", "_")
    result = CliRunner().invoke(main, [], env={"TETRISERVE_AGE_BOUND": "soon"})
    assert result.exit_code == 2
    assert "--age-bound: 'soon' is not a duration" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--admission", "sometimes"], "accept"),
        (["--age-bound", "soon"], "Error: --age-bound: 'soon' is not a duration"),
        (["--age-bound", "0s"], "Error: --age-bound: '0s' is not more than 0"),
    ],
)
def test_wrong_options_are_named(words, message):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert message in result.stderr
