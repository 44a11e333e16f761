"""Steps that the device is still at: ended in order, in time, and not before they are done."""

import pytest
import torch

from executor.wake import Wake, to_host

CPU = torch.device("cpu")


class Device:
    """What happens, in order: steps launched, waited for and ended."""

    def __init__(self, depth: int) -> None:
        self.said: list[str] = []
        self._marks = 0
        self.wake = Wake(CPU, depth, self._mark)

    def launch(self, step: int) -> None:
        self.said.append(f"launch {step}")
        self.wake.add(lambda: self.said.append(f"end {step}"))

    def _mark(self):
        number = self._marks
        self._marks += 1
        return lambda: self.said.append(f"wait {number}")


def test_one_step_is_launched_before_the_one_before_is_waited_for():
    device = Device(depth=1)
    for step in range(3):
        device.launch(step)
    assert device.said == ["launch 0", "launch 1", "wait 0", "end 0", "launch 2", "wait 1", "end 1"]
    device.wake.drain()
    assert device.said[-2:] == ["wait 2", "end 2"]
    device.wake.drain()
    assert len(device.said) == 9


def test_on_a_cpu_a_step_ends_at_once():
    ended = []
    wake = Wake(CPU)
    for step in range(3):
        wake.add(lambda step=step: ended.append(step))
        assert ended == list(range(step + 1))


def test_where_a_step_is_garbage_those_after_it_are_not_ended():
    ended = []

    def fail() -> None:
        raise RuntimeError("aborted")

    wake = Wake(CPU, depth=2)
    wake.add(lambda: ended.append(0))
    wake.add(fail)
    wake.add(lambda: ended.append(2))
    with pytest.raises(RuntimeError, match="aborted"):
        wake.drain()
    assert ended == [0]


def test_what_is_on_the_host_is_not_copied():
    tensor = torch.ones(3)
    assert to_host(tensor) is tensor
