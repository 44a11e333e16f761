"""One executor from start to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from pathlib import Path

import grpc.aio
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from executor import devices, pipelines
from executor.builtin import checkpoint
from executor.calibration import Calibration
from executor.config import Config
from executor.courier import Courier
from executor.encodings import Encodings
from executor.groups import Groups, Member
from executor.jobs import Jobs
from executor.latents import Store
from executor.link import Link
from executor.pipelines import Pipeline
from executor.post import Post
from executor.registration import introduction
from executor.runner import Runner
from executor.service import Agent, StateService
from tetriserve.guard import Guard
from tetriserve.logs import Logger
from tetriserve.transport import SERVER_OPTIONS
from tetriserve.v1 import executor_pb2
from tetriserve.v1 import executor_pb2_grpc as rpc

SERVICE = executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"].full_name
LOOK_S = 0.2
# After the grace: for a lost group to fail, for uploads, for the scheduler to end the stream.
ABANDON_S, FLUSH_S, PART_S = 1.5, 2.0, 3.0

log = Logger("executor")


class Broken(Exception):
    """The executor cannot go on; the message says why."""


def run(config: Config) -> None:
    """Load the model, measure it, then serve until a signal; ends the process.

    Raises:
        ValueError, OSError: something in the configuration is wrong.
        Refused: the scheduler does not take this executor.
        Broken: it has failed.
    """
    torch.set_num_threads(config.threads)
    device = devices.find(config.device)
    folder = config.model or checkpoint(config.cache)
    log.info("loading model", folder=folder, device=device, dtype=config.dtype)
    dtype = pipelines.DTYPES[config.dtype]
    pipeline = pipelines.load(folder, device, dtype, config.roles, config.attention, config.compile_mode)
    pipeline.decoding_tile = config.decoding_tile
    pipeline.step_cache = config.step_cache
    if config.lora_dir is not None:
        pipeline.load_adapters(config.lora_dir, config.lora_cache)
    pipeline.prepare_previews()
    groups = Groups(device, config.host, timeout_s=config.group_timeout_s)
    calibration = Calibration(pipeline, config.cache / "profiles")
    alone = groups.get(0, [Member(0, groups.store_address)], "start")
    sizes = [size for size in config.sizes if _can_draw(pipeline, *size)]
    if not sizes:
        raise ValueError(f"--sizes: the model can draw none of them; its limits are {pipeline.limits}")
    calibration.prepare(alone, sizes, config.batches)
    asyncio.run(_serve(config, folder, pipeline, calibration, groups))
    # Python would take torch apart for seconds, and a computation that is still on its way would crash.
    logging.shutdown()
    os._exit(0)


async def _serve(
    config: Config, folder: Path, pipeline: Pipeline, calibration: Calibration, groups: Groups
) -> None:
    store, jobs, post = Store(), Jobs(), Post()
    courier = Courier(post)
    states = StateService(store, jobs)
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]
    server = grpc.aio.server(interceptors=[Guard()], options=SERVER_OPTIONS)
    rpc.add_ExecutorServiceServicer_to_server(states, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    address = _listen(server, config)
    await server.start()

    agent = Agent(jobs, groups, store, courier)
    encodings = Encodings(pipeline.encode_text, config.text_cache)
    runner = Runner(pipeline, encodings, calibration, groups, store, courier, jobs, address)
    introduce = introduction(
        pipeline,
        calibration,
        store,
        folder=folder,
        address=address,
        store=groups.store_address,
        node=config.node,
        island=config.island,
    )
    link = Link(config.scheduler, introduce, agent, post)
    log.info("listening", address=address, store=groups.store_address)

    told = _signals()
    runner.start()
    attending = asyncio.create_task(link.run())
    supervising = asyncio.create_task(_supervise(agent, runner, checks))
    ends = {attending, supervising, asyncio.create_task(told.wait())}
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        supervising.cancel()
        await checks.enter_graceful_shutdown()
        agent.leave()
        if not await _ended(runner, config.grace_s):
            log.warning("the running order takes too long: its group is aborted")
            agent.abandon()
            await _ended(runner, ABANDON_S)
        await post.flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(courier.flush(), FLUSH_S)
        link.close()
        await asyncio.wait({attending}, timeout=PART_S)
        states.close()
        await courier.close()
        await server.stop(None)
    log.info("stopped")
    for task in (attending, supervising):
        if task.done() and not task.cancelled():
            task.result()


async def _supervise(
    agent: Agent,
    runner: threading.Thread,
    checks: health.aio.HealthServicer,  # type: ignore[name-defined]
) -> None:
    """Say by the health service whether orders can come and would run."""
    status = health_pb2.HealthCheckResponse
    while runner.is_alive():
        now = status.SERVING if agent.registered else status.NOT_SERVING
        for name in (health.OVERALL_HEALTH, SERVICE):
            await checks.set(name, now)
        await asyncio.sleep(LOOK_S)
    raise Broken("the device thread has died; see the log above")


def _listen(server: grpc.aio.Server, config: Config) -> str:
    """The address at which peers reach the server."""
    try:
        port = server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise ValueError(f"--listen: cannot listen at {config.listen}: {error}") from None
    return f"[{config.host}]:{port}" if ":" in config.host else f"{config.host}:{port}"


def _signals() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second ends the process at once."""
    told = asyncio.Event()

    def stop() -> None:
        if told.is_set():
            os._exit(130)
        log.info("stopping; once more to stop at once")
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return told


async def _ended(thread: threading.Thread, timeout: float) -> bool:
    await asyncio.to_thread(thread.join, timeout)
    return not thread.is_alive()


def _can_draw(pipeline: Pipeline, width: int, height: int) -> bool:
    limits = pipeline.limits
    fits = all(side % limits.size_multiple == 0 and side <= limits.max_side for side in (width, height))
    if not fits or pipeline.tokens(width, height) > limits.max_tokens:
        log.warning("size not measured: the model cannot draw it", size=f"{width}x{height}")
        return False
    return True
