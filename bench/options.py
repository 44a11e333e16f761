"""Options that several commands share, and the setting that they amount to."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from bench import traces
from bench.conditions import Conditions
from bench.runs import DEFAULT_PROFILE, SERVER_CONFIG, Setting, bundled_profiles, profile
from bench.workloads import MIX_HELP, PROCESSES, STEPS, Workload, mix
from scheduler import policies
from scheduler.admission import Admission
from scheduler.config import Config
from tetriserve.options import MOST, NOT_NEGATIVE, POSITIVE, SHARE

F = TypeVar("F", bound=Callable[..., Any])


class Policy(click.ParamType):
    """A policy's name, checked by finding it."""

    name = "policy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            policies.resolve(str(value))
        except (ValueError, ImportError) as error:
            self.fail(str(error), param, ctx)
        return str(value)


def _parsed(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """A callback for an option whose text `parse` understands, or refuses with a ValueError."""

    def callback(_context: click.Context, _parameter: click.Parameter, text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, OSError) as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _arrivals(text: str) -> tuple[str, tuple[float, ...] | None]:
    if text.startswith("trace:"):
        return "trace", tuple(arrival.at for arrival in traces.load(Path(text.removeprefix("trace:"))))
    if text in PROCESSES:
        return text, None
    raise ValueError(f"{text!r} is none of {', '.join(PROCESSES)} and trace:FILE")


def _decisions(text: str) -> tuple[bool, float]:
    if text == "measured":
        return True, 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST:
        raise ValueError(f"{text!r} is neither measured nor a time in seconds, such as 0.05")
    return False, seconds


def _profile(text: str) -> str:
    profile(text)
    return text


def _paces(text: str) -> tuple[float, ...]:
    try:
        paces = tuple(float(factor) for factor in text.split(",") if factor.strip())
    except ValueError:
        paces = (math.nan,)
    if not all(0 < pace < math.inf for pace in paces):
        raise ValueError(f"{text!r} is no list of factors, such as 1,1.8")
    return paces


def _mix(text: str) -> str:
    mix(text)
    return text


DRAWN = ("mix", "rate", "duration", "arrivals", "deadlines", "weights", "steps")
"""What a trace takes the place of."""
WORKLOAD = [
    click.option("--mix", default="uniform", callback=_parsed(_mix), help=f"Sizes: {MIX_HELP} (README)."),
    click.option("--rate", type=POSITIVE, default=12.0, help="Requests a minute, on average."),
    click.option("--duration", type=POSITIVE, default=1200.0, help="Seconds in which requests arrive."),
    click.option("--requests", type=click.IntRange(min=1), help="This many requests, however long it takes."),
    click.option(
        "--arrivals",
        default="poisson",
        metavar="|".join([*PROCESSES, "trace:FILE"]),
        callback=_parsed(_arrivals),
        help="When they arrive: at random, in bursts of four times the rate, or as in a trace.",
    ),
    click.option(
        "--trace",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Take requests from a file instead; see bench/README.md for the three formats.",
    ),
    click.option("--slo-scale", type=POSITIVE, default=1.0, help="Multiplies every deadline."),
    click.option(
        "--deadlines",
        type=click.Choice(["by-size", "unrelated"]),
        default="by-size",
        help="The paper's 1.5, 2, 3 and 5 s by size, or 5 to 20 s whatever the size.",
    ),
    click.option(
        "--weights",
        type=click.Choice(["equal", "tiers"]),
        default="equal",
        help="All requests alike, or 60 % of weight 1, 30 % of 3 and 10 % of 10.",
    ),
    click.option("--steps", type=click.IntRange(min=1), default=STEPS, help="Denoising steps of a request."),
    click.option(
        "--profile",
        "profile_name",
        default=DEFAULT_PROFILE,
        callback=_parsed(_profile),
        help=f"Step times: {', '.join(bundled_profiles()) or 'none bundled'}, or a CSV file.",
    ),
    click.option("--gpus", type=click.IntRange(min=1), default=8, help="GPUs in all."),
    click.option(
        "--nodes",
        type=click.IntRange(min=1),
        default=1,
        help="Equal nodes that they are in.",
    ),
    click.option(
        "--islands",
        type=click.IntRange(min=1),
        default=1,
        help="Equal islands of each node; groups stay within one.",
    ),
]

SCHEDULER = [
    click.option(
        "--round", "round_s", type=POSITIVE, default=SERVER_CONFIG.round_s, help="Longest order, s."
    ),
    click.option(
        "--lead",
        "lead_s",
        type=NOT_NEGATIVE,
        default=SERVER_CONFIG.lead_s,
        help="How long before the end of an order the next one is planned, s.",
    ),
    click.option(
        "--margin",
        "margin_s",
        type=NOT_NEGATIVE,
        default=SERVER_CONFIG.margin_s,
        help="Kept free before every deadline, s.",
    ),
    click.option(
        "--scale-up",
        type=SHARE,
        default=SERVER_CONFIG.scale_up,
        help="How freely idle GPUs are spent on finishing early: 0 not at all, 1 all there are.",
    ),
    click.option(
        "--late",
        type=click.Choice(["run", "drop"]),
        default="run",
        help="What becomes of requests that cannot meet their deadline any more.",
    ),
]

MACHINES = [
    *SCHEDULER,
    click.option(
        "--admission",
        type=click.Choice([choice.value for choice in Admission]),
        default=Admission.ACCEPT.value,
        help="Let all in, refuse what cannot be on time, or promise deadlines and refuse the rest.",
    ),
    click.option(
        "--age-bound",
        "age_bound_s",
        type=POSITIVE,
        default=SERVER_CONFIG.age_bound_s,
        help="Who is late, or has no deadline, gets a claim on GPUs after waiting for so long, s.",
    ),
    click.option(
        "--budget",
        "budget_s",
        type=POSITIVE,
        default=1.0,
        help="Time for one decision, s. Solvers bound their own work besides; where this cuts them shorter, "
        "runs do not repeat.",
    ),
    click.option(
        "--charge-decisions",
        default="0",
        metavar="measured|SECONDS",
        callback=_parsed(_decisions),
        help="What is decided comes this much later; measured: by the time that deciding took.",
    ),
    click.option(
        "--switch-ms", type=NOT_NEGATIVE, default=0.0, help="Cost of a change of group, ms, which plans know."
    ),
    click.option(
        "--node-paces",
        metavar="FACTOR,...",
        default="",
        callback=_parsed(_paces),
        help="How many times as long as in the profile things take on each node.",
    ),
    click.option("--step-cv", type=NOT_NEGATIVE, default=0.0, help="Coefficient of variation of step times."),
    click.option("--failure-rate", type=NOT_NEGATIVE, default=0.0, help="Deaths per executor and hour."),
    click.option("--repair", "repair_s", type=POSITIVE, default=30.0, help="Until a dead one is back, s."),
    click.option("--failure-seed", type=int, help="Seed of the deaths, if not --seed."),
]


def options(*groups: list[Callable[[F], F]]) -> Callable[[F], F]:
    """Groups of options as one decorator."""

    def decorate(command: F) -> F:
        for group in reversed(groups):
            for option in reversed(group):
                command = option(command)
        return command

    return decorate


def _warn_of_drawn() -> None:
    """Say which options a trace makes mean nothing."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name}" for name in DRAWN if source(name) is ParameterSource.COMMANDLINE]
    if given:
        click.echo(f"No heed is taken of {', '.join(given)} with --trace, where the file has them.", err=True)


def setting(
    *,
    mix: str,
    rate: float,
    duration: float,
    requests: int | None,
    arrivals: tuple[str, tuple[float, ...] | None],
    trace: Path | None,
    slo_scale: float,
    deadlines: str,
    weights: str,
    steps: int,
    profile_name: str,
    gpus: int,
    nodes: int,
    islands: int,
    seed: int,
    round_s: float = SERVER_CONFIG.round_s,
    lead_s: float = SERVER_CONFIG.lead_s,
    margin_s: float = SERVER_CONFIG.margin_s,
    scale_up: float = SERVER_CONFIG.scale_up,
    late: str = "run",
    admission: str = "accept",
    age_bound_s: float = SERVER_CONFIG.age_bound_s,
    budget_s: float = 1.0,
    charge_decisions: tuple[bool, float] = (False, 0.0),
    switch_ms: float = 0.0,
    node_paces: tuple[float, ...] = (),
    step_cv: float = 0.0,
    failure_rate: float = 0.0,
    repair_s: float = 30.0,
    failure_seed: int | None = None,
) -> Setting:
    """The setting of the options' values."""
    from bench.workloads import mix as kinds

    if trace:
        _warn_of_drawn()
    process, times = arrivals
    workload = Workload(
        kinds(mix),
        rate=rate,
        duration=duration if times is None else float("inf"),
        requests=requests,
        process=process,
        times=times,
        slo_scale=slo_scale,
        deadlines=deadlines,
        weights=weights,
        steps=steps,
        seed=seed,
    )
    measured, decision_s = charge_decisions
    conditions = Conditions(
        step_cv=step_cv,
        switch_s=switch_ms / 1000,
        decision_s=decision_s,
        charge_measured=measured,
        budget_s=budget_s,
        node_paces=node_paces,
        seed=seed,
    )
    config = Config(
        round_s=round_s,
        lead_s=lead_s,
        margin_s=margin_s,
        scale_up=scale_up,
        drop_late=late == "drop",
        age_bound_s=age_bound_s,
    )
    return Setting(
        workload,
        trace,
        profile_name,
        gpus,
        config,
        conditions,
        failure_rate,
        repair_s,
        failure_seed,
        nodes,
        Admission(admission),
        islands,
    )
