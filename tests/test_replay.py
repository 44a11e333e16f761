"""A run of real processes, recorded and put through the simulator: decisions and ends are much the same."""

import json
import random
import time

import pytest
from chaos import PROFILE
from click.testing import CliRunner
from test_scheduler import Processes

from bench import replay
from bench.cli import main
from bench.simulator import Arrival, Simulation
from scheduler.config import Config
from scheduler.policies import resolve
from scheduler.problem import Stage
from scheduler.tracking import Submission
from tetriserve import Client
from tetriserve.as_json import status_json


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.stop()


def record(processes: Processes, requests: int, executors: int):
    """Requests of three sizes at random times, some deadlines tight, served by processes that sleep."""
    rng = random.Random(7)
    with Client(processes.target, patience=20) as client:
        processes.scheduler()
        for _ in range(executors):
            processes.executor()
        processes.wait(client, executors)
        ids = []
        for _ in range(requests):
            side = rng.choice([256, 512, 1024])
            request = client.submit(
                "a boat", (side, side), steps=rng.randint(4, 12), deadline=rng.uniform(1.0, 6.0)
            )
            ids.append(request.id)
            time.sleep(rng.expovariate(2.0))
        return [status_json(client.wait(id), spans=True) for id in ids]


def test_a_recorded_run_replays(processes, tmp_path):
    rows = record(processes, requests=12, executors=2)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(rows))
    result = CliRunner().invoke(main, ["replay", str(file), "--policy", "edf", "--gpus", "2", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    assert figures["requests"] == 12
    # Goals on an idle machine are a few percent; here others may be at work.
    assert abs(figures["latency_error_mean"]) < 0.5
    assert figures["same_verdict"] >= 0.7
    assert figures["same_degree"] >= 0.4


def simulated(config: Config) -> list[replay.Recorded]:
    """A recording of a run of the simulator with more than it can have on time."""
    arrivals = [Arrival(0.1 * n, Submission(f"r{n}", 512, 512, 8 + n % 3, 1.0 + n % 4)) for n in range(20)]
    first = Simulation(resolve("edf"), PROFILE, 4, arrivals, config=config).run()
    return [
        replay.Recorded(arrival, tuple(t.spans), t.finished_at, t.stage is Stage.DROPPED)
        for arrival, t in zip(arrivals, first.requests, strict=True)
    ]


@pytest.mark.parametrize("drop_late", [False, True])
def test_the_simulators_own_runs_replay_exactly(drop_late):
    config = Config(lead_s=0.1, drop_late=drop_late)
    recording = simulated(config)
    figures = replay.compare(recording, replay.replay(recording, PROFILE, "edf", 4, config))
    assert figures["same_slots"] == figures["same_degree"] == figures["same_verdict"] == 1.0
    assert figures["latency_error_max_abs"] == 0.0
    assert figures["dropped_recorded"] == figures["dropped_simulated"]
    assert (figures["dropped_recorded"] > 0) == drop_late
    own = replay.measured(recording)
    for degree in (1, 2):
        if any(len(span.slots) == degree for r in recording for span in r.spans if span.steps):
            assert own.step(512, 512, degree) == pytest.approx(PROFILE.step(512, 512, degree))


def test_latencies_are_compared_of_those_done_in_both():
    dropping, running = Config(lead_s=0.1, drop_late=True), Config(lead_s=0.1)
    for recorded, run in ((dropping, running), (running, dropping)):
        recording = simulated(recorded)
        outcomes = replay.replay(recording, PROFILE, "edf", 4, run)
        figures = replay.compare(recording, outcomes)
        dropped = figures["dropped_recorded"] + figures["dropped_simulated"]
        assert dropped > 0
        assert figures["same_verdict"] <= 1 - dropped / len(recording)
        # As if the others had not been there.
        done = [
            r
            for r, t in zip(recording, outcomes.requests, strict=True)
            if not r.dropped and t.stage is Stage.DONE
        ]
        assert replay.compare(done, outcomes)["latency_error_mean"] == figures["latency_error_mean"]


def test_who_was_dropped_is_read_with_the_others(tmp_path):
    def row(id: str, stage: str, second: int) -> dict:
        at = "2025-01-01T00:00:{:02}+00:00".format
        request = {"id": id, "width": 512, "height": 512, "steps": 4, "deadline_s": 9.0, "weight": 1.0}
        span = {"stage": "denoising", "slots": [0], "first_step": 0, "steps": 4}
        ended = {"stage": stage, "submitted_at": at(second), "finished_at": at(second + 5)}
        spans = [{**span, "begin": at(second), "end": at(second + 4)}]
        return {**request, **ended, "on_late": "drop", "spans": spans}

    file = tmp_path / "run.json"
    file.write_text(json.dumps([row("c", "failed", 0), row("b", "dropped", 3), row("a", "done", 2)]))
    done, dropped = replay.load(file)
    assert [(r.arrival.submission.id, r.arrival.at, r.dropped) for r in (done, dropped)] == [
        ("a", 0.0, False),
        ("b", 1.0, True),
    ]
    file.write_text(json.dumps([row("b", "dropped", 3)]))
    with pytest.raises(ValueError, match="no request was completed"):
        replay.load(file)


def test_what_is_no_recording_is_named(tmp_path):
    file = tmp_path / "wrong.json"
    file.write_text('[{"id": "a"}]')
    with pytest.raises(ValueError, match="timeline --json"):
        replay.load(file)
