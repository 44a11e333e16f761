"""What is too large for the work channel: states between executors; images, checkpoints and previews.

Runs on the event loop, so that the device thread never waits for the network; its methods may be
called from any thread.
"""

import asyncio
import io
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
import grpc.aio
from PIL import Image

from executor.jobs import Job
from executor.link import UploadFailed
from executor.post import Post
from tetriserve.logs import Logger
from tetriserve.transport import CHANNEL_OPTIONS
from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import executor_pb2_grpc as rpc

ATTEMPTS, PAUSE_S = 3, 0.3

log = Logger("executor.courier")


class Courier:
    """Carries states, images, checkpoints and previews."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._peers: dict[str, grpc.aio.Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # The latest checkpoint of each request: on a slow network the older ones are not worth sending.
        self._checkpoints: dict[str, tuple[Job, int, Callable[[], bytes]]] = {}
        self._sending: asyncio.Task[None] | None = None
        # As of the checkpoints.
        self._previews: dict[str, tuple[Job, int, Callable[[], Image.Image | None]]] = {}
        self._showing: asyncio.Task[None] | None = None

    def fetch(self, job: Job, part: pb.Part, holders: Sequence[str]) -> "Future[bytes | None]":
        """The packed state at the part's first step from the first holder that has it; None: none has."""
        return asyncio.run_coroutine_threadsafe(self._fetch(job.order.id, part, holders), self._loop)

    def image(self, job: Job, image: Image.Image, done: pb.OrderDone) -> None:
        """Upload the finished picture as a PNG, then report the order as done."""
        self._post.call(self._spawn, self._image(job, image, done))

    def checkpoint(self, job: Job, request_id: str, step: int, pack: Callable[[], bytes]) -> None:
        """Upload a latent after `step` steps, unless a newer one of the request comes first."""
        self._post.call(self._queue_checkpoint, job, request_id, step, pack)

    def preview(self, job: Job, request_id: str, step: int, draw: Callable[[], Image.Image | None]) -> None:
        """Upload a preview after `step` steps, unless a newer one of the request comes first."""
        self._post.call(self._queue_preview, job, request_id, step, draw)

    def forget(self, request_id: str) -> None:
        """Do not send the request's checkpoint or preview any more. Event loop only."""
        self._checkpoints.pop(request_id, None)
        self._previews.pop(request_id, None)

    async def flush(self) -> None:
        """Wait until all that was to be uploaded has been, or has failed."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Drop the connections to peers."""
        for task in self._tasks:
            task.cancel()
        for channel in self._peers.values():
            await channel.close(None)

    async def _fetch(self, order_id: int, part: pb.Part, holders: Sequence[str]) -> bytes | None:
        request = pb.FetchStateRequest(request_id=part.request_id, step=part.first_step, order_id=order_id)
        for address in holders:
            if address not in self._peers:
                self._peers[address] = grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
            try:
                call = rpc.ExecutorServiceStub(self._peers[address]).FetchState(request)
                return b"".join([part.chunk async for part in call])
            except grpc.aio.AioRpcError as error:
                log.info("state not fetched", request=part.request_id, step=part.first_step, holder=address,
                         why=f"{error.code().name}: {error.details()}")  # fmt: skip
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    await self._peers.pop(address).close(None)
        return None

    async def _image(self, job: Job, image: Image.Image, done: pb.OrderDone) -> None:
        (part,) = job.order.parts
        header = pb.UploadHeader(
            kind=pb.UploadHeader.KIND_IMAGE,
            request_id=part.request_id,
            order_id=job.order.id,
            step=part.image.steps,
        )
        try:
            await self._upload(job, header, await asyncio.to_thread(_png, image))
        except UploadFailed as error:
            done.outcome, done.error = pb.OUTCOME_ABORTED, f"the image was not uploaded: {error}"
        except Exception as error:
            log.exception("image not encoded", request=part.request_id, order=job.order.id)
            done.outcome, done.error = pb.OUTCOME_ERROR, f"the image was not encoded: {error}"
        job.session.report(pb.JoinRequest(order_done=done))

    def _queue_checkpoint(self, job: Job, request_id: str, step: int, pack: Callable[[], bytes]) -> None:
        self._checkpoints[request_id] = (job, step, pack)
        if self._sending is None or self._sending.done():
            self._sending = self._spawn(self._send_checkpoints())

    async def _send_checkpoints(self) -> None:
        while self._checkpoints:
            request_id = next(iter(self._checkpoints))
            job, step, pack = self._checkpoints.pop(request_id)
            header = pb.UploadHeader(
                kind=pb.UploadHeader.KIND_CHECKPOINT, request_id=request_id, order_id=job.order.id, step=step
            )
            try:
                await self._upload(job, header, await asyncio.to_thread(pack))
            except UploadFailed as error:
                log.warning("checkpoint not uploaded", request=request_id, step=step, why=error)

    def _queue_preview(
        self, job: Job, request_id: str, step: int, draw: Callable[[], Image.Image | None]
    ) -> None:
        self._previews[request_id] = (job, step, draw)
        if self._showing is None or self._showing.done():
            self._showing = self._spawn(self._send_previews())

    async def _send_previews(self) -> None:
        while self._previews:
            request_id = next(iter(self._previews))
            job, step, draw = self._previews.pop(request_id)
            header = pb.UploadHeader(
                kind=pb.UploadHeader.KIND_PREVIEW, request_id=request_id, order_id=job.order.id, step=step
            )
            try:
                picture = await asyncio.to_thread(draw)
                if picture is not None:
                    await job.session.upload(header, await asyncio.to_thread(_jpeg, picture))
            except UploadFailed as error:
                log.info("preview not uploaded", request=request_id, step=step, why=error)
            except Exception:
                log.exception("preview not drawn", request=request_id, step=step)

    async def _upload(self, job: Job, header: pb.UploadHeader, data: bytes) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await job.session.upload(header, data)
            except UploadFailed:
                if attempt == ATTEMPTS or job.session.ended:
                    raise
            await asyncio.sleep(PAUSE_S * attempt)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
