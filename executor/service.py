"""The executor among the others: it obeys the scheduler and hands states to its peers."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio

from executor.courier import Courier
from executor.groups import Groups
from executor.jobs import Halt, Job, Jobs
from executor.latents import NotHeld, Store, pack
from executor.link import Session
from tetriserve.logs import Logger
from tetriserve.transport import CHUNK_BYTES
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import executor_pb2_grpc as rpc

# A peer may ask before the order that brings the state here has arrived: it comes on another stream.
GRACE_S = 1.0
# Waiting hand-overs each hold a thread; no executor has so many peers.
MOST_WAITING = 64

log = Logger("executor.service")


class Agent:
    """Obeys the scheduler's commands (see `link.Handler`); everything here is quick."""

    def __init__(self, jobs: Jobs, groups: Groups, store: Store, courier: Courier) -> None:
        self._jobs = jobs
        self._groups = groups
        self._store = store
        self._courier = courier
        self._session: Session | None = None
        self._leaving = False

    @property
    def registered(self) -> bool:
        """Whether a scheduler can send orders."""
        return self._session is not None

    def joined(self, session: Session) -> None:
        """Registered: orders may come."""
        self._session = session
        if self._leaving:
            session.report(pb.JoinRequest(leaving=pb.Leaving()))

    def parted(self, session: Session) -> None:
        """The scheduler is gone, or takes this executor for lost: its orders are void, the states stay."""
        self._session = None
        for job in self._jobs.all():
            if job.session is session:
                job.stop(Halt.RETURNED, "the scheduler is gone")
        self._groups.reset()

    def command(self, session: Session, command: pb.JoinResponse) -> None:
        """Do what the scheduler says; a command that fails must not take the others with it."""
        try:
            self._obey(session, command)
        except Exception:
            log.exception("command failed", command=command.WhichOneof("command"))

    def _obey(self, session: Session, command: pb.JoinResponse) -> None:
        match command.WhichOneof("command"):
            case "order":
                self._order(Job(command.order, session))
            case "truncate":
                self._truncate(command.truncate)
            case "release":
                self._release(command.release.request_id)
            case "abort_groups":
                self._abort(command.abort_groups)
            case other:
                log.warning("command not understood", command=other)

    def leave(self) -> None:
        """Take no more orders; those that have not begun are handed back, the running one ends soon."""
        self._leaving = True
        if self._session is not None:
            self._session.report(pb.JoinRequest(leaving=pb.Leaving()))
        for job in self._jobs.all():
            job.stop(Halt.RETURNED, "this executor stops")
        self._jobs.close()

    def abandon(self) -> None:
        """End what still runs, at once: its group is aborted."""
        for job in self._jobs.all():
            job.stop(Halt.ABORTED, "this executor stops")
        self._groups.reset()

    def _order(self, job: Job) -> None:
        log.debug("order", requests=job.request_ids, order=job.order.id, degree=job.degree)
        for request_id in job.request_ids:
            self._store.expect(request_id)
        if self._leaving or not job.order.group.members:
            why = "this executor stops" if self._leaving else "the order has no group"
            outcome = pb.OUTCOME_RETURNED if self._leaving else pb.OUTCOME_ERROR
            done = pb.OrderDone(order_id=job.order.id, outcome=outcome, error=why)
            job.session.report(pb.JoinRequest(order_done=done))
        else:
            self._jobs.put(job)

    def _truncate(self, command: pb.Truncate) -> None:
        for job in self._jobs.all():
            if job.order.id == command.order_id and job.session is self._session:
                job.drop(command.request_id, "truncated")
                # Those who wait for this executor need not do so until its turn has come.
                if job.halt is not Halt.NONE and job.leads and job.degree > 1:
                    self._groups.call_off(*job.meeting, job.reason)

    def _release(self, request_id: str) -> None:
        for job in self._jobs.all():
            if request_id in job.request_ids:
                job.drop(request_id, "released")
        self._courier.forget(request_id)
        self._store.release(request_id)

    def _abort(self, command: pb.AbortGroups) -> None:
        lost = tuple(command.slots)
        for job in self._jobs.all():
            if job.degree > 1 and job.order.group.epoch < command.epoch and job.slots & set(lost):
                job.stop(Halt.ABORTED, f"slots {list(lost)} are lost", lost)
        self._groups.drop(command.epoch, lost)


class StateService(rpc.ExecutorServiceServicer):
    """Hands states over to newcomers in their groups."""

    def __init__(self, store: Store, jobs: Jobs) -> None:
        self._store = store
        self._jobs = jobs
        self._threads = ThreadPoolExecutor(MOST_WAITING, thread_name_prefix="hand-over")

    async def FetchState(
        self, request: pb.FetchStateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.FetchStateResponse]:
        """The packed state at a step, once it is reached. NOT_FOUND: it will not be."""
        given_up = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            data = await loop.run_in_executor(self._threads, self._wait, request, given_up)
        except NotHeld as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        finally:
            given_up.set()
        for start in range(0, len(data), CHUNK_BYTES):
            yield pb.FetchStateResponse(chunk=data[start : start + CHUNK_BYTES])

    def close(self) -> None:
        """Stop waiting for states."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _wait(self, request: pb.FetchStateRequest, given_up: threading.Event) -> bytes:
        while True:
            # Looked up first: an order that ends in between leaves its state in the store.
            orders = [job.order for job in self._jobs.all()]
            # Only orders before the asking one count: two that waited for each other would never end.
            awaited = any(
                part.request_id == request.request_id and order.id < request.order_id
                for order in orders
                for part in order.parts
            )
            more_to_come = not any(o.id >= request.order_id for o in orders)
            patience = GRACE_S if awaited or more_to_come else 0.0
            try:
                return pack(self._store.wait(request.request_id, request.step, patience))
            except TimeoutError as error:
                if not awaited or given_up.is_set():
                    raise NotHeld(str(error)) from None
