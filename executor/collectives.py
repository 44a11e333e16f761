"""Process groups in Python: the collectives that sequence parallelism uses, as torch calls them.

torch calls these methods also from C++, by these names (2.13). Each ends before it returns.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d
from torch.futures import Future

# How often a wait for peers looks whether they are still there.
_LOOK = timedelta(milliseconds=20)
# Who leaves after its own part of a collective leaves the others to finish theirs.
_GRACE_S = 0.5


class Collectives(dist.ProcessGroup):
    """What `exchange` and `gather` do, as a process group of torch."""

    def __init__(self, rank: int, size: int, name: str) -> None:
        super().__init__(rank, size)
        self._name = name

    def exchange(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        """All-to-all of equal parts: part k of `sent` goes to rank k, whose part comes as part k."""
        raise NotImplementedError

    def gather(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        """All-gather: `sent` of every rank, by rank."""
        raise NotImplementedError

    @property
    def pg_name(self) -> str:
        return self._name

    @property
    def group_name(self) -> str:
        return self._name

    def getBackendName(self) -> str:
        return "python"

    def all_to_all_single(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        received_sizes: Any,  # noqa: ARG002
        sent_sizes: Any,  # noqa: ARG002
        options: Any = None,  # noqa: ARG002
    ) -> dist.Work:
        self.exchange(received, sent)
        return _done()

    def all_gather_single(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        options: Any = None,  # noqa: ARG002
    ) -> dist.Work:
        self.gather(received, sent)
        return _done()

    def all_gather_single_coalesced(
        self,
        received: list[torch.Tensor],
        sent: list[torch.Tensor],
        options: Any = None,  # noqa: ARG002
    ) -> dist.Work:
        for target, source in zip(received, sent, strict=True):
            self.gather(target, source)
        return _done()

    def shutdown(self) -> None:
        pass

    def abort(self) -> None:
        """Fail what waits here, if anything does. Never blocks."""


class GlooCollectives(Collectives):
    """gloo's, but nobody waits in them for a peer that is gone.

    When a connection ends, gloo (as of torch 2.13) fails what waits to be sent or received, but not what is
    half sent or half received: that waits for the time-out of the group.

    Args:
        backend: gloo's.
        broken: whether a peer is gone.
    """

    def __init__(self, backend: dist.Backend, name: str, broken: Callable[[], bool]) -> None:
        super().__init__(backend.rank(), backend.size(), name)
        self._backend = backend
        self._broken = broken
        self._aborted = False

    def abort(self) -> None:
        """Fail what waits here. Any thread."""
        self._aborted = True

    def exchange(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        """See Collectives. DistNetworkError: a peer is gone, or the group was cut."""
        self._wait(self._backend.alltoall_base(received, sent, [], []))

    def gather(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        """See Collectives. DistNetworkError: a peer is gone, or the group was cut."""
        self._wait(self._backend._allgather_base(received, sent))

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> dist.Work:
        """The root's tensors, to all; what the hand-over is measured against."""
        self._wait(self._backend.broadcast(tensors, options))
        return _done()

    def _wait(self, work: dist.Work) -> None:
        broken_at = math.inf
        while True:
            with contextlib.suppress(RuntimeError):
                work.wait(_LOOK)
            if work.is_completed():
                work.wait()  # raises what went wrong
                return
            if broken_at == math.inf and self._broken():
                broken_at = time.monotonic()
            if self._aborted or time.monotonic() - broken_at > _GRACE_S:
                threading.Thread(
                    target=_outlive, args=(self._backend, work), name="gloo", daemon=True
                ).start()
                raise dist.DistNetworkError("a peer is gone, or the group was cut")


def _outlive(backend: dist.Backend, work: dist.Work) -> None:
    """Keep a backend until what runs in it has ended: who frees it before has to wait for that."""
    with contextlib.suppress(RuntimeError):
        work.wait()
    del backend


def _done() -> dist.Work:
    # Without the tensors: a future made on the CPU refuses those of a GPU.
    future: Future[None] = Future()
    future.set_result(None)
    return _distributed_c10d._create_work_from_future(future)  # type: ignore[attr-defined]
