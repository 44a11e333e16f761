"""The command `python -m scheduler`: the gRPC scheduler service."""

import asyncio
import math
import signal
import sys
from pathlib import Path

import click
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from scheduler import policies
from scheduler.admission import Admission
from scheduler.config import Config
from scheduler.driver import Driver
from scheduler.fleet import Fleet
from scheduler.journal import Journal, JournalError
from scheduler.profile import load
from scheduler.rounds import Rounds
from scheduler.service import FleetService, SchedulerService
from tetriserve import logs
from tetriserve.guard import Guard
from tetriserve.logs import Logger
from tetriserve.options import NOT_NEGATIVE, POSITIVE, SHARE
from tetriserve.quantities import parse_duration
from tetriserve.transport import SERVER_OPTIONS, check_listen, host_port
from tetriserve.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc

log = Logger("scheduler")
DRAIN_S = 10.0
GRACE_S = 2.0


def _policy(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    try:
        policies.resolve(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return name


def _address(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    try:
        host_port(text, "--listen", free_port=True)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return text


def _duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    if text == "never":
        return math.inf
    try:
        return parse_duration(text, "--age-bound")
    except ValueError as error:
        raise click.UsageError(f"{error}; or never") from None


@click.command(
    context_settings={"max_content_width": 110, "show_default": True, "auto_envvar_prefix": "TETRISERVE"},
    epilog="\b\nPolicies:\n" + "\n".join(f"  {line}" for line in policies.describe().splitlines()),
)
@click.option(
    "--listen",
    default="127.0.0.1:7700",
    metavar="HOST:PORT",
    callback=_address,
    help="Where clients and executors call; port 0 takes a free one.",
)
@click.option("--policy", default="cp-sat", callback=_policy, help="How rounds are planned; see below.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data"),
    help="Folder of the journal, the images and the checkpoints; a restart goes on from it.",
)
@click.option("--round", type=POSITIVE, default=0.25, help="Length of an order at most, in seconds.")
@click.option(
    "--lead",
    type=NOT_NEGATIVE,
    default=0.1,
    help="How long before the end of an order the next one is planned, in seconds.",
)
@click.option("--budget", type=POSITIVE, default=0.05, help="Time for one decision of a policy, in seconds.")
@click.option(
    "--margin",
    type=NOT_NEGATIVE,
    default=0.1,
    help="Kept free before every deadline, in seconds.",
)
@click.option(
    "--late",
    type=click.Choice(["run", "drop"]),
    default="run",
    help="What becomes of requests that can't meet their deadline any more, unless they say it themselves.",
)
@click.option(
    "--scale-up",
    type=SHARE,
    default=1.0,
    help="How freely idle GPUs are spent on finishing early: the share of an order's GPU-seconds that may be "
    "extra. 0 saves the most GPU-hours.",
)
@click.option(
    "--admission",
    type=click.Choice([choice.value for choice in Admission]),
    default=Admission.ACCEPT.value,
    help="Let all requests in, refuse what cannot be on time, or promise deadlines: a promised one is kept "
    "whatever comes later, and what cannot be promised is refused.",
)
@click.option(
    "--age-bound",
    default="600s",
    metavar="DURATION|never",
    callback=_duration,
    help="Who is late, or has no deadline, gets a claim on GPUs after waiting for so long.",
)
@click.option("--queue-limit", type=click.IntRange(min=1), default=1000, help="Outstanding requests at most.")
@click.option(
    "--expect",
    type=click.IntRange(min=0),
    default=1,
    help="Wait for this many executors before any work begins.",
)
@click.option("--lease", type=POSITIVE, default=6.0, help="Silence after which an executor is lost.")
@click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Plan with the step times of this file, such as `python -m executor profile` writes; what it lacks "
    "is measured by the executors.",
)
@click.option(
    "--warm-groups",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Use groups of executors only after a first step has made them; auto: on GPUs, where that takes "
    "NCCL a second.",
)
@click.option("--node-size", default=8, help="Slots of a node, a power of two; groups stay within one.")
@logs.options
def main(
    listen: str,
    policy: str,
    data_dir: Path,
    round: float,
    lead: float,
    budget: float,
    margin: float,
    scale_up: float,
    late: str,
    admission: str,
    age_bound: float,
    queue_limit: int,
    expect: int,
    lease: float,
    profile: Path | None,
    warm_groups: str,
    node_size: int,
    log_format: str,
    log_level: str,
) -> None:
    """Decide, step by step, which requests run, on which GPUs and how wide.

    Executors (python -m executor) and clients (tetriserve) dial --listen. Every option can be set by an
    environment variable: --data-dir by TETRISERVE_DATA_DIR.
    """
    logs.setup(log_format, log_level)
    config = Config(
        round_s=round,
        lead_s=lead,
        margin_s=margin,
        scale_up=scale_up,
        drop_late=late == "drop",
        age_bound_s=age_bound,
    )
    try:
        fleet = Fleet(node_size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--node-size") from None
    try:
        step_times = load(profile).entries if profile else ()
    except (ValueError, OSError) as error:
        raise click.BadParameter(str(error), param_hint="--profile") from None
    try:
        journal = Journal(data_dir)
    except JournalError as error:
        raise click.ClickException(str(error)) from None
    driver = Driver(
        Rounds(config),
        fleet,
        journal,
        policy,
        budget_s=budget,
        lease_s=lease,
        expect=expect,
        admission=Admission(admission),
        warm_groups={"auto": None, "always": True, "never": False}[warm_groups],
    )
    driver.learn(step_times)
    sys.exit(asyncio.run(_serve(listen, driver, queue_limit)))


async def _serve(listen: str, driver: Driver, queue_limit: int) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    resumed = await driver.restore()
    server = grpc.aio.server(interceptors=[Guard()], options=SERVER_OPTIONS)
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(SchedulerService(driver, queue_limit), server)
    executor_pb2_grpc.add_FleetServiceServicer_to_server(FleetService(driver), server)
    healthy = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    names = [
        scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name,
        executor_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name,
    ]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    try:
        check_listen(*host_port(listen, "--listen", free_port=True))
        port = server.add_insecure_port(listen)
    except (OSError, RuntimeError) as error:
        log.error("cannot listen", address=listen, error=getattr(error, "strerror", None) or error)
        return 1
    await server.start()
    for name in ["", *names]:
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    address = f"{listen.rpartition(':')[0]}:{port}"
    log.info("listening", address=address, policy=driver.policy_name, resumed=resumed)
    planning = asyncio.create_task(driver.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([planning, stopping], return_when=asyncio.FIRST_COMPLETED)
    failed = planning.done()
    if failed:
        log.error("planning has failed, stopping", error=repr(planning.exception()))
    log.info("stopping", orders_out=driver.rounds.busy)
    await healthy.enter_graceful_shutdown()
    if not failed and not await driver.drain(DRAIN_S):
        log.warning("orders were still out; their requests go on after a restart")
    planning.cancel()
    for entry in driver.entries.values():
        for watcher in entry.watchers:
            watcher.set()
    await driver.close()
    await server.stop(GRACE_S)
    log.info("stopped")
    return int(failed)
