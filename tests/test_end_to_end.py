"""From the command line to the picture: a real scheduler, two real executors, the built-in model."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tetriserve import Client, Stage
from tetriserve.local import LocalCluster

PROMPT = "a red house under a yellow sun"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    options = ["--sizes", "128x128", "--cache-dir", str(tmp_path_factory.mktemp("cache"))]
    with LocalCluster(tmp_path_factory.mktemp("cluster"), 2, policy="edf", options=options) as cluster:
        cluster.wait_ready(timeout=100)
        yield cluster
        # Ctrl-C is a clean end, also with work in hand.
        with Client(cluster.target) as client:
            client.submit(PROMPT, "256x256", steps=50)
        for child in reversed(cluster.children):
            child.process.send_signal(signal.SIGINT)
            assert child.process.wait(30) == 0, child.log_tail()


def tetriserve(cluster: LocalCluster, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tetriserve", *words],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"TETRISERVE_SCHEDULER": cluster.target},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.timeout(240)  # the first test waits for the cluster
def test_the_commands_make_and_fetch_a_picture(cluster: LocalCluster, tmp_path: Path) -> None:
    house = tmp_path / "house.png"
    words = "--size", "192x128", "--steps", "6", "--seed", "7", "--deadline", "60s"
    said = tetriserve(cluster, "submit", PROMPT, *words, "-o", str(house))
    assert "192x128, 6 steps, degree" in said
    assert "on time" in said
    assert Image.open(house).size == (192, 128)
    assert pixels(house).std() > 1

    id = tetriserve(cluster, "submit", PROMPT, *words, "--no-wait").strip()
    events = [json.loads(line) for line in tetriserve(cluster, "watch", id, "--json").splitlines()]
    assert [event["request"]["steps_done"] for event in events] == sorted(
        event["request"]["steps_done"] for event in events
    )
    assert events[-1]["request"]["stage"] == "done"
    again = tmp_path / "again.png"
    tetriserve(cluster, "get", id, "-o", str(again))
    assert again.read_bytes() == house.read_bytes()

    status = json.loads(tetriserve(cluster, "get", id, "--json"))
    assert sum(span["steps"] for span in status["spans"]) == 6
    assert status["gpu_seconds"] > 0
    assert len(json.loads(tetriserve(cluster, "cluster", "--json"))["executors"]) == 2
    tetriserve(cluster, "timeline", "-o", str(tmp_path / "timeline.png"))
    assert Image.open(tmp_path / "timeline.png").width > 1000


def test_the_schedule_does_not_show_in_the_picture(cluster: LocalCluster, tmp_path: Path) -> None:
    for degree in (1, 2):
        tetriserve(cluster, "policy", "set", f"fixed:{degree}")
        path = tmp_path / f"{degree}.png"
        words = "--size", "144x208", "--steps", "5", "--seed", "3", "--id", f"fixed-{degree}"
        tetriserve(cluster, "submit", PROMPT, *words, "-o", str(path))
        assert json.loads(tetriserve(cluster, "get", f"fixed-{degree}", "--json"))["degrees"] == [degree]
    tetriserve(cluster, "policy", "set", "edf")
    assert abs(pixels(tmp_path / "1.png") - pixels(tmp_path / "2.png")).max() <= 1


def test_previews_come_to_who_asks_and_change_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    words = "--size", "192x128", "--steps", "9", "--seed", "4"
    plain = tmp_path / "plain.png"
    tetriserve(cluster, "submit", PROMPT, *words, "-o", str(plain))
    # More steps than fit into an order, so that the watch is there before the last orders.
    shown = tmp_path / "shown.png"
    tetriserve(cluster, "submit", PROMPT, *words, "-o", str(shown), "--previews", "2")
    assert shown.read_bytes() == plain.read_bytes()
    assert [path.name for path in tmp_path.glob("plain-*.jpg")] == []

    with Client(cluster.target) as client:
        id = client.submit(PROMPT, "256x256", steps=60, seed=5).id
        previews = [event.preview for event in client.watch(id, previews=3) if event.preview]
        silent = client.submit(PROMPT, "128x128", steps=9, seed=5).id
        assert all(event.preview is None for event in client.watch(silent))
    steps = [preview.step for preview in previews]
    assert steps
    assert steps == sorted(set(steps))
    assert all(step % 3 == 0 and 0 < step < 60 for step in steps)
    for preview in previews:
        assert Image.open(io.BytesIO(preview.jpeg)).size == (32, 32)
        assert len(preview.jpeg) < 5000


def test_a_cancelled_request_makes_room(cluster: LocalCluster) -> None:
    with Client(cluster.target) as client:
        model = client.cluster().model
        assert model is not None
        long = [client.submit(PROMPT, "256x256", steps=model.max_steps) for _ in range(3)]
        for event in client.watch(long[0].id, timeout=60):
            if event.status.steps_done:
                break
        for request in long:
            assert client.cancel(request.id).stage is Stage.CANCELLED
        assert client.result(client.submit(PROMPT, "128x128", steps=2).id, timeout=60).size == (128, 128)
        assert client.cluster().outstanding == 0
