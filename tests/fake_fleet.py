"""A scripted FleetService on loopback: it stands for the scheduler in the executors' tests.

It decides nothing: a test gives the orders and looks at the reports. All else is real: the executors
are processes of their own, gRPC, torch's collectives and the hand-over between executors included.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from tetriserve.transport import SERVER_OPTIONS
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import executor_pb2_grpc as rpc
from tetriserve.v1 import types_pb2 as types

LEASE_S = 1.5
PATIENCE_S = 40.0


@dataclass
class Seat:
    """A registered executor as the scheduler sees it."""

    slot: int
    registration: pb.Registration
    commands: "queue.Queue[pb.JoinResponse | None]" = field(default_factory=queue.Queue)
    reports: list[pb.JoinRequest] = field(default_factory=list)
    gone: bool = False

    @property
    def member(self) -> pb.Member:
        """As groups name it."""
        r = self.registration
        return pb.Member(slot=self.slot, address=r.address, store=r.store)


class FakeFleet(rpc.FleetServiceServicer):
    """Seats by slot, in the order of `order_by` (instances), else of arrival."""

    def __init__(self, port: int = 0, term: str = "first") -> None:
        self.seats: dict[int, Seat] = {}
        self.uploads: dict[tuple[int, str, int], bytes] = {}
        """Bytes by kind, request and step."""
        self.failing_uploads = 0
        self.refusal = ""
        self._term = term
        self._orders = itertools.count(1)
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(32), options=SERVER_OPTIONS)
        rpc.add_FleetServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def address(self) -> str:
        """Where executors find it."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """As a scheduler that dies: all streams break."""
        for seat in self.seats.values():
            seat.commands.put(None)
        self._server.stop(None).wait()

    # What executors call.

    def Join(
        self, reports: Iterator[pb.JoinRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.JoinResponse]:
        """Register, then pass commands down and keep the reports."""
        first = next(reports)
        if self.refusal:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refusal)
        with self._changed:
            seat = Seat(len(self.seats), first.registration)
            self.seats[seat.slot] = seat
            self._changed.notify_all()
        lease = Duration()
        lease.FromTimedelta(timedelta(seconds=LEASE_S))
        yield pb.JoinResponse(welcome=pb.Welcome(slot=seat.slot, lease=lease, term=self._term))
        threading.Thread(target=self._listen, args=(seat, reports), daemon=True).start()
        while (command := seat.commands.get()) is not None:
            yield command

    def Upload(self, parts: Iterator[pb.UploadRequest], context: grpc.ServicerContext) -> pb.UploadResponse:
        """Keep what is brought."""
        header, data = None, b""
        for part in parts:
            header = part.header if part.HasField("header") else header
            data += part.chunk
        assert header is not None
        with self._changed:
            if self.failing_uploads:
                self.failing_uploads -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            self.uploads[header.kind, header.request_id, header.step] = data
            self._changed.notify_all()
        return pb.UploadResponse()

    def _listen(self, seat: Seat, reports: Iterator[pb.JoinRequest]) -> None:
        try:
            for report in reports:
                with self._changed:
                    seat.reports.append(report)
                    self._changed.notify_all()
        except grpc.RpcError:
            pass
        finally:
            with self._changed:
                seat.gone = True
                self._changed.notify_all()
            seat.commands.put(None)

    # What tests call.

    def order(
        self,
        slots: Sequence[int],
        request_id: str,
        stage: "types.Stage",
        image: types.ImageSpec,
        *,
        first_step: int = 0,
        steps: int = 0,
        holders: Sequence[int] = (),
        epoch: int = 1,
        **more: Any,
    ) -> int:
        """Give an order to all of `slots`, leader first; returns its id."""
        part = self.part(request_id, image, first_step, holders, **more)
        return self.batch(slots, stage, [part], steps=steps, epoch=epoch)

    def part(
        self,
        request_id: str,
        image: types.ImageSpec,
        first_step: int = 0,
        holders: Sequence[int] = (),
        **more: Any,
    ) -> pb.Part:
        """What an order is to one request; `holders` are slots."""
        addresses = [self.seats[slot].registration.address for slot in holders]
        return pb.Part(request_id=request_id, image=image, first_step=first_step, holders=addresses, **more)

    def batch(
        self,
        slots: Sequence[int],
        stage: "types.Stage",
        parts: Sequence[pb.Part],
        *,
        epoch: int = 1,
        **more: Any,
    ) -> int:
        """Give an order for several requests, or none."""
        order = pb.Order(
            id=next(self._orders),
            stage=stage,
            group=pb.Group(epoch=epoch, members=[self.seats[slot].member for slot in slots]),
            parts=parts,
            **more,
        )
        self.send(slots, order=order)
        return order.id

    def send(self, slots: Sequence[int], **command: Any) -> None:
        """Send a command to each of `slots`."""
        for slot in slots:
            self.seats[slot].commands.put(pb.JoinResponse(**command))

    def done(self, order_id: int, slots: Sequence[int]) -> list[pb.OrderDone]:
        """How the order has ended on each of `slots`, once it has on all."""

        def find(slot: int) -> pb.OrderDone | None:
            reports = (r.order_done for r in self.seats[slot].reports if r.HasField("order_done"))
            return next((done for done in reports if done.order_id == order_id), None)

        return self.wait(lambda: all(found := [find(slot) for slot in slots]) and found)

    def steps(self, order_id: int, slot: int, at_least: int = 0) -> list[pb.StepDone]:
        """The order's steps that `slot` has reported, once there are so many."""

        def find() -> list[pb.StepDone]:
            reports = (r.step_done for r in self.seats[slot].reports if r.HasField("step_done"))
            return [step for step in reports if step.order_id == order_id]

        self.wait(lambda: len(find()) >= at_least)
        return find()

    def upload(self, kind: int, request_id: str, step: int) -> bytes:
        """What was uploaded, once it is there."""
        return self.wait(lambda: self.uploads.get((kind, request_id, step)))

    def wait(self, look: Callable[[], Any], timeout: float = PATIENCE_S) -> Any:
        """What `look` gives, once it is something."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (found := look()):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"waited {timeout:g} s in vain")
        return found
