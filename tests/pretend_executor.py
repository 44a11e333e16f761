"""An executor that sleeps instead of computing: it speaks the fleet's protocol and needs no torch.

    python tests/pretend_executor.py --scheduler HOST:PORT [--fail-prompt WORD] [--die-after SECONDS]

For tests of what is around the executors. A step at 512x512 takes 30 ms, divided by degree^0.8; a batch as
many times longer as the square root of its size.
"""

import argparse
import asyncio
import io
import itertools
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator

import grpc.aio
from PIL import Image

from tetriserve.v1 import executor_pb2 as pb
from tetriserve.v1 import executor_pb2_grpc, scheduler_pb2, types_pb2

STEP_S, ENCODE_S, DECODE_S = 0.03, 0.02, 0.05
MODEL = scheduler_pb2.ModelInfo(
    family="flux",
    name="pretend",
    size_multiple=16,
    max_side=2048,
    max_pixels=2048 * 2048,
    max_steps=100,
    default_steps=10,
    max_prompt_tokens=64,
    fingerprint="pretend",
    loras=["sketch", "water.colour"],
)


def step_seconds(width: int, height: int, degree: int) -> float:
    return STEP_S * width * height / 512**2 / degree**0.8


def step_times() -> list[pb.StepTime]:
    times = [pb.StepTime(kind=pb.StepTime.KIND_ENCODE, degree=1, batch=1, seconds=ENCODE_S)]
    for side in (256, 512, 1024):
        size = {"width": side, "height": side}
        times.append(pb.StepTime(kind=pb.StepTime.KIND_DECODE, degree=1, batch=1, seconds=DECODE_S, **size))
        for degree, batch in itertools.product((1, 2, 4), (1, 2, 4)):
            seconds = step_seconds(side, side, degree) * batch**0.5
            row = {"degree": degree, "batch": batch, "seconds": seconds, **size}
            times.append(pb.StepTime(kind=pb.StepTime.KIND_STEP, **row))
    return times


class Pretend:
    """One connection to the scheduler."""

    def __init__(self, scheduler: str, fail_prompt: str | None) -> None:
        self._channel = grpc.aio.insecure_channel(scheduler)
        self._stub = executor_pb2_grpc.FleetServiceStub(self._channel)
        self._fail_prompt = fail_prompt
        self._reports: asyncio.Queue[pb.JoinRequest | None] = asyncio.Queue()
        self._orders: asyncio.Queue[pb.Order] = asyncio.Queue()
        self._stop_before: dict[int, bool] = {}
        self._slot = -1

    async def run(self) -> None:
        worker = asyncio.create_task(self._work())
        heart = asyncio.create_task(self._beat())
        self._report(
            registration=pb.Registration(
                instance=uuid.uuid4().hex,
                address=f"127.0.0.1:{os.getpid() % 60000 + 1}",
                store="127.0.0.1:1",
                node="here",
                device="pretend",
                model=MODEL,
                step_times=step_times(),
            )
        )
        async for command in self._stub.Join(self._sent(), wait_for_ready=True):
            match command.WhichOneof("command"):
                case "welcome":
                    self._slot = command.welcome.slot
                case "order":
                    self._orders.put_nowait(command.order)
                case "truncate":
                    self._stop_before[command.truncate.order_id] = True
        worker.cancel()
        heart.cancel()
        await self._channel.close()

    def leave(self) -> None:
        if self._slot < 0:
            os._exit(0)
        self._report(leaving=pb.Leaving())
        self._reports.put_nowait(None)

    def _report(self, **report: object) -> None:
        self._reports.put_nowait(pb.JoinRequest(**report))  # type: ignore[arg-type]

    async def _sent(self) -> AsyncIterator[pb.JoinRequest]:
        while (report := await self._reports.get()) is not None:
            yield report

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._report(heartbeat=pb.Heartbeat())

    async def _work(self) -> None:
        while True:
            order = await self._orders.get()
            began = time.monotonic()
            done = pb.OrderDone(order_id=order.id, outcome=pb.OUTCOME_OK)
            ran = 0
            if any(self._fail_prompt and self._fail_prompt in part.image.prompt for part in order.parts):
                done.outcome, done.error = pb.OUTCOME_ERROR, "told to fail"
            elif order.stage == types_pb2.STAGE_UNSPECIFIED and not order.profile:
                print("warm up of", [member.slot for member in order.group.members], flush=True)
            elif order.stage == types_pb2.STAGE_UNSPECIFIED:
                done.step_times.extend(step_times())
            elif order.stage == types_pb2.STAGE_ENCODING:
                await asyncio.sleep(ENCODE_S)
            elif order.stage == types_pb2.STAGE_DENOISING:
                ran = await self._step(order)
            else:
                await asyncio.sleep(DECODE_S)
                await self._upload(order)
            for part in order.parts:
                done.held.add(request_id=part.request_id, step=part.first_step + ran)
            done.seconds = time.monotonic() - began
            self._report(order_done=done)

    async def _step(self, order: pb.Order) -> int:
        leads = order.group.members[0].slot == self._slot
        image, batch = order.parts[0].image, len(order.parts)
        seconds = step_seconds(image.width, image.height, len(order.group.members)) * batch**0.5
        due = time.monotonic()
        for step in range(order.steps):
            # Only a leader is told to stop; alone it need not tell others.
            if len(order.group.members) == 1 and self._stop_before.pop(order.id, False):
                return step
            # Members of a real group wait for each other; these must not drift apart.
            due += seconds
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if leads:
                done = pb.StepDone(order_id=order.id, step=step, seconds=seconds, batch=batch)
                self._report(step_done=done)
        return order.steps

    async def _upload(self, order: pb.Order) -> None:
        file = io.BytesIO()
        (part,) = order.parts
        colour = (part.image.seed % 256, 90, 60)
        Image.new("RGB", (part.image.width, part.image.height), colour).save(file, "png")
        header = pb.UploadHeader(
            kind=pb.UploadHeader.KIND_IMAGE, request_id=part.request_id, order_id=order.id
        )
        await self._stub.Upload(
            iter([pb.UploadRequest(header=header), pb.UploadRequest(chunk=file.getvalue())])
        )


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scheduler", required=True)
    parser.add_argument("--device")
    parser.add_argument("--fail-prompt")
    parser.add_argument("--die-after", type=float)
    words = parser.parse_args()
    pretend = Pretend(words.scheduler, words.fail_prompt)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, pretend.leave)
    if words.die_after:
        print("a bad end is near", flush=True)
        loop.call_later(words.die_after, os._exit, 3)
    await pretend.run()


if __name__ == "__main__":
    asyncio.run(main())
