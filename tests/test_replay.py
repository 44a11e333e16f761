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


def test_the_simulators_own_runs_replay_exactly():
    arrivals = [Arrival(0.3 * n, Submission(f"r{n}", 512, 512, 8 + n % 3, 1.0 + n % 4)) for n in range(10)]
    config = Config(lead_s=0.1)
    first = Simulation(resolve("edf"), PROFILE, 4, arrivals, config=config).run()
    recording = [
        replay.Recorded(arrival, tuple(tracked.spans), tracked.finished_at)
        for arrival, tracked in zip(arrivals, first.requests, strict=True)
    ]
    figures = replay.compare(recording, replay.replay(recording, PROFILE, "edf", 4, config))
    assert figures["same_slots"] == figures["same_degree"] == figures["same_verdict"] == 1.0
    assert figures["latency_error_max_abs"] == 0.0
    own = replay.measured(recording)
    for degree in (1, 2):
        if any(len(span.slots) == degree for r in recording for span in r.spans if span.steps):
            assert own.step(512, 512, degree) == pytest.approx(PROFILE.step(512, 512, degree))


def test_what_is_no_recording_is_named(tmp_path):
    file = tmp_path / "wrong.json"
    file.write_text('[{"id": "a"}]')
    with pytest.raises(ValueError, match="timeline --json"):
        replay.load(file)
