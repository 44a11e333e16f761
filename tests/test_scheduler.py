"""The real scheduler process over gRPC. The executors sleep instead of computing (pretend_executor.py);
tests with real ones are in test_end_to_end.py.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pretend_executor import MODEL, step_times

from scheduler.config import Config
from scheduler.driver import Driver
from scheduler.fleet import Fleet
from scheduler.journal import Journal
from scheduler.rounds import Rounds
from scheduler.service import SchedulerService
from tetriserve import Client, errors
from tetriserve.local import _free_port
from tetriserve.types import Stage, Verdict
from tetriserve.v1 import executor_pb2, scheduler_pb2, types_pb2

PRETEND = str(Path(__file__).with_name("pretend_executor.py"))


class Processes:
    """A scheduler and pretended executors that a test starts and stops as it likes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = f"127.0.0.1:{_free_port()}"
        self.running: list[subprocess.Popen[str]] = []

    def scheduler(self, *options: str) -> subprocess.Popen[str]:
        words = ["-m", "scheduler", "--listen", self.target, "--data-dir", str(self.folder / "data")]
        return self._start(*words, "--policy", "edf", "--lease", "3", *options)

    def executor(self, *options: str) -> subprocess.Popen[str]:
        return self._start(PRETEND, "--scheduler", self.target, *options)

    def wait(self, client: Client, executors: int) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            cluster = client.cluster()
            if len(cluster.executors) == executors and cluster.ready:
                return
            time.sleep(0.05)
        raise AssertionError(f"no {executors} executors: {client.cluster()}")

    def _start(self, *words: str) -> subprocess.Popen[str]:
        # A scheduler that is planning at full speed must not flood a pipe that nobody reads.
        with (self.folder / f"{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, text=True)
        self.running.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.running):
            process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.stop()


@pytest.fixture
def client(processes):
    with Client(processes.target, patience=20) as client:
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cluster of two executors for tests that leave it as it was."""
    processes = Processes(tmp_path_factory.mktemp("shared"))
    processes.scheduler("--queue-limit", "20")
    for _ in range(2):
        processes.executor("--fail-prompt", "poison")
    with Client(processes.target, patience=20) as client:
        processes.wait(client, 2)
        yield client
    processes.stop()


def test_a_request_becomes_an_image(shared):
    request = shared.submit("a house", "256x512", steps=5, seed=40, deadline=30)
    stages = [event.status.stage for event in shared.watch(request.id)]
    assert stages[-1] is Stage.DONE
    status = shared.get(request.id)
    assert status.verdict is Verdict.ON_TIME
    assert status.steps_done == 5
    assert sum(span.steps for span in status.spans) == 5
    assert [s.stage for s in (status.spans[0], status.spans[-1])] == [Stage.ENCODING, Stage.DECODING]
    assert status.gpu_seconds > 0
    image = shared.result(request.id)
    assert image.size == (256, 512)
    assert image.getpixel((0, 0)) == (40, 90, 60)


def test_a_wide_request_uses_both_executors_and_a_deadline_that_cannot_be_met_is_late(shared):
    request = shared.submit("a house", "1024x1024", steps=4, deadline=0.3)
    status = shared.wait(request.id)
    assert status.verdict is Verdict.LATE
    assert status.stage is Stage.DONE
    request = shared.submit("a house", "1024x1024", steps=8, deadline=0.95)
    status = shared.wait(request.id)
    assert 2 in {len(span.slots) for span in shared.get(request.id).spans}


def test_a_late_request_that_wants_to_be_dropped_is(shared):
    request = shared.submit("a house", "1024x1024", steps=50, deadline=0.1, on_late="drop")
    status = shared.wait(request.id)
    assert status.stage is Stage.DROPPED
    assert "deadline" in status.error
    with pytest.raises(errors.RequestEnded):
        shared.result(request.id)
    with pytest.raises(errors.FailedPrecondition, match="it is dropped: the deadline"):
        shared.image(request.id)


def test_the_same_request_again_gets_the_same_answer_and_another_one_is_refused(shared):
    first = shared.submit("a house", "256x256", steps=2, seed=1, id="again")
    assert shared.submit("a house", "256x256", steps=2, seed=1, id="again").submitted_at == first.submitted_at
    shared.wait("again")
    assert shared.submit("a house", "256x256", steps=2, seed=1, id="again").stage is Stage.DONE
    with pytest.raises(errors.AlreadyExists, match="again"):
        shared.submit("a boat", "256x256", steps=2, seed=1, id="again")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": (250, 256)}, "width.*multiples of 16"),
        ({"size": (256, 4096)}, "height.*2048"),
        ({"steps": 101}, "steps.*1 to 100"),
        ({"deadline": 1e9}, "deadline"),
        ({"weight": 1e9}, "weight"),
        ({"id": "../etc"}, "^id: "),
        ({"guidance": 1000.0}, "guidance"),
        ({"prompt": "x" * 20_000}, "prompt.*10000"),
        ({"negative_prompt": "x" * 20_000}, "negative_prompt.*10000"),
        ({"lora": "oil"}, "lora: 'oil' is not known; there are sketch, water.colour"),
        ({"lora": "sketch:11"}, "lora_scale: 11 is not allowed; -10 to 10 is"),
    ],
)
def test_bad_input_names_the_field_and_what_is_allowed(shared, wrong, words):
    good = {"prompt": "a house", "size": (256, 256), "steps": 2}
    with pytest.raises(errors.InvalidArgument, match=words):
        shared.submit(**(good | wrong))


def test_a_request_names_an_adapter_that_the_executors_have(shared):
    assert shared.cluster().model.loras == ("sketch", "water.colour")
    id = shared.submit("a house", "256x256", steps=2, lora="sketch:0.5").id
    image = shared.wait(id).request.image
    assert (image.lora, image.lora_scale) == ("sketch", 0.5)


def test_unknown_ids_are_not_found(shared):
    for call in (shared.get, shared.cancel, shared.image, lambda i: list(shared.watch(i))):
        with pytest.raises(errors.NotFound, match="nobody"):
            call("nobody")


def test_a_poisonous_request_fails_alone(shared):
    poison = shared.submit("poison", "256x256", steps=2)
    good = shared.submit("a house", "256x256", steps=2)
    status = shared.wait(poison.id)
    assert status.stage is Stage.FAILED
    assert "told to fail" in status.error
    assert shared.wait(good.id).stage is Stage.DONE
    assert len(shared.cluster().executors) == 2


def test_cancel_ends_a_running_request_and_leaves_an_ended_one(shared):
    request = shared.submit("a house", "1024x1024", steps=100)
    for event in shared.watch(request.id):
        if event.status.stage is Stage.DENOISING:
            break
    with pytest.raises(errors.FailedPrecondition, match="denoising"):
        shared.image(request.id)
    assert shared.cancel(request.id).stage is Stage.CANCELLED
    until = time.monotonic() + 10
    while any(request.id in e.request_ids for e in shared.cluster().executors):
        assert time.monotonic() < until
        time.sleep(0.02)
    done = shared.submit("a house", "256x256", steps=1)
    shared.wait(done.id)
    assert shared.cancel(done.id).stage is Stage.DONE


def test_a_full_queue_refuses_and_recovers(shared):
    # Those of other tests may still be on their way out.
    free = 20 - shared.cluster().outstanding
    accepted = [shared.submit("a house", "1024x1024", steps=50) for _ in range(free)]
    with pytest.raises(errors.ResourceExhausted, match="20 requests"):
        shared.submit("a house", "1024x1024", steps=50)
    for request in accepted:
        shared.cancel(request.id)
    assert shared.wait(shared.submit("a house", "256x256", steps=1).id).stage is Stage.DONE


def test_lists_come_newest_first_and_by_stage(shared):
    ids = [shared.submit("a house", "256x256", steps=1).id for _ in range(3)]
    for request_id in ids:
        shared.wait(request_id)
    assert [status.id for status in shared.list(limit=3)] == ids[::-1]
    assert {status.stage for status in shared.list(Stage.DONE)} == {Stage.DONE}


def test_a_quote_is_a_deadline_that_can_be_met(shared):
    quote = shared.quote("512x512", steps=10)
    assert 0 < quote.alone <= quote.earliest
    assert quote.gpu_seconds > 0
    status = shared.wait(shared.submit("a house", "512x512", steps=10, deadline=quote.earliest * 2).id)
    assert status.verdict is Verdict.ON_TIME
    with pytest.raises(errors.InvalidArgument, match="width"):
        shared.quote("13x512")


def test_the_policy_changes_while_it_runs(shared):
    assert shared.set_policy("fixed:2") == "fixed:2"
    try:
        status = shared.wait(shared.submit("a house", "256x256", steps=2).id)
        spans = shared.get(status.id).spans
        assert {len(s.slots) for s in spans if s.stage is Stage.DENOISING} == {2}
        with pytest.raises(errors.InvalidArgument, match="cp-sat"):
            shared.set_policy("best")
    finally:
        shared.set_policy("edf")


def test_health_and_reflection(shared):
    with grpc.insecure_channel(shared.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="tetriserve.v1.SchedulerService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        (found,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([listing]))
        names = {service.name for service in found.list_services_response.service}
        assert {"tetriserve.v1.SchedulerService", "tetriserve.v1.FleetService"} <= names


def test_without_executors_it_says_so(processes):
    processes.scheduler()
    with Client(processes.target, patience=0) as client:
        until = time.monotonic() + 20
        while True:
            try:
                client.cluster()
                break
            except errors.Unavailable:
                assert time.monotonic() < until
                time.sleep(0.05)
        with pytest.raises(errors.Unavailable, match="python -m executor"):
            client.submit("a house", "256x256", steps=2)


class Aborted(Exception):
    """A call was refused."""


class Context:
    """What a handler needs of a call's context."""

    async def abort(self, code, words):
        raise Aborted(f"{code.name}: {words}")


def test_once_all_executors_have_left_requests_wait(tmp_path):
    """In process. What may be asked for is known from those who were there."""

    async def scene():
        driver = Driver(
            Rounds(Config()), Fleet(8), Journal(tmp_path), "edf", budget_s=1.0, lease_s=6.0, expect=1
        )
        service = SchedulerService(driver, queue_limit=9)
        registration = executor_pb2.Registration(
            instance="i", address="a:1", store="a:2", node="n", model=MODEL, step_times=step_times()
        )
        executor = driver.fleet.admit(registration, driver.now())
        driver.joined(executor)
        driver.lost(executor, "it has left")
        image = types_pb2.ImageSpec(prompt="a house", width=512, height=512)
        wanted = scheduler_pb2.SubmitRequest(request=types_pb2.Request(id="r", image=image))
        answer = await service.Submit(wanted, Context())
        assert answer.status.stage == types_pb2.STAGE_QUEUED
        assert answer.status.request.image.steps == MODEL.default_steps
        wanted.request.image.width = 13
        with pytest.raises(Aborted, match=r"INVALID_ARGUMENT: image\.width"):
            await service.Submit(wanted, Context())
        why = "all executors have left: requests wait until one joins"
        with pytest.raises(Aborted, match=f"UNAVAILABLE: the cluster is not ready: {why}"):
            await service.Quote(scheduler_pb2.QuoteRequest(image=image), Context())
        cluster = await service.GetCluster(scheduler_pb2.GetClusterRequest(), Context())
        assert list(cluster.warnings) == [why]
        # Another model may follow; what waits goes on with whoever joins.
        registration.model.fingerprint = "another"
        driver.joined(driver.fleet.admit(registration, driver.now()))
        assert driver.ready
        assert driver.fleet.model.fingerprint == "another"
        await driver.close()

    asyncio.run(scene())


def test_a_node_of_slower_devices_is_planned_at_its_own_pace(tmp_path):
    async def scene() -> None:
        rounds = Rounds(Config(), None)
        driver = Driver(
            rounds, Fleet(4), Journal(tmp_path), "edf", budget_s=0.1, lease_s=10, expect=1, warm_groups=False
        )
        for node, factor in (("quick", 1.0), ("slow", 2.0)):
            registration = executor_pb2.Registration(
                instance=node, address="a:1", store="a:2", node=node, model=MODEL, step_times=step_times()
            )
            for entry in registration.step_times:
                entry.seconds *= factor
            driver.joined(driver.fleet.admit(registration, driver.now()))
        assert set(rounds.profiles) == {"slow"}
        assert rounds.profiles["slow"].step(512, 512) == pytest.approx(2 * rounds.profile.step(512, 512))
        await driver.close()

    asyncio.run(scene())


def test_an_executor_that_dies_takes_no_request_with_it(processes, client):
    processes.scheduler("--expect", "2")
    survivor, victim = processes.executor(), processes.executor()
    processes.wait(client, 2)
    requests = [client.submit("a house", "512x512", steps=20).id for _ in range(3)]
    for event in client.watch(requests[0]):
        if event.status.steps_done > 2:
            break
    victim.kill()
    for request_id in requests:
        assert client.wait(request_id, timeout=60).stage is Stage.DONE
    assert survivor.poll() is None
    assert len(client.cluster().executors) == 1


def test_a_silent_executor_is_lost_when_its_lease_ends(processes, client):
    processes.scheduler()
    processes.executor()
    silent = processes.executor()
    processes.wait(client, 2)
    silent.send_signal(signal.SIGSTOP)
    processes.wait(client, 1)
    assert client.wait(client.submit("a house", "256x256", steps=2).id, timeout=30).stage is Stage.DONE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restarted_scheduler_goes_on_with_what_was_accepted(processes, client, number):
    scheduler = processes.scheduler()
    executor = processes.executor()
    processes.wait(client, 1)
    done = client.wait(client.submit("a house", "256x256", steps=1).id).id
    requests = [client.submit("a house", "512x512", steps=20).id for _ in range(3)]
    for event in client.watch(requests[0]):
        if event.status.steps_done > 2:
            break
    scheduler.send_signal(number)
    status = scheduler.wait(20)
    assert status == (0 if number == signal.SIGTERM else -number)
    executor.kill()
    processes.scheduler()
    processes.executor()
    for request_id in requests:
        assert client.wait(request_id, timeout=60).stage is Stage.DONE
    assert client.get(done).stage is Stage.DONE
    assert client.result(done).size == (256, 256)


def test_a_given_profile_goes_before_what_executors_have_measured(processes, client):
    file = processes.folder / "profile.csv"
    lines = [
        "kind,width,height,degree,batch,seconds,cv,basis,source,repeats,peak_mib",
        "step,256,256,1,1,7,0.0,measured,a test,3,",
        "step,256,256,2,1,5,0.0,measured,a test,3,",
    ]
    file.write_text("\n".join(lines))
    processes.scheduler("--profile", str(file))
    for _ in range(2):
        processes.executor()
    processes.wait(client, 2)
    # Pretended executors say that a step takes milliseconds.
    assert client.quote("256x256", steps=3).alone >= 15


def test_no_torch_in_the_scheduler(processes, client):
    scheduler = processes.scheduler("--policy", "edf")
    processes.executor()
    processes.wait(client, 1)
    client.wait(client.submit("a house", "256x256", steps=2).id)
    maps = Path(f"/proc/{scheduler.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert "torch" not in maps.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--policy", "best"], "cp-sat"),
        (["--listen", "nowhere:7700"], "nowhere"),
        (["--listen", "127.0.0.1:99999"], "99999"),
        (["--listen", "localhost"], "HOST:PORT"),
        (["--node-size", "3"], "power of two"),
        (["--round", "nan"], "'--round': nan is no finite number"),
        (["--margin", "inf"], "'--margin': inf is no finite number"),
        (["--lead", "-1"], "'--lead': -1.0 is not in the range x>=0"),
        (["--data-dir", "/proc/none"], "/proc/none"),
        (["--profile", "/no/such/file"], "/no/such/file"),
        (["--profile", __file__], "no column degree, height, seconds_per_step, width"),
    ],
)
def test_bad_options_get_a_clear_error(tmp_path, words, says):
    options = ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path), "--policy", "edf", *words]
    ended = subprocess.run(
        [sys.executable, "-m", "scheduler", *options],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ,
        check=False,
    )
    assert ended.returncode != 0
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_said_in_a_line(tmp_path, host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"{host}:{taken.getsockname()[1]}"
        ended = subprocess.run(
            [sys.executable, "-m", "scheduler", "--listen", address, "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f'cannot listen  address={address} error="Address already in use"' in line
