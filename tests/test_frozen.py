"""A frozen executor must not take its partner with it: real scheduler, real executors, minutes of waiting."""

import os
import signal
import time

import pytest

from tetriserve import Client
from tetriserve.local import Child, LocalCluster
from tetriserve.types import Stage

pytestmark = pytest.mark.long


def slot_of(child: Child) -> str:
    return child.log.read_text().partition("ready as slot ")[2].split()[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("slot", ["0", "1"])
def test_the_partner_of_a_frozen_executor_goes_on(tmp_path, slot):
    with LocalCluster(tmp_path, executors=2, policy="fixed:2") as cluster:
        cluster.wait_ready()
        frozen = next(child for child in cluster.children[1:] if slot_of(child) == slot)
        with Client(cluster.target) as client:
            request = client.submit("a red house", "256x256", steps=400)
            for event in client.watch(request.id):
                if event.status.steps_done > 5:
                    break
            os.kill(frozen.process.pid, signal.SIGSTOP)
            try:
                # The lease, a grace, some steps alone; with the leader frozen this once took until it woke.
                until = time.monotonic() + 30
                while time.monotonic() < until:
                    spans = client.get(request.id).spans
                    if any(len(s.slots) == 1 and s.stage is Stage.DENOISING and s.steps for s in spans):
                        break
                    time.sleep(0.2)
                else:
                    raise AssertionError(f"no step without the frozen executor: {spans[-3:]}")
            finally:
                os.kill(frozen.process.pid, signal.SIGCONT)
            client.cancel(request.id)
