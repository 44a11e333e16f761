"""An order whose scheduler goes while it begins: its member comes to no meeting that nobody else comes to."""

import threading
from types import SimpleNamespace

import pytest
import torch

from executor import rendezvous
from executor.groups import CalledOff, Groups, Member
from executor.image import ImageSpec
from executor.jobs import Halt, Job, Jobs
from executor.latents import State, Store
from executor.roles import EVERY_ROLE
from executor.runner import Runner
from executor.service import Agent
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import types_pb2 as types


@pytest.fixture
def groups():
    groups = Groups()
    yield groups
    groups.close()


@pytest.fixture
def leader():
    """The store of a leader that has forgotten the order already."""
    return rendezvous.StoreServer("127.0.0.1")


def test_a_member_does_not_come_to_a_meeting_that_is_off_for_it(groups, leader):
    def off() -> None:
        raise CalledOff("the scheduler is gone")

    members = [Member(0, leader.address), Member(1, groups.store_address)]
    with pytest.raises(CalledOff):
        groups.get(1, members, "void", timeout_s=2, check=off)
    assert leader.store.num_keys() == 0


def test_the_scheduler_goes_while_a_member_obtains_the_state(groups, leader, monkeypatch):
    monkeypatch.setattr("executor.runner.MEETING_TIMEOUT_S", 2.0)
    reports: list[pb.JoinRequest] = []
    session = SimpleNamespace(slot=1, term="first", report=reports.append)
    members = [
        pb.Member(slot=slot, store=store) for slot, store in enumerate([leader.address, groups.store_address])
    ]
    part = pb.Part(request_id="r", image=types.ImageSpec(prompt="p", width=64, height=64, steps=3))
    order = pb.Order(
        id=1, stage=types.STAGE_DENOISING, steps=3, group=pb.Group(epoch=1, members=members), parts=[part]
    )
    jobs, store = Jobs(), Store()
    jobs.put(Job(order, session))
    pipeline = SimpleNamespace(roles=EVERY_ROLE, device=torch.device("cpu"))
    runner = Runner(pipeline, SimpleNamespace(misses=0, hits=0), None, groups, store, None, jobs, "here:1")
    agent = Agent(jobs, groups, store, None)
    agent.joined(session)

    def obtain(job: Job, _: pb.Part) -> State:
        assert job.halt is Halt.NONE
        # On the event loop's thread in life.
        parting = threading.Thread(target=agent.parted, args=(session,))
        parting.start()
        parting.join()
        return State(ImageSpec("p", 64, 64, steps=3, seed=0), {}, torch.zeros(1), step=0)

    monkeypatch.setattr(runner, "_obtain", obtain)
    runner._run(jobs.take())
    (done,) = [report.order_done for report in reports]
    assert (done.order_id, done.outcome) == (1, pb.OUTCOME_RETURNED), done
