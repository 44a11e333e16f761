"""Real executors, each a process, against a fake scheduler (`fake_fleet`); real gRPC and collectives.

The executors are shared by the tests of this file, which run in its order: the last ones end them.
"""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from fake_fleet import LEASE_S, FakeFleet
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from safetensors.numpy import load

from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import executor_pb2_grpc as rpc
from tetriserve.v1 import types_pb2 as types

ENCODE, DENOISE, DECODE = types.STAGE_ENCODING, types.STAGE_DENOISING, types.STAGE_DECODING
OK, ERROR, ABORTED, RETURNED = (
    pb.OUTCOME_OK,
    pb.OUTCOME_ERROR,
    pb.OUTCOME_ABORTED,
    pb.OUTCOME_RETURNED,
)
IMAGE, CHECKPOINT = pb.UploadHeader.KIND_IMAGE, pb.UploadHeader.KIND_CHECKPOINT
STEPS = 6
# 15 image tokens: no degree divides them.
RED_HOUSE = types.ImageSpec(prompt="a red house", width=80, height=48, steps=STEPS, seed=7)
# So many steps that a test can do something in the middle of them.
LONG = types.ImageSpec(prompt="a long road", width=256, height=256, steps=1000, seed=1)


class Executor:
    """A process, its log, and its seat in the fleet."""

    def __init__(self, fleet: FakeFleet, model: Path, folder: Path, number: int) -> None:
        self.log = folder / f"executor-{number}.log"
        words = ["--scheduler", fleet.address, "--model", str(model), "--sizes", "64x64"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "executor", *words, "--cache-dir", str(folder / "cache")],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TETRISERVE_LOG_LEVEL": "debug"},
            )

    @property
    def pid(self) -> int:
        return self.process.pid


class Cluster:
    """Three executors; `executors[slot]` sits in that slot."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.fleet = FakeFleet()
        started = [Executor(self.fleet, model, folder, number) for number in range(3)]
        try:
            self.fleet.wait(lambda: len(self.fleet.seats) == len(started), timeout=90)
        except AssertionError:
            self.stop(started)
            raise AssertionError("\n".join(e.log.read_text() for e in started)) from None
        self.executors = started
        self.executors = self.seated(started)

    def seated(self, executors: Sequence[Executor]) -> list[Executor]:
        """The executors by slot: a seat's port is the process that listens on it."""
        by_port = {
            connection.laddr.port: executor
            for executor in executors
            for connection in psutil.Process(executor.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        seats = [self.fleet.seats[slot] for slot in range(len(executors))]
        return [by_port[int(seat.registration.address.rpartition(":")[2])] for seat in seats]

    def stop(self, executors: Sequence[Executor] | None = None) -> None:
        for executor in executors or self.executors:
            executor.process.kill()
            executor.process.wait()
        self.fleet.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from model.layout import write_checkpoint

    folder = tmp_path_factory.mktemp("executors")
    shape = {"double_blocks": 1, "single_blocks": 1, "text_width": 32, "vae_channels": (8, 8, 8, 8)}
    cluster = Cluster(folder, write_checkpoint(folder / "model", heads=4, head_dim=16, **shape))
    yield cluster
    cluster.stop()


@pytest.fixture
def fleet(cluster: Cluster) -> FakeFleet:
    return cluster.fleet


def latent(data: bytes) -> np.ndarray:
    return load(data)["latent"]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def outcomes(done: Sequence[pb.OrderDone]) -> list[int]:
    return [d.outcome for d in done]


def behind(done: pb.OrderDone) -> int:
    """Steps behind the order's only request; 0 where nothing of it is held."""
    return sum(state.step for state in done.held)


def fetch(fleet: FakeFleet, slot: int, request_id: str, step: int) -> dict[str, np.ndarray]:
    """A state, asked for as a peer would."""
    with grpc.insecure_channel(fleet.seats[slot].registration.address) as channel:
        request = pb.FetchStateRequest(request_id=request_id, step=step)
        parts = rpc.ExecutorServiceStub(channel).FetchState(request, timeout=20)
        return load(b"".join(part.chunk for part in parts))


def held(fleet: FakeFleet, slot: int, request_id: str, step: int) -> bool:
    try:
        fetch(fleet, slot, request_id, step)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return True


def run(fleet: FakeFleet, slots: Sequence[int], *args: object, **more: object) -> list[pb.OrderDone]:
    return fleet.done(fleet.order(slots, *args, **more), slots)


@pytest.fixture(scope="module")
def reference(cluster: Cluster) -> tuple[np.ndarray, np.ndarray]:
    """Final latent and pixels of RED_HOUSE, all of it on one executor."""
    fleet = cluster.fleet
    for stage, steps, first in ((ENCODE, 0, 0), (DENOISE, STEPS, 0), (DECODE, 0, STEPS)):
        (done,) = run(fleet, [0], "reference", stage, RED_HOUSE, steps=steps, first_step=first)
        assert done.outcome == OK, done
    final = latent(fleet.upload(CHECKPOINT, "reference", STEPS))
    return final, pixels(fleet.upload(IMAGE, "reference", STEPS))


def test_registers_with_model_and_step_times_and_keeps_its_lease(fleet):
    first, second, third = (fleet.seats[slot].registration for slot in range(3))
    assert len({first.instance, second.instance, third.instance}) == 3
    assert first.model == second.model == third.model
    assert first.model.family == "flux"
    assert (first.model.size_multiple, first.model.max_steps) == (16, 1000)
    assert first.model.max_pixels >= 2048 * 2048
    kinds = {(t.kind, t.width, t.batch) for t in first.step_times}
    assert {(pb.StepTime.KIND_STEP, 64, batch) for batch in (1, 2, 4)} < kinds
    assert {(pb.StepTime.KIND_DECODE, 64, 1), (pb.StepTime.KIND_ENCODE, 0, 1)} < kinds
    assert all(t.seconds > 0 for t in first.step_times)
    (layer,) = [t for t in first.step_times if t.kind == pb.StepTime.KIND_LAYER]
    (step,) = [
        t
        for t in first.step_times
        if (t.kind, t.width, t.degree, t.batch) == (pb.StepTime.KIND_STEP, layer.width, 1, 1)
    ]
    assert layer.seconds * 2 == pytest.approx(step.seconds)
    # One measured, the others waited for what it wrote.
    assert first.step_times == second.step_times == third.step_times
    seat = fleet.seats[0]
    beats = len([r for r in seat.reports if r.HasField("heartbeat")])
    fleet.wait(lambda: len([r for r in seat.reports if r.HasField("heartbeat")]) >= beats + 2, 3 * LEASE_S)


def test_answers_health_checks_and_reflection(fleet):
    with grpc.insecure_channel(fleet.seats[0].registration.address) as channel:
        check = health_pb2.HealthCheckRequest(service="tetriserve.v1.ExecutorService")
        answer = health_pb2_grpc.HealthStub(channel).Check(check, timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert "tetriserve.v1.ExecutorService" in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_one_executor_draws(fleet, reference):
    final, drawn = reference
    assert drawn.shape == (RED_HOUSE.height, RED_HOUSE.width, 3)
    assert drawn.std() > 0
    assert np.isfinite(final).all()
    done = [r.order_done for r in fleet.seats[0].reports if r.HasField("order_done")]
    assert [behind(d) for d in done[:3]] == [0, STEPS, STEPS]
    assert all(d.seconds > 0 for d in done[:3])
    assert [s.step for s in fleet.steps(done[1].order_id, 0)] == list(range(STEPS))


def test_changing_groups_draw_the_same(fleet, reference):
    """Orders are given all at once: newcomers wait for what their holders do not have yet."""
    parts = [([1], 1), ([1, 2], 1), ([0, 1, 2], 2), ([2, 0], 1), ([1], 1)]
    fleet.failing_uploads = 1  # a lost upload is repeated
    orders = [([1], fleet.order([1], "moving", ENCODE, RED_HOUSE))]
    step, holders = 0, [1]
    for slots, steps in parts:
        more = {"first_step": step, "steps": steps, "holders": holders}
        orders.append((slots, fleet.order(slots, "moving", DENOISE, RED_HOUSE, **more)))
        step, holders = step + steps, slots
    # Slot 0 does not hold the end of it.
    orders.append(([0], fleet.order([0], "moving", DECODE, RED_HOUSE, first_step=STEPS, holders=[1])))
    for slots, order in orders:
        done = fleet.done(order, slots)
        assert outcomes(done) == [OK] * len(slots), done
        assert len({behind(d) for d in done}) == 1
        assert not any(fleet.steps(order, slot) for slot in slots[1:])
    assert len(fleet.steps(orders[3][1], 0)) == 2
    final, drawn = reference
    assert np.abs(latent(fleet.upload(CHECKPOINT, "moving", STEPS)) - final).max() <= 1e-5
    assert np.abs(pixels(fleet.upload(IMAGE, "moving", STEPS)) - drawn).max() <= 1


def test_a_batch_draws_what_its_requests_draw_alone(fleet):
    """At different steps, of different lengths, with different guidance, on changing groups."""
    size = {"width": RED_HOUSE.width, "height": RED_HOUSE.height}
    specs = {
        "x": types.ImageSpec(prompt="a red house", steps=9, seed=1, **size),
        "y": types.ImageSpec(prompt="a boat at night", steps=12, seed=2, guidance=1.5, **size),
        "z": types.ImageSpec(prompt="", steps=7, seed=3, guidance=7.0, **size),
    }
    alone = {}
    for name, image in specs.items():
        run(fleet, [0], f"alone {name}", DENOISE, image, steps=image.steps)
        alone[name] = latent(fleet.upload(CHECKPOINT, f"alone {name}", image.steps))
    at, holders = dict.fromkeys(specs, 0), dict.fromkeys(specs, ())
    orders = []
    # All given at once: a batch waits for what its requests do before.
    for slots, names, steps in (
        ([0], "x", 2),
        ([1], "y", 1),
        ([1, 2], "xy", 3),
        ([2], "z", 1),
        ([0, 2, 1], "xyz", 2),
        ([2, 0], "zy", 4),
        ([1], "yx", 2),
    ):
        parts = [fleet.part(name, specs[name], at[name], holders[name]) for name in names]
        orders.append((slots, names, steps, fleet.batch(slots, DENOISE, parts, steps=steps)))
        for name in names:
            at[name], holders[name] = at[name] + steps, slots
    assert at == {name: image.steps for name, image in specs.items()}
    for slots, names, steps, order in orders:
        done = fleet.done(order, slots)
        assert outcomes(done) == [OK] * len(slots), done
        assert all(sorted(state.request_id for state in d.held) == sorted(names) for d in done)
        assert [(s.step, s.batch) for s in fleet.steps(order, slots[0], steps)] == [
            (step, len(names)) for step in range(steps)
        ]
    for name, image in specs.items():
        final = latent(fleet.upload(CHECKPOINT, name, image.steps))
        assert np.abs(final - alone[name]).max() <= 1e-5


def test_a_request_can_leave_a_batch(fleet):
    parts = [fleet.part(name, LONG) for name in ("leaves", "stays")]
    order = fleet.batch([0, 1], DENOISE, parts, steps=40)
    fleet.steps(order, 0, at_least=2)
    fleet.send([0], truncate=pb.Truncate(order_id=order, request_id="leaves"))
    done = fleet.done(order, [0, 1])
    assert outcomes(done) == [OK, OK]
    held = [{state.request_id: state.step for state in d.held} for d in done]
    assert held[0] == held[1]
    assert held[0]["stays"] == 40
    assert 2 <= held[0]["leaves"] < 40
    batches = [step.batch for step in fleet.steps(order, 0)]
    assert batches == [2] * held[0]["leaves"] + [1] * (40 - held[0]["leaves"])
    # Before it has begun, too; without any request it is handed back.
    first = fleet.order([0, 1], "before", DENOISE, LONG, steps=500)
    less = fleet.batch([1, 0], DENOISE, [*parts[:1], fleet.part("third", LONG)], steps=2)
    none = fleet.batch([0, 1], DENOISE, [fleet.part(name, LONG) for name in ("p", "q")], steps=2)
    fleet.steps(first, 0, at_least=1)
    fleet.send([1], truncate=pb.Truncate(order_id=less, request_id="leaves"))
    for name in ("p", "q"):
        fleet.send([0], truncate=pb.Truncate(order_id=none, request_id=name))
    fleet.send([0], truncate=pb.Truncate(order_id=first, request_id="before"))
    done = fleet.done(less, [1, 0])
    assert outcomes(done) == [OK, OK]
    assert [step.batch for step in fleet.steps(less, 1)] == [1, 1]
    assert {s.request_id: s.step for s in done[0].held}["third"] == 2
    assert outcomes(fleet.done(none, [0, 1])) == [RETURNED, RETURNED]
    for name in ("leaves", "stays", "third", "before"):
        fleet.send([0, 1], release=pb.Release(request_id=name))


def test_a_batch_fails_as_a_whole_and_its_requests_can_go_on_alone(fleet):
    good = fleet.part("good", RED_HOUSE)
    bad = fleet.part("bad", RED_HOUSE, 1, checkpoint=b"not a latent")
    (done,) = fleet.done(fleet.batch([0], DENOISE, [good, bad], steps=1), [0])
    assert done.outcome == ERROR
    other = types.ImageSpec(prompt="?", width=64, height=32, steps=3, seed=0)
    (done,) = fleet.done(fleet.batch([0], DENOISE, [good, fleet.part("other", other)], steps=1), [0])
    assert (done.outcome, "one size" in done.error) == (ERROR, True)
    (done,) = fleet.done(fleet.batch([0], ENCODE, [good, good]), [0])
    assert (done.outcome, "only denoising" in done.error) == (ERROR, True)
    assert outcomes(run(fleet, [0], "good", DENOISE, RED_HOUSE, steps=1)) == [OK]


def test_goes_on_from_a_checkpoint(fleet, reference):
    run(fleet, [1], "resumed", DENOISE, RED_HOUSE, steps=2)
    checkpoint = fleet.upload(CHECKPOINT, "resumed", 2)
    fleet.send([1], release=pb.Release(request_id="resumed"))
    more = {"first_step": 2, "steps": STEPS - 2, "checkpoint": checkpoint}
    done = run(fleet, [2, 1], "resumed", DENOISE, RED_HOUSE, **more)
    assert outcomes(done) == [OK, OK], done
    assert np.abs(latent(fleet.upload(CHECKPOINT, "resumed", STEPS)) - reference[0]).max() <= 1e-5


def test_a_release_frees_the_state_and_ends_waiting(fleet):
    run(fleet, [1], "released", DENOISE, RED_HOUSE, steps=1)
    assert held(fleet, 1, "released", 1)
    # Slot 2 waits for a step that slot 1 never comes to.
    running = fleet.order([1], "other", DENOISE, LONG, steps=900)
    waits_for = fleet.order([1], "released", DENOISE, RED_HOUSE, first_step=1, steps=1)
    waiting = fleet.order([2], "released", DENOISE, RED_HOUSE, first_step=2, steps=1, holders=[1])
    fleet.steps(running, 1, at_least=1)
    fleet.send([2], release=pb.Release(request_id="released"))
    assert outcomes(fleet.done(waiting, [2])) == [RETURNED]
    waiting = fleet.order([2], "released", DENOISE, RED_HOUSE, first_step=2, steps=1, holders=[1])
    fleet.send([1], release=pb.Release(request_id="released"))
    assert outcomes(fleet.done(waiting, [2])) == [ABORTED]
    fleet.send([1], release=pb.Release(request_id="other"))
    (done,) = fleet.done(running, [1])
    assert (done.outcome, behind(done)) == (OK, 0)
    assert outcomes(fleet.done(waits_for, [1])) == [RETURNED]
    assert not held(fleet, 1, "released", 1)
    assert not held(fleet, 2, "released", 1)


def test_a_truncated_group_stops_at_one_step_and_takes_back_what_is_queued(fleet):
    first = fleet.order([0, 1], "cut", DENOISE, LONG, steps=500)
    queued = fleet.order([2, 0, 1], "cut", DENOISE, LONG, first_step=500, steps=100, holders=[0])
    fleet.steps(first, 0, at_least=2)
    fleet.send([2], truncate=pb.Truncate(order_id=queued, request_id="cut"))
    # Slot 2 has nothing else to do; the others are told when they come to it.
    fleet.done(queued, [2])
    fleet.send([0], truncate=pb.Truncate(order_id=first, request_id="cut"))
    done = fleet.done(first, [0, 1])
    assert outcomes(done) == [OK, OK]
    reached = behind(done[0])
    assert 2 <= reached < 500
    assert behind(done[1]) == reached
    assert len(fleet.steps(first, 0)) == reached
    assert outcomes(fleet.done(queued, [2, 0, 1])) == [RETURNED] * 3
    assert not held(fleet, 2, "cut", reached)
    # And on it goes from there.
    done = run(fleet, [1, 2], "cut", DENOISE, LONG, first_step=reached, steps=1, holders=[0, 1])
    assert outcomes(done) == [OK, OK]
    fleet.send([0, 1, 2], release=pb.Release(request_id="cut"))


def test_a_state_that_nobody_has_ends_only_its_order(fleet):
    done = run(fleet, [0, 1], "nowhere", DENOISE, RED_HOUSE, first_step=3, steps=1, holders=[2])
    assert sorted(outcomes(done)) in ([ABORTED, ABORTED], [ABORTED, RETURNED])
    assert "step 3" in "".join(d.error for d in done)
    assert [behind(d) for d in done] == [0, 0]
    # The beginning is made anew; two who take each other for the holder must not wait for each other.
    done = run(fleet, [0, 1], "nowhere", DENOISE, RED_HOUSE, steps=1, holders=[0, 1])
    assert outcomes(done) == [OK, OK]


def test_an_error_ends_only_its_order(fleet):
    bad = types.ImageSpec(prompt="?", width=17, height=64, steps=2, seed=0)
    (done,) = run(fleet, [0], "bad", ENCODE, bad)
    assert done.outcome == ERROR
    assert "width must be a multiple of 16" in done.error
    # In a group: the member that has the state does not wait for the one that cannot begin.
    run(fleet, [0], "half", DENOISE, RED_HOUSE, steps=1)
    more = {"first_step": 1, "steps": 1, "checkpoint": b"not a latent"}
    done = run(fleet, [0, 1], "half", DENOISE, RED_HOUSE, **more)
    assert outcomes(done) == [RETURNED, ERROR]
    (done,) = run(fleet, [0], "half", DENOISE, RED_HOUSE, first_step=1, steps=STEPS)
    assert done.outcome == ERROR
    assert outcomes(run(fleet, [0, 1], "fine", DENOISE, RED_HOUSE, steps=1)) == [OK, OK]


def test_warns_of_a_prompt_that_is_cut(fleet):
    long = types.ImageSpec(prompt="sun " * 500, width=64, height=64, steps=1, seed=0)
    (done,) = run(fleet, [0], "wordy", ENCODE, long)
    assert done.outcome == OK
    assert any("the prompt is cut" in warning for warning in done.warnings)


def test_measures_step_times_of_a_group(fleet):
    wish = pb.StepTime(kind=pb.StepTime.KIND_STEP, width=64, height=64, degree=2, batch=1)
    done = fleet.done(fleet.batch([1, 0], types.STAGE_UNSPECIFIED, [], profile=[wish]), [1, 0])
    assert outcomes(done) == [OK, OK], done
    (measured,) = done[0].step_times
    assert (measured.width, measured.degree, measured.batch) == (64, 2, 1)
    assert measured.seconds > 0


def test_warms_a_group(fleet, cluster):
    done = run(fleet, [2, 0], "", types.STAGE_UNSPECIFIED, types.ImageSpec())
    assert outcomes(done) == [OK, OK], done
    assert not done[0].step_times
    assert done[0].seconds > 0
    assert "warming a group" in cluster.executors[2].log.read_text()


def test_a_frozen_member_is_cut_off(cluster, fleet):
    """The others are blocked in a collective; the abort comes while they are."""
    order = fleet.order([0, 1, 2], "frozen", DENOISE, LONG, steps=900, epoch=5)
    fleet.steps(order, 0, at_least=2)
    os.kill(cluster.executors[2].pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)  # for the others to run into the step that it does not do
        reached = len(fleet.steps(order, 0))
        fleet.send([0, 1], abort_groups=pb.AbortGroups(epoch=6, slots=[2]))
        done = fleet.done(order, [0, 1])
    finally:
        os.kill(cluster.executors[2].pid, signal.SIGCONT)
    assert outcomes(done) == [ABORTED, ABORTED]
    furthest = max(behind(d) for d in done)
    assert furthest >= reached
    holder = [behind(d) for d in done].index(furthest)
    assert held(fleet, holder, "frozen", furthest)
    assert outcomes(fleet.done(order, [2])) == [ABORTED]
    done = run(
        fleet, [1, 0], "frozen", DENOISE, LONG, first_step=furthest, steps=2, holders=[holder], epoch=6
    )
    assert outcomes(done) == [OK, OK]
    fleet.send([0, 1, 2], release=pb.Release(request_id="frozen"))


def test_survivors_of_a_killed_member_go_on(cluster, fleet):
    spec = types.ImageSpec(prompt="a long road", width=256, height=256, steps=40, seed=1)
    run(fleet, [1], "alone", DENOISE, spec, steps=40)
    order = fleet.order([0, 1, 2], "survives", DENOISE, spec, steps=40, epoch=7)
    fleet.steps(order, 0, at_least=3)
    cluster.executors[2].process.kill()
    done = fleet.done(order, [0, 1])
    assert outcomes(done) == [ABORTED, ABORTED]
    furthest = max(behind(d) for d in done)
    assert 3 <= furthest < 40
    holder = [behind(d) for d in done].index(furthest)
    # Orders that the dead one leads end as well, before anybody has told of its death.
    done = fleet.done(fleet.order([2, 0], "led", DENOISE, spec, steps=1, epoch=7), [0])
    assert (done[0].outcome, list(done[0].lost_slots)) == (ABORTED, [2])
    more = {"first_step": 5, "steps": 1, "holders": [1], "epoch": 7}
    done = fleet.done(fleet.order([2, 0], "led", DENOISE, spec, **more), [0])
    assert (done[0].outcome, list(done[0].lost_slots)) == (ABORTED, [2])
    fleet.send([0, 1], abort_groups=pb.AbortGroups(epoch=8, slots=[2]))
    more = {"first_step": furthest, "steps": 40 - furthest, "holders": [holder], "epoch": 8}
    done = run(fleet, [0, 1], "survives", DENOISE, spec, **more)
    assert outcomes(done) == [OK, OK], done
    final = latent(fleet.upload(CHECKPOINT, "survives", 40))
    assert np.abs(final - latent(fleet.upload(CHECKPOINT, "alone", 40))).max() <= 1e-5


def test_finds_a_restarted_scheduler_and_still_holds_its_states(cluster, reference):
    old = cluster.fleet
    run(old, [0, 1], "kept", DENOISE, RED_HOUSE, steps=2, epoch=8)
    instances = [old.seats[slot].registration.instance for slot in range(2)]
    running = old.order([0, 1], "void", DENOISE, LONG, steps=900, epoch=8)
    old.steps(running, 0, at_least=1)
    old.stop()
    new = cluster.fleet = FakeFleet(old.port, term="second")
    new.wait(lambda: len(new.seats) == 2)
    cluster.executors = cluster.seated(cluster.executors[:2])
    assert sorted(new.seats[slot].registration.instance for slot in range(2)) == sorted(instances)
    for slot in range(2):
        states = {(h.request_id, h.step) for h in new.seats[slot].registration.held}
        assert ("kept", 2) in states
        assert not any(request_id == "frozen" for request_id, _ in states)
    # Order ids and epochs begin anew: nothing of the old ones may get in their way.
    for _ in range(3):
        assert outcomes(run(new, [0, 1], "new", DENOISE, RED_HOUSE, steps=1)) == [OK, OK]
    holders = [slot for slot in range(2) if held(new, slot, "kept", 2)]
    assert holders == [0, 1]
    done = run(new, [1, 0], "kept", DENOISE, RED_HOUSE, first_step=2, steps=STEPS - 2, holders=holders)
    assert outcomes(done) == [OK, OK]
    assert np.abs(latent(new.upload(CHECKPOINT, "kept", STEPS)) - reference[0]).max() <= 1e-5
    old_orders = [r for seat in new.seats.values() for r in seat.reports if r.order_done.order_id == running]
    assert not old_orders


def test_sigterm_hands_back_what_has_not_begun(cluster):
    fleet, leader = cluster.fleet, cluster.executors[0]
    running = fleet.order([0, 1], "last", DENOISE, LONG, steps=900)
    queued = fleet.order([1, 0], "queued", DENOISE, RED_HOUSE, steps=1)
    fleet.steps(running, 0, at_least=2)
    assert psutil.Process(leader.pid).children(recursive=True) == []
    leader.process.send_signal(signal.SIGTERM)
    done = fleet.done(running, [0, 1])
    assert outcomes(done) == [OK, OK]
    assert 2 <= behind(done[0]) < 900
    assert outcomes(fleet.done(queued, [0, 1])) == [RETURNED, RETURNED]
    assert leader.process.wait(timeout=15) == 0, leader.log.read_text()
    assert fleet.wait(lambda: fleet.seats[0].gone)
    assert any(r.HasField("leaving") for r in fleet.seats[0].reports)
    # Its last checkpoint has reached the scheduler: nothing is lost with it.
    assert fleet.upload(CHECKPOINT, "last", behind(done[0]))


def test_ctrl_c_ends_an_idle_executor(cluster):
    executor = cluster.executors[1]
    executor.process.send_signal(signal.SIGINT)
    assert executor.process.wait(timeout=15) == 0, executor.log.read_text()
    assert "Traceback" not in executor.log.read_text()  # not before either: each error was a request's
