"""The two ways in which a newcomer in a group could get a request's state: fetched from its holder by gRPC,
as the executors do it, or broadcast in the new group. Real processes, gloo, loopback.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import grpc.aio
import torch
import torch.distributed as dist

from bench.crew import Crew, Worker
from bench.engine.figures import Figure
from executor.image import ImageSpec
from executor.jobs import Jobs
from executor.latents import State, Store, unpack
from executor.service import StateService
from tetriserve.transport import CHANNEL_OPTIONS, SERVER_OPTIONS
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import executor_pb2_grpc as rpc


def newcomers(crew: Crew, sides: Sequence[int], repeats: int) -> Iterator[Figure]:
    """Both ways, for states of FLUX.1's size."""
    part = "A newcomer's state of FLUX.1's size, two processes"
    (address,) = crew.all([0], _serve, list(sides))
    for side in sides:
        size = f"{side}x{side}"
        (fetched,) = crew.all([1], _fetch, address, side, repeats)
        sent = max(crew.all([0, 1], _broadcast, side, repeats, True))
        alone = max(crew.all([0, 1], _broadcast, side, repeats, False))
        nbytes = f"{state(side).nbytes / 2**20:.2f} MiB"
        yield Figure(part, "fetched by gRPC and unpacked", 1000 * fetched, "ms", size, nbytes)
        yield Figure(part, "broadcast in a group that is there (gloo)", 1000 * sent, "ms", size, nbytes)
        latent = f"{state(side).latent.nbytes / 2**20:.2f} MiB"
        yield Figure(part, "the latent alone, broadcast", 1000 * alone, "ms", size, latent)


def state(side: int) -> State:
    """A state of FLUX.1: latent in float32, text for 512 tokens in bfloat16."""
    condition = {
        "text": torch.randn(1, 512, 4096).bfloat16(),
        "pooled": torch.randn(1, 768).bfloat16(),
    }
    image = ImageSpec("a red house", side, side, steps=20, seed=0)
    return State(image, condition, torch.randn(1, (side // 16) ** 2, 64), step=0)


def _serve(_worker: Worker, sides: list[int]) -> str:
    """Serve a state for each size, as an executor does; the address."""
    store, address = Store(), ""
    for side in sides:
        store.put(str(side), state(side))
    ready = threading.Event()

    async def serve() -> None:
        nonlocal address
        server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_ExecutorServiceServicer_to_server(StateService(store, Jobs()), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        ready.set()
        await server.wait_for_termination()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait()
    return address


def _fetch(_worker: Worker, address: str, side: int, repeats: int) -> float:
    async def fetch() -> float:
        async with grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel:
            stub = rpc.ExecutorServiceStub(channel)

            async def once() -> float:
                begin = time.perf_counter()
                call = stub.FetchState(pb.FetchStateRequest(request_id=str(side), step=0))
                unpack(b"".join([part.chunk async for part in call]))
                return time.perf_counter() - begin

            await once()
            return statistics.median([await once() for _ in range(repeats)])

    return asyncio.run(fetch())


def _broadcast(worker: Worker, side: int, repeats: int, whole: bool) -> float:
    group = worker.group(1, [0, 1], f"broadcast {side} {whole}")
    mine = state(side)
    tensors = [mine.latent, *(mine.condition.values() if whole else ())]

    def send() -> None:
        for tensor in tensors:
            dist.broadcast(tensor, group_src=0, group=group.pg)

    with group.running():
        return _median(send, repeats)


def _median(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
