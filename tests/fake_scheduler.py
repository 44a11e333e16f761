"""A scripted SchedulerService on loopback: what the client's tests talk to instead of a scheduler.

It keeps requests as messages and draws nothing; a test sets what becomes of them. Everything between
(gRPC, serialisation, streams, status codes) is real.
"""

import io
from collections import defaultdict
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from PIL import Image

from tetriserve.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICIES = ("cp-sat", "edf", "fixed:K")


class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Answers from `statuses`; `refuse` and `streams` script what goes wrong."""

    def __init__(self) -> None:
        self.statuses: dict[str, types_pb2.RequestStatus] = {}
        self.prepared: dict[str, types_pb2.RequestStatus] = {}
        """What Submit answers to these ids."""
        self.images: dict[str, list[scheduler_pb2.GetImageResponse]] = {}
        self.streams: dict[str, list[list[Any]]] = {}
        """Per id, the streams that Watch gives: events, at last maybe a status code to break with."""
        self.refusals: dict[str, list[tuple[grpc.StatusCode, str]]] = defaultdict(list)
        self.received: list[tuple[str, Any]] = []
        self.policy = "cp-sat"
        self.expected_executors = 0
        self.answered_and_lost = 0
        """Submits to accept and then answer with UNAVAILABLE, as when a connection breaks."""
        self._server: grpc.Server | None = None
        self.target = ""

    def start(self, port: int = 0) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def stop(self) -> None:
        if self._server:
            self._server.stop(None).wait()

    def refuse(self, method: str, code: grpc.StatusCode, message: str, times: int = 1) -> None:
        """Refuse the next calls of a method."""
        self.refusals[method] += [(code, message)] * times

    def calls(self, method: str) -> list[Any]:
        """The messages that a method has been called with."""
        return [message for name, message in self.received if name == method]

    def finish(self, id: str, size: tuple[int, int] = (48, 32), chunk: int = 100) -> bytes:
        """End a request well, with a picture that comes in chunks."""
        file = io.BytesIO()
        picture = Image.effect_noise(size, 50)
        picture.save(file, "png")
        png = file.getvalue()
        parts = [png[i : i + chunk] for i in range(0, len(png), chunk)]
        self.images[id] = [scheduler_pb2.GetImageResponse(chunk=part) for part in parts]
        self.images[id][0].total_bytes = len(png)
        status = self.statuses[id]
        status.stage, status.steps_done = types_pb2.STAGE_DONE, status.request.image.steps
        status.verdict = types_pb2.VERDICT_ON_TIME
        status.finished_at.FromDatetime(T0 + timedelta(seconds=3))
        status.gpu_seconds = 4.5
        for slots, first, begin in (([0], 0, 0.5), ([0, 1], 4, 1.0), ([0, 1], 8, 1.5), ([1], 10, 2.0)):
            span = status.spans.add(stage=types_pb2.STAGE_DENOISING, slots=slots, first_step=first, steps=4)
            span.begin.FromDatetime(T0 + timedelta(seconds=begin))
            span.end.FromDatetime(T0 + timedelta(seconds=begin + 0.5))
        return png

    def event(self, id: str, seconds: float, **changes: Any) -> scheduler_pb2.WatchResponse:
        """The request as it is, with changes, some seconds after its submission."""
        answer = scheduler_pb2.WatchResponse(status=self.statuses[id])
        del answer.status.spans[:]
        answer.status.MergeFrom(types_pb2.RequestStatus(**changes))
        answer.at.FromDatetime(T0 + timedelta(seconds=seconds))
        return answer

    def Submit(
        self, request: scheduler_pb2.SubmitRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.SubmitResponse:
        self._enter("Submit", request, context)
        wanted = request.request
        known = self.statuses.get(wanted.id)
        if known and known.request != wanted:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"id: {wanted.id} is another request's")
        if not known:
            known = self.statuses[wanted.id] = self.prepared.get(wanted.id) or _queued(wanted)
        if self.answered_and_lost:
            self.answered_and_lost -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        return scheduler_pb2.SubmitResponse(status=known)

    def Quote(
        self, request: scheduler_pb2.QuoteRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.QuoteResponse:
        self._enter("Quote", request, context)
        answer = scheduler_pb2.QuoteResponse(gpu_seconds=2.5)
        answer.earliest.FromMilliseconds(1750)
        answer.alone.FromMilliseconds(1250)
        return answer

    def Get(
        self, request: scheduler_pb2.GetRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.GetResponse:
        self._enter("Get", request, context)
        return scheduler_pb2.GetResponse(status=self._find(request.id, context))

    def List(
        self, request: scheduler_pb2.ListRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.ListResponse:
        self._enter("List", request, context)
        wanted = [
            status
            for status in reversed(self.statuses.values())
            if not request.stages or status.stage in request.stages
        ]
        begin = int(request.page_token or 0)
        end = begin + request.page_size
        return scheduler_pb2.ListResponse(
            statuses=wanted[begin:end], next_page_token=str(end) if end < len(wanted) else ""
        )

    def Watch(
        self, request: scheduler_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[scheduler_pb2.WatchResponse]:
        self._enter("Watch", request, context)
        self._find(request.id, context)
        for item in self.streams[request.id].pop(0):
            if isinstance(item, grpc.StatusCode):
                context.abort(item, "the stream broke")
            elif callable(item):
                item(context)
            else:
                yield item

    def Cancel(
        self, request: scheduler_pb2.CancelRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.CancelResponse:
        self._enter("Cancel", request, context)
        status = self._find(request.id, context)
        if status.stage == types_pb2.STAGE_QUEUED:
            status.stage = types_pb2.STAGE_CANCELLED
        return scheduler_pb2.CancelResponse(status=status)

    def GetImage(
        self, request: scheduler_pb2.GetImageRequest, context: grpc.ServicerContext
    ) -> Iterator[scheduler_pb2.GetImageResponse]:
        self._enter("GetImage", request, context)
        self._find(request.id, context)
        if request.id not in self.images:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"request {request.id} has no image yet")
        yield from self.images[request.id]

    def GetCluster(
        self, request: scheduler_pb2.GetClusterRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.GetClusterResponse:
        self._enter("GetCluster", request, context)
        answer = scheduler_pb2.GetClusterResponse(
            policy=self.policy, policies=POLICIES, outstanding=1, queue_limit=9, rounds=7, ready=True
        )
        answer.expected_executors = self.expected_executors
        answer.model.family, answer.model.name, answer.model.size_multiple = "flux", "tiny", 16
        answer.executors.add(slot=0, address="127.0.0.1:1", node="n", device="cpu", busy_seconds=1.5)
        answer.executors.add(
            slot=1, request_ids=["r1"], stage=types_pb2.STAGE_DENOISING, degree=2, orders=2, device="cpu"
        )
        return answer

    def SetPolicy(
        self, request: scheduler_pb2.SetPolicyRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.SetPolicyResponse:
        self._enter("SetPolicy", request, context)
        if request.policy not in POLICIES:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"policy: one of {', '.join(POLICIES)}")
        self.policy = request.policy
        return scheduler_pb2.SetPolicyResponse(policy=self.policy)

    def _enter(self, method: str, message: Any, context: grpc.ServicerContext) -> None:
        self.received.append((method, message))
        if self.refusals[method]:
            context.abort(*self.refusals[method].pop(0))

    def _find(self, id: str, context: grpc.ServicerContext) -> types_pb2.RequestStatus:
        if id not in self.statuses:
            context.abort(grpc.StatusCode.NOT_FOUND, f"id: there is no request {id}")
        return self.statuses[id]


def _queued(request: types_pb2.Request) -> types_pb2.RequestStatus:
    status = types_pb2.RequestStatus(request=request, stage=types_pb2.STAGE_QUEUED)
    status.submitted_at.FromDatetime(T0)
    if request.HasField("deadline"):
        status.deadline_at.FromDatetime(T0 + request.deadline.ToTimedelta())
    return status
