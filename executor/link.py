"""The executor's side of FleetService.Join: register, keep the lease, pass reports up and commands down.

The link outlives the scheduler: when the stream breaks it dials again and registers anew, with the
same instance. One registration is a `Session`; orders and their reports belong to the session that
brought them, because a restarted scheduler counts its orders from the beginning.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import grpc
import grpc.aio

from executor.post import Post
from tetriserve.logs import Logger
from tetriserve.transport import CHANNEL_OPTIONS, CHUNK_BYTES
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import executor_pb2_grpc as rpc

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.1, 2.0
HEARTBEATS_PER_LEASE = 3
SAY_AGAIN_S = 30.0  # between two log lines on the same trouble

# Answers to a registration that will not be different next time.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
}

JoinCall = grpc.aio.StreamStreamCall[pb.JoinRequest, pb.JoinResponse]

log = Logger("executor.link")


class Refused(Exception):
    """The scheduler does not want this executor; the message is the scheduler's reason."""


class UploadFailed(Exception):
    """The scheduler did not take an upload."""


class Session:
    """One registration: what is reported after its end goes nowhere."""

    def __init__(self, registration: pb.Registration, fleet: rpc.FleetServiceStub, post: Post) -> None:
        self.slot = -1
        self.term = ""  # tells this scheduler's orders from those of one before a restart
        self.ended = False
        self._fleet = fleet
        self._post = post
        self._reports: asyncio.Queue[pb.JoinRequest | None] = asyncio.Queue()
        self._reports.put_nowait(pb.JoinRequest(registration=registration))

    @property
    def welcome(self) -> bool:
        """Whether the scheduler has taken the registration."""
        return self.slot >= 0

    def report(self, report: pb.JoinRequest) -> None:
        """Send a report, in the order of the calls; from any thread."""
        if not self.ended:
            self._post.call(self._reports.put_nowait, report)

    def finish(self) -> None:
        """Half-close the stream once all reports are sent; from any thread."""
        self._post.call(self._reports.put_nowait, None)

    async def upload(self, header: pb.UploadHeader, data: bytes) -> None:
        """Bring an image or a checkpoint to the scheduler.

        Raises UploadFailed where the scheduler is gone or does not take it.
        """

        async def parts() -> AsyncIterator[pb.UploadRequest]:
            yield pb.UploadRequest(header=header)
            for start in range(0, len(data), CHUNK_BYTES):
                yield pb.UploadRequest(chunk=data[start : start + CHUNK_BYTES])

        try:
            await self._fleet.Upload(parts())
        except grpc.aio.AioRpcError as error:
            raise UploadFailed(f"{error.code().name}: {error.details()}") from None

    async def send(self, stream: JoinCall) -> None:
        """Send what is reported, until `finish` or until the stream has ended."""
        # Why it has ended is told to who reads from it.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (report := await self._reports.get()) is not None:
                await stream.write(report)
            await stream.done_writing()


class Handler(Protocol):
    """Who obeys the scheduler. All calls come from the event loop and must not block."""

    def joined(self, session: Session) -> None:
        """Registered."""

    def command(self, session: Session, command: pb.JoinResponse) -> None:
        """An order, truncation, release or abort."""

    def parted(self, session: Session) -> None:
        """The stream has ended: the session's orders are void."""


class Link:
    """Keeps the executor registered; `run` returns after `close`, or raises Refused.

    `registration` is asked for at each registration: what the executor holds and has measured changes.
    """

    def __init__(
        self, scheduler: str, registration: Callable[[], pb.Registration], handler: Handler, post: Post
    ) -> None:
        self._scheduler = scheduler
        self._registration = registration
        self._handler = handler
        self._post = post
        self._session: Session | None = None
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Stay registered until `close`."""
        delay, said_at = FIRST_BACKOFF_S, -SAY_AGAIN_S
        async with grpc.aio.insecure_channel(self._scheduler, CHANNEL_OPTIONS) as channel:
            fleet = rpc.FleetServiceStub(channel)
            while not self._closing.is_set():
                session = self._session = Session(self._registration(), fleet, self._post)
                trouble = await self._attend(session, fleet)
                if self._closing.is_set():
                    return
                if session.welcome:
                    delay, said_at = FIRST_BACKOFF_S, -SAY_AGAIN_S
                if time.monotonic() - said_at >= SAY_AGAIN_S:
                    said_at = time.monotonic()
                    log.warning("no scheduler, trying again", scheduler=self._scheduler, why=trouble)
                # Spread out, so that a fleet does not dial a restarted scheduler all at once.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), delay * random.uniform(0.5, 1.5))
                delay = min(2 * delay, LAST_BACKOFF_S)

    def close(self) -> None:
        """Send what has been reported, then end the stream; `run` returns once the scheduler agrees."""
        self._closing.set()
        if self._session is not None:
            self._session.finish()

    async def _attend(self, session: Session, fleet: rpc.FleetServiceStub) -> str:
        """One session, from the registration to the stream's end; returns why it has ended."""
        stream: JoinCall = fleet.Join()
        # Not given to gRPC as an iterator: it would wait for the next report for ever, also after the end.
        tasks = [asyncio.create_task(session.send(stream))]
        try:
            async for command in stream:
                if session.welcome:
                    self._handler.command(session, command)
                elif command.HasField("welcome"):
                    session.slot, session.term = command.welcome.slot, command.welcome.term
                    lease = command.welcome.lease.ToTimedelta().total_seconds()
                    tasks.append(asyncio.create_task(_heartbeat(session, lease / HEARTBEATS_PER_LEASE)))
                    log.info(f"ready as slot {session.slot}", scheduler=self._scheduler, lease_s=lease)
                    self._handler.joined(session)
            return "it closed the stream"
        except grpc.aio.AioRpcError as error:
            trouble = f"{error.code().name}: {error.details()}"
            if not session.welcome and error.code() in REFUSALS:
                raise Refused(trouble) from None
            return trouble
        finally:
            stream.cancel()
            for task in tasks:
                task.cancel()
            session.ended = True
            if session.welcome:
                self._handler.parted(session)


async def _heartbeat(session: Session, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        session.report(pb.JoinRequest(heartbeat=pb.Heartbeat()))
