"""The Python client, twice over the same calls: AsyncClient for asyncio, Client for everyone else.

Every method raises a subclass of `tetriserve.TetriServeError`: RpcError with gRPC's code and the
scheduler's message, or RequestEnded where an image was wanted of a request that has none.
"""

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
import grpc.aio

from tetriserve import calls, errors
from tetriserve.calls import Backoff, Call, Paging, Watching
from tetriserve.quantities import Duration, Size
from tetriserve.transport import CHANNEL_OPTIONS, host_port
from tetriserve.types import Cluster, Event, OnLate, Quote, RequestStatus, Stage
from tetriserve.v1 import scheduler_pb2_grpc

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

DEFAULT_TARGET = "127.0.0.1:7700"
TARGET_VARIABLE = "TETRISERVE_SCHEDULER"


class Client:
    """A scheduler's client. Use it as a context manager, or close it. Safe for threads.

    `target` is the scheduler's HOST:PORT, by default that of the environment variable
    TETRISERVE_SCHEDULER, else 127.0.0.1:7700; anything else raises InvalidArgument. One attempt at a
    call takes at most `timeout` seconds; while the scheduler is unavailable a call is tried again for
    `patience` seconds.
    """

    def __init__(self, target: str | None = None, *, timeout: float = 30.0, patience: float = 10.0) -> None:
        self.target = _target(target)
        self._timeout = timeout
        self._patience = patience
        self._channel = grpc.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        self._stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)

    def submit(
        self,
        prompt: str,
        size: Size = "512x512",
        *,
        steps: int | None = None,
        seed: int | None = None,
        deadline: Duration | None = None,
        weight: float = 1.0,
        on_late: OnLate | str = OnLate.DEFAULT,
        id: str | None = None,
        guidance: float | None = None,
        negative_prompt: str = "",
        lora: str | None = None,
        unpromised: bool = False,
    ) -> RequestStatus:
        """Ask for an image; returns when the request is in the scheduler's journal.

        `size` in pixels, (768, 512) or "768x512". `deadline` in seconds from now, or "8s"; None is
        best effort. What is None else is left to the model, but for `seed` and `id`, which are
        chosen at random. An id of your own makes it harmless to submit the same request again; the
        seed then follows from the id. `negative_prompt` is what not to draw; a model that takes none
        warns. `lora` names an adapter that the executors have, "sketch", or "sketch:0.8" to add less of it.
        Where the scheduler promises deadlines, FailedPrecondition says that it cannot promise this one, and
        what it could; `unpromised` is content without.
        """
        return self._run(
            calls.submit(
                prompt,
                size,
                steps,
                seed,
                deadline,
                weight,
                on_late,
                id,
                guidance,
                negative_prompt,
                lora,
                unpromised,
            )
        )

    def quote(self, size: Size = "512x512", *, steps: int | None = None, prompt: str = "") -> Quote:
        """When such an image could be done, without asking for it."""
        return self._run(calls.quote(prompt, size, steps))

    def get(self, id: str) -> RequestStatus:
        """One request as it is now, with its spans."""
        return self._run(calls.get(id))

    def list(self, *stages: Stage | str, limit: int | None = None) -> Iterator[RequestStatus]:
        """Requests, newest first: those in `stages`, or all; at most `limit`. Fetched as you go."""
        paging = Paging(stages, limit)
        while call := paging.next_call():
            yield from paging.take(self._run(call))

    def watch(self, id: str, *, timeout: float | None = None, previews: int = 0) -> Iterator[Event]:
        """The request as it is now, then every change of it until it ends.

        With `previews` some events have a small, rough preview, made after every so many denoising steps;
        a slow reader gets the latest. Goes on by itself when the connection breaks and comes back. Raises
        DeadlineExceeded after `timeout` seconds.
        """
        watching, backoff = Watching(id, timeout, previews), Backoff(self._patience)
        while True:
            error: errors.RpcError | None = None
            stream = self._stub.Watch(watching.call.message, timeout=watching.time_left())
            try:
                for answer in stream:
                    backoff.restart()
                    event = watching.call.read(answer)
                    if watching.is_new(event):
                        yield event
                    if watching.ended:
                        return
            except grpc.RpcError as raised:
                error = errors.from_rpc(raised, self.target)
            finally:
                stream.cancel()
            time.sleep(backoff.pause_after(watching.broken_by(error)))

    def wait(self, id: str, *, timeout: float | None = None) -> RequestStatus:
        """The request once it has ended, well or not. Raises DeadlineExceeded after `timeout` seconds."""
        for _ in self.watch(id, timeout=timeout):
            pass
        return self.get(id)

    def image(self, id: str) -> bytes:
        """The PNG of a request that is done. Raises FailedPrecondition where it is not."""
        return self._run(calls.image(id))

    def result_bytes(self, id: str, *, timeout: float | None = None) -> bytes:
        """Wait for the request and return its PNG. Raises RequestEnded where it has none."""
        calls.check_done(self.wait(id, timeout=timeout))
        return self.image(id)

    def result(self, id: str, *, timeout: float | None = None) -> "Image":
        """Wait for the request and return its picture. Raises RequestEnded where it has none."""
        return _picture(self.result_bytes(id, timeout=timeout))

    def cancel(self, id: str) -> RequestStatus:
        """End a request at its next step; one that has ended stays as it is."""
        return self._run(calls.cancel(id))

    def cluster(self) -> Cluster:
        """The executors, the queue and the policy."""
        return self._run(calls.cluster())

    def set_policy(self, policy: str) -> str:
        """Plan by another policy from the next round on, e.g. "edf" or "fixed:2"; returns its name."""
        return self._run(calls.set_policy(policy))

    def close(self) -> None:
        """End the connection; calls in progress raise Cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        backoff = Backoff(self._patience)
        while True:
            try:
                answer = getattr(self._stub, call.method)(call.message, timeout=self._timeout)
                return call.read([*answer] if call.streams else answer)
            except grpc.RpcError as raised:
                error = errors.from_rpc(raised, self.target)
            except errors.Unavailable as raised:
                error = raised
            time.sleep(backoff.pause_after(error))


class AsyncClient:
    """A scheduler's client for asyncio: the methods of Client, to be awaited or iterated with `async for`.

    Make it where an event loop runs. See Client for the arguments.
    """

    def __init__(self, target: str | None = None, *, timeout: float = 30.0, patience: float = 10.0) -> None:
        self.target = _target(target)
        self._timeout = timeout
        self._patience = patience
        self._channel = grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        self._stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)

    async def submit(
        self,
        prompt: str,
        size: Size = "512x512",
        *,
        steps: int | None = None,
        seed: int | None = None,
        deadline: Duration | None = None,
        weight: float = 1.0,
        on_late: OnLate | str = OnLate.DEFAULT,
        id: str | None = None,
        guidance: float | None = None,
        negative_prompt: str = "",
        lora: str | None = None,
        unpromised: bool = False,
    ) -> RequestStatus:
        """As Client.submit."""
        return await self._run(
            calls.submit(
                prompt,
                size,
                steps,
                seed,
                deadline,
                weight,
                on_late,
                id,
                guidance,
                negative_prompt,
                lora,
                unpromised,
            )
        )

    async def quote(self, size: Size = "512x512", *, steps: int | None = None, prompt: str = "") -> Quote:
        """As Client.quote."""
        return await self._run(calls.quote(prompt, size, steps))

    async def get(self, id: str) -> RequestStatus:
        """As Client.get."""
        return await self._run(calls.get(id))

    async def list(self, *stages: Stage | str, limit: int | None = None) -> AsyncIterator[RequestStatus]:
        """As Client.list."""
        paging = Paging(stages, limit)
        while call := paging.next_call():
            for status in paging.take(await self._run(call)):
                yield status

    async def watch(
        self, id: str, *, timeout: float | None = None, previews: int = 0
    ) -> AsyncIterator[Event]:
        """As Client.watch."""
        watching, backoff = Watching(id, timeout, previews), Backoff(self._patience)
        while True:
            error: errors.RpcError | None = None
            stream = self._stub.Watch(watching.call.message, timeout=watching.time_left())
            try:
                async for answer in stream:
                    backoff.restart()
                    event = watching.call.read(answer)
                    if watching.is_new(event):
                        yield event
                    if watching.ended:
                        return
            except grpc.RpcError as raised:
                error = errors.from_rpc(raised, self.target)
            finally:
                stream.cancel()
            await asyncio.sleep(backoff.pause_after(watching.broken_by(error)))

    async def wait(self, id: str, *, timeout: float | None = None) -> RequestStatus:
        """As Client.wait."""
        async for _ in self.watch(id, timeout=timeout):
            pass
        return await self.get(id)

    async def image(self, id: str) -> bytes:
        """As Client.image."""
        return await self._run(calls.image(id))

    async def result_bytes(self, id: str, *, timeout: float | None = None) -> bytes:
        """As Client.result_bytes."""
        calls.check_done(await self.wait(id, timeout=timeout))
        return await self.image(id)

    async def result(self, id: str, *, timeout: float | None = None) -> "Image":
        """As Client.result."""
        return _picture(await self.result_bytes(id, timeout=timeout))

    async def cancel(self, id: str) -> RequestStatus:
        """As Client.cancel."""
        return await self._run(calls.cancel(id))

    async def cluster(self) -> Cluster:
        """As Client.cluster."""
        return await self._run(calls.cluster())

    async def set_policy(self, policy: str) -> str:
        """As Client.set_policy."""
        return await self._run(calls.set_policy(policy))

    async def close(self) -> None:
        """As Client.close."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        backoff = Backoff(self._patience)
        while True:
            try:
                answer = getattr(self._stub, call.method)(call.message, timeout=self._timeout)
                return call.read([part async for part in answer] if call.streams else await answer)
            except grpc.RpcError as raised:
                error = errors.from_rpc(raised, self.target)
            except errors.Unavailable as raised:
                error = raised
            await asyncio.sleep(backoff.pause_after(error))


def _target(target: str | None) -> str:
    target = target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    try:
        host_port(target, "scheduler")
    except ValueError as error:
        raise errors.InvalidArgument(str(error)) from None
    return target


def _picture(png: bytes) -> "Image":
    from PIL import Image  # only here: the client works without Pillow

    picture = Image.open(io.BytesIO(png))
    picture.load()
    return picture
