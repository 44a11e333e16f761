"""A handler's own mistake reaches the caller as INTERNAL; what it aborts with on purpose is left alone."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tetriserve.guard import Guard
from tetriserve.v1 import scheduler_pb2, scheduler_pb2_grpc


class Broken(scheduler_pb2_grpc.SchedulerServiceServicer):
    async def Get(self, message: scheduler_pb2.GetRequest, context: grpc.aio.ServicerContext) -> None:
        if message.id == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        raise KeyError("a mistake")

    async def Watch(
        self, message: scheduler_pb2.WatchRequest, _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[scheduler_pb2.WatchResponse]:
        yield scheduler_pb2.WatchResponse()
        raise KeyError(message.id)


async def codes() -> list[tuple[grpc.StatusCode, str]]:
    server = grpc.aio.server(interceptors=[Guard()])
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(Broken(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)

        async def drain() -> None:
            async for _ in stub.Watch(scheduler_pb2.WatchRequest(id="streamed")):
                pass

        for call in (
            stub.Get(scheduler_pb2.GetRequest(id="abort")),
            stub.Get(scheduler_pb2.GetRequest(id="x")),
            drain(),
            stub.List(scheduler_pb2.ListRequest()),
            channel.unary_unary("/tetriserve.v1.SchedulerService/Get")(b"\x0a\x02\xff\xfe"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            found.append((caught.value.code(), caught.value.details() or ""))
    await server.stop(None)
    return found


def test_mistakes_are_internal_and_aborts_pass():
    aborted, mistaken, streamed, missing, malformed = asyncio.run(codes())
    assert aborted == (grpc.StatusCode.NOT_FOUND, "not here")
    assert mistaken[0] is streamed[0] is grpc.StatusCode.INTERNAL
    assert "KeyError: 'a mistake'" in mistaken[1]
    assert "streamed" in streamed[1]
    assert missing[0] is grpc.StatusCode.UNIMPLEMENTED
    assert malformed[0] is grpc.StatusCode.INVALID_ARGUMENT
