"""The demo, and a whole cluster as seen from the command line: real processes, a real scheduler.

Only the executors pretend (pretend_executor.py): they sleep instead of computing, so that this takes
seconds. tests/test_end_to_end.py does the same with executors that compute.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tetriserve import AlreadyExists, Client, RequestEnded, demo
from tetriserve.batch import PICTURES
from tetriserve.local import LocalCluster, NotReady

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for orphans")

PRETEND = str(Path(__file__).with_name("pretend_executor.py"))
DEMO = """
import sys
from functools import partial
from tetriserve import demo
words = ("--die-after", "2") if sys.argv[1] == "dying" else ()
demo.LocalCluster = partial(demo.LocalCluster, executor=(sys.argv[2], *words))
demo.main(sys.argv[3:])
"""


class Run:
    """A demo in a process of its own, and all processes that came of it."""

    def __init__(self, out: Path, *words: str, executors: str = "well") -> None:
        self._mark = f"TETRISERVE_TEST={uuid.uuid4()}"
        name, value = self._mark.split("=")
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-c", DEMO, executors, PRETEND, "--out", str(out), "--policy", "edf", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {name: value},
        )

    def read_until(self, words: str) -> str:
        """What it printed up to the line with `words`."""
        assert self.process.stdout
        lines = ""
        for line in self.process.stdout:
            lines += line
            if words in line:
                return lines
        raise AssertionError(f"no {words!r} in:\n{lines}")

    def finish(self) -> str:
        """The rest of what it prints, to its end."""
        output, _ = self.process.communicate(timeout=60)
        return output

    def left(self) -> list[int]:
        """Its processes that live."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it ended meanwhile
                continue
        return found

    def nothing_left(self, within: float = 5.0) -> bool:
        """Whether all its processes end in time; what does not is killed."""
        deadline = time.monotonic() + within
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.05)
        orphans = self.left()
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        return not orphans


def test_the_demo_serves_its_batch_and_leaves_nothing_running(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    output = run.read_until("Ready after")
    assert len(run.left()) == 1 + 1 + max(2, min(4, len(os.sched_getaffinity(0))))
    output += run.finish()
    assert run.process.returncode == 0, output
    assert run.nothing_left(within=0)
    assert "SAR " in output
    assert "GPU-seconds" in output
    assert "waiting for executors to load the model" in output

    results = json.loads((run.out / "results.json").read_text())
    assert results["requests"] == len(PICTURES) == len(results["images"]) >= 12
    assert results["sar"] == sum(i["verdict"] == "on_time" for i in results["images"]) / len(PICTURES)
    assert len({(i["width"], i["height"]) for i in results["images"]}) >= 3
    assert len({i["steps"] for i in results["images"]}) >= 3
    assert len({i["deadline_s"] for i in results["images"]}) == len(PICTURES)
    for image in results["images"]:
        assert image["stage"] == "done"
        assert Image.open(run.out / image["file"]).size == (image["width"], image["height"])
        stepped = [span for span in image["spans"] if span["stage"] == "denoising"]
        assert sum(span["steps"] for span in stepped) == image["steps"]
        assert image["gpu_seconds"] > 0
    # Arrivals are spread, and known from the seed.
    arrivals = [image["submitted_at"] for image in results["images"]]
    assert arrivals == sorted(set(arrivals))
    assert Image.open(run.out / "timeline.png").width > 1000
    assert Image.open(run.out / "sheet.jpg").height > 500
    assert {path.name for path in (run.out / "logs").iterdir()} >= {"scheduler.log", "executor-0.log"}


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "waiting for executors"), (signal.SIGINT, "denoising"), (signal.SIGTERM, "denoising")],
)
def test_an_interrupted_demo_stops_everything(tmp_path: Path, number: int, moment: str) -> None:
    run = Run(tmp_path / "out")
    run.read_until(moment)
    run.process.send_signal(number)
    output = run.finish()
    assert run.process.returncode == 130
    assert run.nothing_left(within=0)
    assert output.splitlines()[-1] == "Interrupted; stopped everything"


def test_a_killed_demo_takes_its_processes_along(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.read_until("denoising")
    run.process.kill()
    run.finish()
    assert run.nothing_left(within=15)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(demo.main, ["--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert result.stderr.endswith(f"--out: {tmp_path}/file/out: Not a directory\n")


def test_a_child_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", executors="dying")
    output = run.finish()
    assert run.process.returncode == 1
    assert run.nothing_left(within=0)
    assert "ended with status 3; its log" in output
    assert "a bad end is near" in output
    assert "Traceback" not in output


def test_a_cluster_that_does_not_come_up_says_what_it_waited_for(tmp_path: Path) -> None:
    sleeper = ("-c", "import time; time.sleep(60)")
    with (
        LocalCluster(tmp_path, 2, policy="edf", executor=sleeper) as cluster,
        pytest.raises(NotReady, match="still waiting for executors to load the model: 0 of 2 joined"),
    ):
        cluster.wait_ready(timeout=3)
    assert all(child.process.returncode is not None for child in cluster.children)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    executor = (PRETEND, "--fail-prompt", "poison")
    folder = tmp_path_factory.mktemp("cluster")
    with LocalCluster(folder, 2, policy="edf", executor=executor) as cluster:
        cluster.wait_ready(timeout=60)
        yield cluster


def tetriserve(cluster: LocalCluster, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tetriserve", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"TETRISERVE_SCHEDULER": cluster.target},
    )


def test_every_command_against_a_real_scheduler(cluster: LocalCluster, tmp_path: Path) -> None:
    picture = tmp_path / "house.png"
    submitted = tetriserve(
        cluster, "submit", "a red house under a yellow sun", "--size", "512x384", "--steps", "5",
        "--seed", "7", "--deadline", "8s", "--id", "house", "-o", str(picture),
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    assert "on time" in submitted.stdout
    assert Image.open(picture).size == (512, 384)

    again = tetriserve(cluster, "get", "house", "-o", str(tmp_path / "again.png"))
    assert again.returncode == 0
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()

    id = tetriserve(cluster, "submit", "x", "--steps", "90", "--no-wait").stdout.strip()
    assert tetriserve(cluster, "cancel", id).returncode == 0
    watched = tetriserve(cluster, "watch", id)
    assert watched.returncode == 1
    assert "was cancelled" in watched.stderr

    listed = json.loads(tetriserve(cluster, "list", "--json").stdout)
    assert [row["stage"] for row in listed if row["id"] in ("house", id)] == ["cancelled", "done"]
    assert [row["id"] for row in json.loads(tetriserve(cluster, "list", "--stage", "done", "--json").stdout)]

    seen = json.loads(tetriserve(cluster, "cluster", "--json").stdout)
    assert (seen["ready"], len(seen["executors"]), seen["model"]["name"]) == (True, 2, "pretend")
    assert "idle" in tetriserve(cluster, "cluster").stdout
    quote = json.loads(tetriserve(cluster, "quote", "--size", "512x512", "--steps", "10", "--json").stdout)
    assert 0 < quote["alone_s"] <= quote["earliest_s"]
    assert tetriserve(cluster, "policy", "set", "fixed:2").stdout.startswith("fixed:2")
    assert tetriserve(cluster, "policy", "set", "edf").returncode == 0
    refused = tetriserve(cluster, "policy", "set", "luck")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert tetriserve(cluster, "timeline", "-o", str(tmp_path / "t.png")).returncode == 0
    unknown = tetriserve(cluster, "get", "nobody")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (3, 1)
    early = tetriserve(cluster, "get", id, "-o", str(tmp_path / "none.png"))
    assert (early.returncode, (tmp_path / "none.png").exists()) == (5, False)


def test_a_poisonous_request_fails_alone(cluster: LocalCluster) -> None:
    with Client(cluster.target) as client:
        poison = client.submit("poison", steps=3)
        good = client.submit("a boat", "256x256", steps=3)
        with pytest.raises(RequestEnded, match="failed: told to fail"):
            client.result(poison.id, timeout=30)
        assert client.result(good.id, timeout=30).size == (256, 256)


def test_the_same_id_twice(cluster: LocalCluster) -> None:
    with Client(cluster.target) as client:
        first = client.submit("a boat", "256x256", steps=3, seed=1, id="twice")
        assert client.submit("a boat", "256x256", steps=3, seed=1, id="twice").request == first.request
        with pytest.raises(AlreadyExists, match="twice"):
            client.submit("a car", "256x256", steps=3, seed=1, id="twice")
