"""The command line against a scripted SchedulerService (fake_scheduler.py), in process and as a process."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from fake_scheduler import FakeScheduler
from rich.console import Console

from tetriserve import Client, cli, show
from tetriserve.files import replacing
from tetriserve.v1 import types_pb2

COMMAND = [sys.executable, "-m", "tetriserve"]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeScheduler]:
    scheduler = FakeScheduler()
    scheduler.start()
    monkeypatch.setenv("TETRISERVE_SCHEDULER", scheduler.target)
    yield scheduler
    scheduler.stop()


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, words)


def queue(fake: FakeScheduler, id: str = "mine", steps: int = 14) -> None:
    """A request that will go through its stages when watched, and then has an image."""
    assert run("submit", "a red house", "--id", id, "--steps", str(steps), "--deadline", "8s", "--no-wait")
    queued = fake.event(id, 0)
    fake.finish(id)
    running = {"stage": types_pb2.STAGE_DENOISING, "slots": [0, 1]}
    events = [queued]
    for done in (4, 8):
        events.append(fake.event(id, 1))
        events[-1].status.CopyFrom(queued.status)
        events[-1].status.MergeFrom(types_pb2.RequestStatus(**running, steps_done=done))
    fake.streams[id] = [[*events, fake.event(id, 3)] for _ in range(3)]


def prepare(fake: FakeScheduler, id: str = "mine") -> None:
    """As `queue`, but the command is the one to submit it."""
    queue(fake, id)
    fake.prepared[id] = fake.statuses.pop(id)


def test_submit_waits_and_writes_the_image(fake: FakeScheduler, tmp_path: Path) -> None:
    prepare(fake)
    picture = tmp_path / "house.png"
    words = "submit", "a red house", "--size", "512x512", "--steps", "14", "--seed", "7", "--deadline", "8s"
    result = run(*words, "--id", "mine", "-o", str(picture))
    assert result.exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "14 steps, degree 1>2>1, 4.5 GPU-seconds, 3.0s, on time" in result.stdout
    assert result.stderr.splitlines() == ["mine: queued", "mine: denoising", "mine: done"]
    sent = fake.calls("Submit")[-1].request
    assert (sent.image.width, sent.image.seed, sent.deadline.seconds) == (512, 7, 8)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    picture, link = tmp_path / "house.png", tmp_path / "link.png"
    picture.write_bytes(b"before")
    link.symlink_to(picture)

    def fill_the_disk() -> None:
        with replacing(picture) as draft:
            draft.write_bytes(b"a part")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert picture.read_bytes() == b"before"
    with replacing(link) as draft:
        draft.write_bytes(b"after")
    assert link.is_symlink()
    assert picture.read_bytes() == b"after"
    with replacing("/dev/null") as draft:
        draft.write_bytes(b"no matter")
    assert Path("/dev/null").is_char_device()
    assert {path.name for path in tmp_path.iterdir()} == {"house.png", "link.png"}


def test_submit_no_wait_prints_the_id_alone(fake: FakeScheduler) -> None:
    result = run("submit", "x", "--no-wait")
    assert result.exit_code == 0
    assert result.stdout == f"{next(iter(fake.statuses))}\n"
    assert run("submit", "x", "--no-wait", "-o", "x.png").exit_code == 2


def test_a_negative_prompt_goes_with_the_request(fake: FakeScheduler) -> None:
    id = run(
        "submit", "a house", "--negative-prompt", "clouds", "--guidance", "5", "--no-wait"
    ).stdout.strip()
    sent = fake.calls("Submit")[-1].request.image
    assert (sent.prompt, sent.negative_prompt, sent.guidance) == ("a house", "clouds", 5)
    assert "clouds" in run("get", id).stdout
    assert json.loads(run("get", id, "--json").stdout)["negative_prompt"] == "clouds"


def test_a_lora_goes_with_the_request(fake: FakeScheduler) -> None:
    id = run("submit", "a house", "--lora", "sketch:0.8", "--no-wait").stdout.strip()
    sent = fake.calls("Submit")[-1].request.image
    assert (sent.lora, sent.lora_scale) == ("sketch", 0.8)
    assert "sketch x 0.8" in run("get", id).stdout
    assert json.loads(run("get", id, "--json").stdout)["lora_scale"] == 0.8
    refused = run("submit", "a house", "--lora", "sketch:much", "--no-wait")
    assert refused.exit_code == 2
    assert "lora: 'sketch:much' is not NAME or NAME:SCALE, such as sketch:0.8" in refused.stderr


def test_submit_to_standard_output_is_the_png_alone(fake: FakeScheduler) -> None:
    prepare(fake)
    done = subprocess.run([*COMMAND, "submit", "x", "--id", "mine", "-o", "-"], capture_output=True)
    assert done.returncode == 0
    assert done.stdout == b"".join(part.chunk for part in fake.images["mine"])


def test_json_keys_stay(fake: FakeScheduler) -> None:
    request = {
        "id", "stage", "verdict", "prompt", "negative_prompt", "width", "height", "steps", "seed", "guidance",
        "lora", "lora_scale",
        "deadline_s", "weight", "on_late", "promised", "steps_done", "slots", "degree", "submitted_at",
        "deadline_at",
        "finished_at", "latency_s", "gpu_seconds", "error", "warnings",
    }  # fmt: skip
    queue(fake)
    got = json.loads(run("get", "mine", "--json").stdout)
    assert got.keys() == request | {"degrees", "spans"}
    assert got["submitted_at"] == "2026-01-02T03:04:05.000000+00:00"
    assert (got["stage"], got["verdict"], got["degrees"]) == ("done", "on_time", [1, 2, 1])
    assert got["spans"][1].keys() == {
        "stage",
        "slots",
        "degree",
        "first_step",
        "steps",
        "begin",
        "end",
        "batch",
    }
    assert [row.keys() for row in json.loads(run("list", "--json").stdout)] == [request]
    assert json.loads(run("cancel", "mine", "--json").stdout).keys() == request
    assert json.loads(run("submit", "x", "--no-wait", "--json").stdout).keys() == request
    assert json.loads(run("quote", "--json").stdout) == {
        "earliest_s": 1.75,
        "alone_s": 1.25,
        "gpu_seconds": 2.5,
    }
    cluster = json.loads(run("cluster", "--json").stdout)
    assert cluster.keys() == {
        "ready", "policy", "policies", "outstanding", "queue_limit", "rounds", "expected_executors", "model",
        "executors", "warnings", "admission",
    }  # fmt: skip
    assert [executor["request_ids"] for executor in cluster["executors"]] == [[], ["r1"]]
    assert json.loads(run("policy", "set", "edf", "--json").stdout) == {
        "policy": "edf",
        "policies": ["cp-sat", "edf", "fixed:K"],
    }
    assert [row["id"] for row in json.loads(run("timeline", "--json").stdout)][-1] == "mine"
    events = [json.loads(line) for line in run("watch", "mine", "--json").stdout.splitlines()]
    assert [event["request"]["steps_done"] for event in events] == [0, 4, 8, 14]
    assert events[0].keys() == {"at", "request"}


def test_get_shows_or_writes(fake: FakeScheduler, tmp_path: Path) -> None:
    queue(fake)
    shown = run("get", "mine").stdout
    assert "degrees      1>2>1" in shown
    assert "on time" in shown
    picture = tmp_path / "x.png"
    assert run("get", "mine", "-o", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("expected", "words"), [(0, "2 executors"), (1, "2 executors"), (3, "2 of 3 executors")]
)
def test_the_cluster_tells_how_many_executors_are_missing(
    fake: FakeScheduler, expected: int, words: str
) -> None:
    fake.expected_executors = expected
    assert f"policy cp-sat, {words}," in run("cluster").stdout


def test_get_tells_that_a_deadline_is_promised(fake: FakeScheduler) -> None:
    queue(fake)
    assert "promised" not in run("get", "mine").stdout
    fake.statuses["mine"].promised = True
    assert "8.0s from 03:04:05 UTC, promised" in run("get", "mine").stdout


def test_in_a_narrow_terminal_the_prompt_gives_way_and_the_id_does_not(fake: FakeScheduler) -> None:
    run("submit", "a red house " * 9, "--id", "f00dfacecafe", "--no-wait")
    with Client(fake.target) as client:
        table = show.request_table(client.list())
    screen = Console(width=80, file=io.StringIO())
    screen.print(table)
    assert isinstance(screen.file, io.StringIO)
    heading, row = screen.file.getvalue().splitlines()
    assert heading.split() == ["id", "stage", "size", "steps", "degree", "deadline", "latency", "prompt"]
    assert re.match(r"f00dfacecafe  queued  512x512 +0/0 +best effort +a red house.*…$", row)


def test_list_cluster_quote_policy_cancel_for_people(fake: FakeScheduler) -> None:
    assert run("list").stdout == "no requests\n"
    queue(fake)
    run("submit", "a\x1b[2Jblue \x9b31m boat", "--id", "other", "--no-wait")
    heading, newest, oldest = run("list").stdout.splitlines()
    assert heading.split() == ["id", "stage", "size", "steps", "degree", "deadline", "latency", "prompt"]
    assert newest.startswith("other  queued")
    assert oldest.split()[:4] == ["mine", "done", "512x512", "14/14"]
    assert not CONTROL.search(newest + run("get", "other").stdout.replace("\n", ""))
    cluster = run("cluster").stdout
    assert "ready, policy cp-sat" in cluster
    assert re.search(r"^1 +cpu .*r1 +denoising +2", cluster, re.MULTILINE)
    assert "earliest deadline 1.75s" in run("quote", "--size", "64x64").stdout
    assert run("policy").stdout.startswith("cp-sat (there are: cp-sat, edf, fixed:K)")
    assert run("policy", "set", "edf").stdout.startswith("edf ")
    assert run("cancel", "other").stdout == "other: cancelled\n"


def test_timeline_draws(fake: FakeScheduler, tmp_path: Path) -> None:
    picture = tmp_path / "timeline.png"
    empty = run("timeline", "-o", str(picture))
    assert (empty.exit_code, picture.exists()) == (1, False)
    queue(fake)
    assert run("timeline", "-o", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["get", "nobody"], cli.NOT_FOUND, "there is no request nobody"),
        (["watch", "nobody"], cli.NOT_FOUND, "there is no request nobody"),
        (["submit", "x", "--size", "5"], cli.BAD_ARGUMENT, "size: '5' is not WIDTHxHEIGHT"),
        (["submit", "x", "--deadline", "soon"], cli.BAD_ARGUMENT, "deadline: 'soon' is not a duration"),
        (
            ["submit", "x", "-o", "/nowhere/at/all.png"],
            cli.BAD_ARGUMENT,
            "/nowhere/at/all.png does not exist",
        ),
        (["timeline", "-o", "x.foo"], cli.BAD_ARGUMENT, "x.foo does not end in .png, .pdf, .svg"),
        (
            ["cluster", "--scheduler", "nohost"],
            cli.BAD_ARGUMENT,
            "scheduler: expected HOST:PORT, not 'nohost'",
        ),
        (["timeline", "-o", "x"], cli.BAD_ARGUMENT, "x does not end in .png, .pdf, .svg"),
        (["policy", "set", "luck"], cli.BAD_ARGUMENT, "policy: one of cp-sat"),
        (["policy", "get"], cli.BAD_ARGUMENT, "policy set NAME"),
        (["get", "early", "-o", "x.png"], cli.REFUSED, "request early has no image yet"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_errors_are_one_line_and_a_status(words: list[str], status: int, message: str) -> None:
    run("submit", "x", "--id", "early", "--no-wait")
    result = run(*words)
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert message in result.stderr.splitlines()[-1]


def test_a_failed_request_is_a_failure(fake: FakeScheduler) -> None:
    run("submit", "x", "--id", "mine", "--no-wait")
    fake.statuses["mine"].MergeFrom(
        types_pb2.RequestStatus(stage=types_pb2.STAGE_FAILED, error="out of memory")
    )
    fake.streams["mine"] = [[fake.event("mine", 1)]] * 2
    result = run("watch", "mine")
    assert result.exit_code == cli.ENDED_WITHOUT_IMAGE
    assert "Error: request mine failed: out of memory" in result.stderr
    assert json.loads(run("get", "mine", "--json").stdout)["error"] == "out of memory"


def test_an_unreachable_scheduler_is_one_line(tmp_path: Path) -> None:
    words = ["submit", "x", "--scheduler", "127.0.0.1:1", "-o", str(tmp_path / "x.png")]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == cli.UNREACHABLE
    assert done.stdout == ""
    assert done.stderr.startswith("Error: no scheduler answers at 127.0.0.1:1 (")
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_full_queue_is_refused(fake: FakeScheduler) -> None:
    fake.refuse("Submit", grpc.StatusCode.RESOURCE_EXHAUSTED, "9 of 9 requests wait: try again later")
    result = run("submit", "x", "--no-wait")
    assert (result.exit_code, result.stderr) == (
        cli.REFUSED,
        "Error: 9 of 9 requests wait: try again later\n",
    )


def test_a_pipe_gets_no_control_characters(fake: FakeScheduler) -> None:
    queue(fake)
    for words in (["watch", "mine"], ["list"], ["cluster"], ["get", "mine"], ["--help"]):
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not CONTROL.search(done.stdout + done.stderr)


def test_a_terminal_gets_a_progress_bar(fake: FakeScheduler) -> None:
    queue(fake)
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "140"}
    child = subprocess.Popen(
        [*COMMAND, "watch", "mine"], stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    screen = b""
    try:
        while part := os.read(ours, 4096):
            screen += part
    except OSError:  # the child's end is closed
        pass
    assert child.wait(30) == 0
    assert child.stdout
    assert b"on time" in child.stdout.read()
    assert "━" in screen.decode(errors="replace")
    assert b"14/14 steps" in screen


def test_interrupting_a_wait_leaves_the_request_and_says_how_to_go_on(fake: FakeScheduler) -> None:
    queue(fake)

    def hang(context: grpc.ServicerContext) -> None:
        while context.is_active():
            time.sleep(0.01)

    fake.streams["mine"] = [[*fake.streams["mine"][0][:2], hang]]
    child = subprocess.Popen(
        [*COMMAND, "watch", "mine", "-o", "h.png"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr
    assert child.stderr.readline() == "mine: queued\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == cli.INTERRUPTED
    assert "tetriserve watch mine -o h.png" in said
    assert "tetriserve cancel mine" in said
    assert "Traceback" not in said
    assert not fake.calls("Cancel")


def test_help_explains_itself() -> None:
    assert "Exit status:" in run("--help").stdout
    for name in cli.main.commands:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert "--scheduler HOST:PORT" in result.stdout
        assert "--json" in result.stdout


def test_printable_keeps_words_and_drops_steering() -> None:
    assert show.printable("maison à 5 €\x1b[31m\n") == "maison à 5 €�[31m�"


def test_a_full_disk_is_one_line(fake: FakeScheduler) -> None:
    queue(fake)
    result = run("get", "mine", "-o", "/dev/full")
    assert result.exit_code == 1
    assert result.stderr == "Error: cannot write: [Errno 28] No space left on device\n"


@pytest.mark.usefixtures("fake")
def test_bytes_that_are_no_text_are_refused() -> None:
    for words in (["submit", b"bad\xff"], ["get", b"bad\xff"]):
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "\\udcff' is not valid" in done.stderr
