"""The gRPC faces: SchedulerService for clients, FleetService for executors; the driver does the work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from scheduler import limits, messages, policies
from scheduler.admission import Admission, Declined
from scheduler.driver import Driver
from scheduler.fleet import Executor, Refused
from scheduler.problem import ROLES, Request, Stage
from scheduler.quote import quote
from tetriserve.logs import Logger
from tetriserve.transport import CHUNK_BYTES
from tetriserve.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc, types_pb2

log = Logger("scheduler.service")
Context = grpc.aio.ServicerContext
Code = grpc.StatusCode

DEFAULT_PAGE, MAX_PAGE = 100, 1000
MAX_UPLOAD_BYTES = 1 << 30
ENDED = frozenset(stage for core, stage in messages.STAGES.items() if core and core.ended)


class SchedulerService(scheduler_pb2_grpc.SchedulerServiceServicer):
    """What clients call."""

    def __init__(self, driver: Driver, queue_limit: int) -> None:
        self._driver = driver
        self._queue_limit = queue_limit

    async def Submit(
        self, message: scheduler_pb2.SubmitRequest, context: Context
    ) -> scheduler_pb2.SubmitResponse:
        driver = self._driver
        model = await self._model(context)
        try:
            request = limits.checked(message.request, model)
        except ValueError as error:
            await context.abort(Code.INVALID_ARGUMENT, str(error))
        if message.request.id and (known := await self._known(request.id)):
            return await self._again(known, request, context)
        if driver.rounds.outstanding >= self._queue_limit:
            await context.abort(
                Code.RESOURCE_EXHAUSTED,
                f"{self._queue_limit} requests are outstanding, the most allowed (--queue-limit): try later",
            )
        if driver.admission is not Admission.ACCEPT and request.HasField("deadline") and not driver.ready:
            await self._unready(context)
        try:
            status = await driver.submit(request, [])
        except Declined as error:
            await context.abort(Code.FAILED_PRECONDITION, str(error))
        except KeyError:
            # Somebody took the id while we looked the other way.
            return await self._again(await self._status(request.id, context), request, context)
        return scheduler_pb2.SubmitResponse(status=status)

    async def Quote(
        self, message: scheduler_pb2.QuoteRequest, context: Context
    ) -> scheduler_pb2.QuoteResponse:
        model = await self._model(context)
        if not self._driver.ready or self._driver.warnings:
            await self._unready(context)
        image = message.image
        image.steps = image.steps or model.default_steps
        try:
            limits.check_image(image, model)
        except ValueError as error:
            await context.abort(Code.INVALID_ARGUMENT, str(error))
        now = self._driver.now()
        steps = self._driver.rounds.work(image.steps)
        wanted = Request("quote", image.width, image.height, Stage.ENCODING, steps, now, now)
        parts = [problem for _, problem in self._driver.rounds.best_parts(now, wanted)]
        if not parts:
            await context.abort(Code.UNAVAILABLE, "no executor takes work at the moment: try again later")
        quotes = [await asyncio.to_thread(quote, p, image.width, image.height, steps) for p in parts]
        found = min(quotes, key=lambda quote: quote.earliest_s)
        return scheduler_pb2.QuoteResponse(
            earliest=_duration(found.earliest_s),
            alone=_duration(found.alone_s),
            gpu_seconds=found.gpu_seconds,
        )

    async def Get(self, message: scheduler_pb2.GetRequest, context: Context) -> scheduler_pb2.GetResponse:
        return scheduler_pb2.GetResponse(status=await self._status(message.id, context))

    async def List(self, message: scheduler_pb2.ListRequest, context: Context) -> scheduler_pb2.ListResponse:
        size = message.page_size or DEFAULT_PAGE
        if not 1 <= size <= MAX_PAGE:
            await context.abort(
                Code.INVALID_ARGUMENT, f"page_size: {size} is not allowed; 1 to {MAX_PAGE} is"
            )
        if message.page_token and not message.page_token.isdecimal():
            await context.abort(Code.INVALID_ARGUMENT, "page_token: pass next_page_token as it was given")
        before = int(message.page_token) if message.page_token else None
        # One more than wanted tells whether there is a next page.
        rows = await self._driver.written(self._driver.journal.page, before, list(message.stages), size + 1)
        response = scheduler_pb2.ListResponse()
        for _, status in rows[:size]:
            live = self._live(status.request.id) or status
            del live.spans[:]
            response.statuses.append(live)
        if len(rows) > size:
            response.next_page_token = str(rows[size - 1][0])
        return response

    async def Watch(
        self, message: scheduler_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.WatchResponse]:
        driver, changed = self._driver, asyncio.Event()
        entry = driver.entries.get(message.id)
        shown = 0
        if entry:
            entry.watchers[changed] = message.preview_every
        try:
            while True:
                # A slow watcher gets the latest status, not a queue of old ones.
                changed.clear()
                status = await self._status(message.id, context)
                del status.spans[:]
                response = scheduler_pb2.WatchResponse(at=messages.timestamp(driver.now()), status=status)
                if entry and entry.preview and message.preview_every and entry.preview.step > shown:
                    response.preview.CopyFrom(entry.preview)
                    shown = entry.preview.step
                yield response
                if status.stage in ENDED:
                    return
                await changed.wait()
                if not driver.accepting:
                    await context.abort(Code.UNAVAILABLE, "the scheduler is stopping: watch again later")
        finally:
            if entry:
                entry.watchers.pop(changed, None)

    async def Cancel(
        self, message: scheduler_pb2.CancelRequest, context: Context
    ) -> scheduler_pb2.CancelResponse:
        driver = self._driver
        if message.id in driver.entries:
            driver.apply(driver.rounds.cancel(driver.now(), message.id))
        return scheduler_pb2.CancelResponse(status=await self._status(message.id, context))

    async def GetImage(
        self, message: scheduler_pb2.GetImageRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.GetImageResponse]:
        status = await self._status(message.id, context)
        if status.stage != types_pb2.STAGE_DONE:
            stage = types_pb2.Stage.Name(status.stage).removeprefix("STAGE_").lower()
            why = f"{stage}: {status.error}" if status.error else stage
            await context.abort(Code.FAILED_PRECONDITION, f"request {message.id} has no image: it is {why}")
        try:
            data = await asyncio.to_thread(self._driver.journal.image(message.id).read_bytes)
        except FileNotFoundError:
            await context.abort(Code.NOT_FOUND, f"the image of request {message.id} was deleted")
        for start in range(0, len(data), CHUNK_BYTES):
            total = len(data) if start == 0 else 0
            yield scheduler_pb2.GetImageResponse(chunk=data[start : start + CHUNK_BYTES], total_bytes=total)

    async def GetCluster(
        self, _message: scheduler_pb2.GetClusterRequest, _context: Context
    ) -> scheduler_pb2.GetClusterResponse:
        driver = self._driver
        rounds = driver.rounds
        response = scheduler_pb2.GetClusterResponse(
            policy=driver.policy_name,
            admission=driver.admission.value,
            policies=policies.names(),
            outstanding=rounds.outstanding,
            queue_limit=self._queue_limit,
            model=driver.fleet.model,
            rounds=rounds.plans,
            expected_executors=driver.expect,
            ready=driver.ready,
            warnings=driver.warnings,
        )
        for slot, executor in sorted(driver.fleet.executors.items()):
            r, books = executor.registration, rounds.slots.get(slot)
            if books is None:
                # Registered, and about to join.
                continue
            running = books.queue[0].order if books.queue else None
            response.executors.add(
                slot=slot,
                address=r.address,
                node=r.node,
                device=r.device,
                request_ids=running.request_ids if running else (),
                stage=messages.STAGES[running.stage if running else None],
                degree=len(running.slots) if running else 0,
                orders=len(books.queue),
                busy_seconds=books.busy_seconds,
                roles=[messages.STAGES[role] for role in ROLES if role in books.roles],
            )
        return response

    async def SetPolicy(
        self, message: scheduler_pb2.SetPolicyRequest, context: Context
    ) -> scheduler_pb2.SetPolicyResponse:
        try:
            self._driver.set_policy(message.policy)
        except ValueError as error:
            await context.abort(Code.INVALID_ARGUMENT, f"policy: {error}")
        return scheduler_pb2.SetPolicyResponse(policy=self._driver.policy_name)

    async def _model(self, context: Context) -> scheduler_pb2.ModelInfo:
        if not self._driver.accepting:
            await context.abort(Code.UNAVAILABLE, "the scheduler is stopping: try again later")
        model = self._driver.fleet.model
        if model is None:
            await context.abort(
                Code.UNAVAILABLE, "no executor has joined yet: start one with python -m executor"
            )
        return model

    async def _unready(self, context: Context) -> NoReturn:
        why = "; ".join(self._driver.warnings) or "step times are being measured or groups made"
        await context.abort(Code.UNAVAILABLE, f"the cluster is not ready: {why}")

    def _live(self, request_id: str, spans: bool = False) -> types_pb2.RequestStatus | None:
        if request_id not in self._driver.entries:
            return None
        return self._driver.live_status(request_id, spans)

    async def _known(self, request_id: str) -> types_pb2.RequestStatus | None:
        live = self._live(request_id, spans=True)
        return live or await self._driver.written(self._driver.journal.get, request_id)

    async def _status(self, request_id: str, context: Context) -> types_pb2.RequestStatus:
        status = await self._known(request_id)
        if status is None:
            await context.abort(Code.NOT_FOUND, f"no request has the id {request_id!r}")
        return status

    async def _again(
        self, known: types_pb2.RequestStatus, request: types_pb2.Request, context: Context
    ) -> scheduler_pb2.SubmitResponse:
        """A retry gets what the first try got; anything else must choose another id."""
        if known.request != request:
            await context.abort(
                Code.ALREADY_EXISTS, f"id: {request.id!r} belongs to another request; choose another"
            )
        return scheduler_pb2.SubmitResponse(status=known)


class FleetService(executor_pb2_grpc.FleetServiceServicer):
    """What executors call."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def Join(
        self, reports: AsyncIterator[executor_pb2.JoinRequest], context: Context
    ) -> AsyncIterator[executor_pb2.JoinResponse]:
        driver = self._driver
        executor = await self._register(reports, context)
        welcome = executor_pb2.Welcome(slot=executor.slot, lease=_duration(driver.lease_s), term=driver.term)
        yield executor_pb2.JoinResponse(welcome=welcome)
        listening = asyncio.create_task(self._listen(executor, reports))
        try:
            driver.joined(executor)
            while (command := await executor.outbox.get()) is not None:
                yield command
        finally:
            listening.cancel()
            driver.lost(executor, "it has left" if executor.leaving else "its stream has ended")

    async def Upload(
        self, parts: AsyncIterator[executor_pb2.UploadRequest], context: Context
    ) -> executor_pb2.UploadResponse:
        header: executor_pb2.UploadHeader | None = None
        data = bytearray()
        async for part in parts:
            if part.HasField("header"):
                header = part.header
            data += part.chunk
            if len(data) > MAX_UPLOAD_BYTES:
                await context.abort(
                    Code.INVALID_ARGUMENT, f"chunk: more than {MAX_UPLOAD_BYTES} bytes in all"
                )
        if header is None or not limits.ID.fullmatch(header.request_id):
            await context.abort(Code.INVALID_ARGUMENT, "header: the first part names the request")
        await self._driver.uploaded(header, bytes(data))
        return executor_pb2.UploadResponse()

    async def _register(self, reports: AsyncIterator[executor_pb2.JoinRequest], context: Context) -> Executor:
        driver = self._driver
        first = await anext(reports, None)
        if first is None or not first.HasField("registration"):
            await context.abort(Code.INVALID_ARGUMENT, "registration: the first report must be one")
        if not driver.accepting:
            await context.abort(Code.UNAVAILABLE, "the scheduler is stopping")
        registration = first.registration
        if before := driver.fleet.instance(registration.instance):
            driver.lost(before, "it has registered anew")
        try:
            return driver.fleet.admit(registration, driver.now())
        except Refused as error:
            await context.abort(Code.FAILED_PRECONDITION, str(error))
        except ValueError as error:
            await context.abort(Code.INVALID_ARGUMENT, f"registration: {error}")

    async def _listen(self, executor: Executor, reports: AsyncIterator[executor_pb2.JoinRequest]) -> None:
        driver = self._driver
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for report in reports:
                executor.heard_at = driver.now()
                match report.WhichOneof("report"):
                    case "step_done":
                        driver.step_done(report.step_done)
                    case "order_done":
                        driver.order_done(executor, report.order_done)
                    case "leaving":
                        driver.leaving(executor)
        executor.hang_up()


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
