"""How an executor starts: its command line, the built-in model, and its link to the scheduler."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_fleet import FakeFleet
from PIL import Image

from executor import builtin, command
from executor.link import Link, Refused, Session
from executor.once import alone
from executor.post import Post
from tetriserve.transport import host_port
from tetriserve.v1 import executor_pb2 as pb


@pytest.fixture(autouse=True)
def _leave_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command is called in here: its logs and signals are not for the tests' own process."""
    monkeypatch.setattr("tetriserve.logs.setup", lambda *_: None)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def fleet() -> Iterator[FakeFleet]:
    fleet = FakeFleet()
    yield fleet
    fleet.stop()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheduler", "nowhere"], "--scheduler: expected HOST:PORT, not 'nowhere'"),
        (["--scheduler", "host:0"], "--scheduler: the port is a number up to 65535"),
        (["--listen", "127.0.0.1:99999"], "--listen: the port is a number up to 65535"),
        (["--listen", "0.0.0.0:7000"], "--advertise: say by which address peers reach this host"),
        (["--advertise", "bogus.invalid"], "--advertise: cannot listen at bogus.invalid"),
        (["--advertise", "192.0.2.1"], "--advertise: cannot listen at 192.0.2.1"),
        (["--grace", "nan"], "'--grace': nan is no finite number"),
        (["--group-timeout", "inf"], "'--group-timeout': inf is no finite number"),
        (["--listen", "bogus.invalid:0"], "--listen: cannot listen at bogus.invalid"),
        (["--roles", "denoise,encode,denoise"], "expected each role once, not denoise again"),
        (["--device", "tpu"], "--device: expected cpu or cuda:N, not 'tpu'"),
        (["--device", "cuda:99"], "--device: there is no cuda:99"),
        (["--dtype", "int8"], "'int8' is not one of"),
        (["--attention", "sage"], "'sage' is not one of"),
        (["--attention", "flash"], "here there are sdpa, math"),
        (["--threads", "0"], "--threads"),
        (["--sizes", "64"], "'64' is no list of sizes such as 256x256,512x512"),
        (["--model", "/no/such/folder"], "--model: /no/such/folder is no folder"),
    ],
)
def test_bad_settings_are_named(words: list[str], message: str):
    result = CliRunner().invoke(command.main, words)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "_run", lambda _: pytest.fail("it went on"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(command.main, ["--listen", f"127.0.0.1:{port}"])
    assert result.exit_code == 2
    assert f"--listen: cannot listen at 127.0.0.1, port {port}: Address already in use" in result.output


def test_a_bad_model_folder_is_named(tmp_path: Path):
    result = CliRunner().invoke(command.main, ["--model", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path} has no model_index.json" in result.output
    index = '{"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]}'
    (tmp_path / "model_index.json").write_text(index)
    result = CliRunner().invoke(command.main, ["--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "incomplete" in result.output


def test_settings_come_from_the_environment():
    result = CliRunner().invoke(command.main, env={"TETRISERVE_SCHEDULER": "nowhere"})
    assert "not 'nowhere'" in result.output
    result = CliRunner().invoke(command.main, env={"TETRISERVE_EXECUTOR_DEVICE": "abacus"})
    assert "not 'abacus'" in result.output


def test_help_names_every_option_and_its_default():
    text = CliRunner().invoke(command.main, ["--help"], terminal_width=100).output
    for option in ("--scheduler", "--device", "--model", "--dtype", "--listen", "--threads", "--log-format"):
        assert option in text
    assert "127.0.0.1:7700" in text
    assert "TETRISERVE_SCHEDULER" in text


def test_addresses_with_ipv6():
    assert host_port("[::1]:70", "--x") == ("::1", 70)
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        host_port("::1", "--x")


def test_the_builtin_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[Path] = []

    def write(folder: Path) -> None:
        made.append(folder)
        (folder / "model_index.json").write_text("{}")

    # Not the trained one, and not the time that writing a model takes.
    (tmp_path / "source").mkdir()
    monkeypatch.setattr(builtin, "SOURCE", tmp_path / "source")
    monkeypatch.setattr("model.layout.write_checkpoint", write)
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(builtin.checkpoint, [tmp_path / "cache"] * 4))
    assert len(set(folders)) == 1
    assert len(made) == 1
    assert [p.name for p in folders[0].parent.iterdir() if p.is_dir()] == [folders[0].name]


def test_a_shipped_model_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model_index.json").write_text("{}")
    monkeypatch.setattr(builtin, "SOURCE", tmp_path)
    assert builtin.checkpoint(tmp_path / "cache") == tmp_path / "checkpoint"


def test_a_lock_is_free_again_after_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError), alone(tmp_path / "lock", "failing"):
        raise RuntimeError
    with alone(tmp_path / "lock", "trying again"):
        pass


class Handler:
    """Remembers what the link says."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.commands: list[pb.JoinResponse] = []
        self.parted_sessions: list[Session] = []

    def joined(self, session: Session) -> None:
        self.sessions.append(session)

    def command(self, session: Session, command: pb.JoinResponse) -> None:
        assert session is self.sessions[-1]
        self.commands.append(command)

    def parted(self, session: Session) -> None:
        self.parted_sessions.append(session)


REGISTRATION = pb.Registration(instance="i", address="127.0.0.1:1", store="127.0.0.1:2")


async def until(look) -> None:
    async with asyncio.timeout(20):
        while not look():  # noqa: ASYNC110 (what is looked at tells nobody of its changes)
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def linked(address: str, handler: Handler) -> Iterator[tuple[Link, Post]]:
    post = Post()
    yield Link(address, lambda: REGISTRATION, handler, post), post
    post.close()


def test_a_refused_executor_gives_up(fleet: FakeFleet):
    fleet.refusal = "this cluster serves another model"

    async def scenario() -> None:
        with linked(fleet.address, Handler()) as (link, _):
            await link.run()

    with pytest.raises(Refused, match="another model"):
        asyncio.run(scenario())


def test_the_link_finds_a_scheduler_that_starts_later_and_one_that_restarts():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def scenario(link: Link, handler: Handler) -> None:
        running = asyncio.create_task(link.run())
        await asyncio.sleep(0.3)
        first = await asyncio.to_thread(FakeFleet, port, "first")
        await until(lambda: len(handler.sessions) == 1)
        first.send([0], release=pb.Release(request_id="r"))
        await until(lambda: handler.commands)
        tasks = len(asyncio.all_tasks())
        await asyncio.to_thread(first.stop)
        await until(lambda: handler.parted_sessions)
        second = await asyncio.to_thread(FakeFleet, port, "second")
        await until(lambda: len(handler.sessions) == 2)
        assert [s.term for s in handler.sessions] == ["first", "second"]
        # Nothing is left that waits for what the first session would have to say.
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        # What belongs to the first session does not reach the second scheduler.
        handler.sessions[0].report(pb.JoinRequest(step_done=pb.StepDone(order_id=1)))
        handler.sessions[1].report(pb.JoinRequest(step_done=pb.StepDone(order_id=2)))
        link.close()
        await asyncio.wait_for(running, 10)
        assert [r.step_done.order_id for r in second.seats[0].reports if r.HasField("step_done")] == [2]
        await asyncio.to_thread(second.stop)

    async def run() -> None:
        handler = Handler()
        with linked(f"127.0.0.1:{port}", handler) as (link, _):
            await scenario(link, handler)

    asyncio.run(run())


def test_the_post_makes_calls_on_the_loop_in_their_order_and_none_on_a_closed_one():
    calls: list[tuple[int, str]] = []

    async def scenario() -> Post:
        post = Post()
        note = lambda number: calls.append((number, threading.current_thread().name))  # noqa: E731
        await asyncio.to_thread(lambda: [post.call(note, number) for number in range(100)])
        await post.flush()
        assert calls == [(number, threading.current_thread().name) for number in range(100)]
        return post

    post = asyncio.run(scenario())
    post.call(calls.append, (100, ""))
    post.close()
    post._thread.join(10)
    assert not post._thread.is_alive()
    assert len(calls) == 100


def test_an_image_that_cannot_be_uploaded_ends_the_order_as_aborted(fleet: FakeFleet):
    from executor.courier import Courier
    from executor.jobs import Job

    async def scenario() -> None:
        handler = Handler()
        with linked(fleet.address, handler) as (link, post):
            running = asyncio.create_task(link.run())
            await until(lambda: handler.sessions)
            fleet.failing_uploads = 100
            courier = Courier(post)
            job = Job(pb.Order(id=9, parts=[pb.Part(request_id="r")]), handler.sessions[0])
            done = pb.OrderDone(order_id=9, outcome=pb.OUTCOME_OK)
            await asyncio.to_thread(courier.image, job, Image.new("RGB", (8, 8)), done)
            # It must not be taken for done by an upload that has not begun.
            await until(lambda: fleet.seats[0].reports)
            await courier.flush()
            await courier.close()
            link.close()
            await asyncio.wait_for(running, 10)

    asyncio.run(scenario())
    (done,) = [r.order_done for r in fleet.seats[0].reports if r.HasField("order_done")]
    assert done.outcome == pb.OUTCOME_ABORTED
    assert "not uploaded" in done.error


def test_a_signal_while_it_loads_ends_it_well():
    """Also in the middle of an `exec`, with which libraries make classes when they are imported."""
    code = (
        "from executor import command\n"
        "command._run = lambda config: exec('raise KeyboardInterrupt')\n"
        "command.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "stopped before it was ready" in done.stderr
