"""Steps that the device may still be at while the next one is being given to it.

A GPU works through what it was given while Python prepares the next step. If each step were waited for
before the next is launched, the device would stand idle meanwhile. So a step counts only once the device
is through with it, and by then one more has been launched. A CPU computes as it is told: no step is open.
"""

from collections import deque
from collections.abc import Callable

import torch

Mark = Callable[[], object]
"""Waits until the device has done what it was given before the mark was made."""


class Wake:
    """Ends steps in their order, each when the device is through with it.

    Args:
        device: where the steps are computed.
        depth: how many steps may be open when a step has been launched; by default one on CUDA.
        mark: makes a mark; by default that of the device.
    """

    def __init__(
        self, device: torch.device, depth: int | None = None, mark: Callable[[], Mark] | None = None
    ) -> None:
        self.depth = depth if depth is not None else int(device.type == "cuda")
        self._mark = mark or (lambda: _mark(device))
        self._open: deque[tuple[Mark, Callable[[], None]]] = deque()

    def add(self, end: Callable[[], None]) -> None:
        """A step has been launched; `end` is called once it is done. Ends those that are too far behind."""
        self._open.append((self._mark(), end))
        self._shorten(self.depth)

    def drain(self) -> None:
        """Wait for all steps, and end them."""
        self._shorten(0)

    def _shorten(self, depth: int) -> None:
        while len(self._open) > depth:
            wait, end = self._open.popleft()
            wait()
            end()


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the host's memory. On CUDA it must be computed already: it is copied beside the steps, on
    a stream of its own, so that neither waits for the other."""
    if tensor.device.type != "cuda":
        return tensor
    stream = torch.cuda.Stream(tensor.device)
    with torch.cuda.stream(stream):
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copy.copy_(tensor, non_blocking=True)
    # Its memory must not be given to somebody else before it is read.
    tensor.record_stream(stream)
    stream.synchronize()
    return copy
