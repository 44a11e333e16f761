"""The command line: `python -m bench simulate --policy edf --mix skewed --rate 12`."""

import errno
import json
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bench import bound as limits
from bench import misses as missed
from bench import plots, traces
from bench.compare import lines
from bench.matrix import GROUPS
from bench.options import MACHINES, SCHEDULER, WORKLOAD, Policy, options, setting
from bench.runs import Setting, profile, run
from bench.show import progress_bar, show_bound, show_comparison, show_misses, show_replay, show_summary
from bench.trials import BOUND, Trial, perform_all
from scheduler import policies
from scheduler.config import Config
from tetriserve.files import replacing
from tetriserve.options import NOT_NEGATIVE, POSITIVE, Picture

RESULTS = click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "results",
    show_default="bench/results",
    help="Folder for what comes out.",
)
SETTINGS = {"max_content_width": 110, "show_default": True}
NO_BOUND = "the bound does not hold with --step-cv, or where --node-paces are below 1"
POLICIES = "\b\nPolicies:\n" + "\n".join(f"  {line}" for line in policies.describe().splitlines())


def _policies(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        try:
            policies.resolve(name)
        except (ValueError, ImportError) as error:
            raise click.BadParameter(str(error)) from None
    if len(names) != len(set(names)) or not names:
        raise click.BadParameter("name each policy once")
    return names


def _some_policies(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else _policies(context, parameter, text)


def _numbers(wanted: Setting, first: int, seeds: int) -> range:
    """The seeds to run: but one where others would only repeat it, which is said."""
    if seeds > 1 and not wanted.varies:
        click.echo(f"One run each in place of {seeds}: with --trace the seed draws nothing.", err=True)
        seeds = 1
    return range(first, first + seeds)


class Commands(click.Group):
    """Commands whose errors are one line, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, ImportError) as error:
            raise click.ClickException(str(error)) from error
        except BrokenProcessPool:
            raise click.ClickException(
                "a process was killed in the middle of a run, perhaps for want of memory: try fewer --jobs"
            ) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader has seen enough; click leaves quietly
            raise click.ClickException(": ".join(filter(None, (error.filename, error.strerror)))) from error


@click.group(cls=Commands, context_settings=SETTINGS)
def main() -> None:
    """Try scheduling policies without a GPU.

    The simulator runs the server's own scheduling core in virtual time, with step times from a profile.
    Times are in seconds unless an option says otherwise.
    """


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs to read.")
seed = click.option("--seed", type=int, default=0, help="Of all that is drawn: the same seed, the same run.")


@main.command(epilog=POLICIES)
@click.option("--policy", type=Policy(), required=True, help="How rounds are planned; see below.")
@options(WORKLOAD, MACHINES)
@seed
@click.option("--timeline", type=Picture(), help="Draw what ran where: a .png, .pdf or .svg file.")
@as_json
def simulate(policy: str, timeline: str | None, as_json: bool, **given: Any) -> None:
    """Run one policy over one workload and print what came of it.

    SAR (SLO attainment ratio) is the share of requests on time.
    """
    wanted = setting(**given)
    outcomes, figures = run(policy, wanted)
    figures = {"policy": policy, "seed": given["seed"], **figures}
    if timeline:
        with replacing(timeline) as draft:
            plots.timeline(policy, outcomes, wanted.gpus, draft)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        show_summary(figures)


@main.command()
@options(WORKLOAD)
@seed
@click.option("--time-limit", type=POSITIVE, default=60.0, help="For each busy period, s; loosens the bound.")
@as_json
def bound(time_limit: float, as_json: bool, **given: Any) -> None:
    """Bound from above what any scheduler could bring in on time, even one that knows the future.

    By weight. A bound for runs without noise in step times. It takes all GPUs for one block: --nodes and
    --islands leave it as it is, and only hurt a real scheduler.
    """
    wanted = setting(**given)
    found = limits.bound(wanted.arrivals(), profile(wanted.profile), wanted.gpus, time_limit)
    figures = {"seed": given["seed"], "sar_bound": found.sar, **asdict(found)}
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        show_bound(figures)


@main.command(epilog=POLICIES)
@click.option("--policy", type=Policy(), required=True, help="How rounds are planned; see below.")
@options(WORKLOAD, MACHINES)
@seed
@as_json
def misses(policy: str, as_json: bool, **given: Any) -> None:
    """List what a policy missed and a scheduler that knows the future could have had on time.

    With each, the requests that were there at the same time: who was in the way.
    """
    wanted = setting(**given)
    if not wanted.within_bound:
        raise click.UsageError(f"there is nothing to hold the policy against: {NO_BOUND}")
    arrivals = wanted.arrivals()
    limit = limits.bound(arrivals, profile(wanted.profile), wanted.gpus)
    found = missed.misses(wanted.simulate(policy, arrivals).requests, limit)
    if as_json:
        click.echo(json.dumps([asdict(miss) for miss in found], indent=2))
    else:
        show_misses(found)


@main.command(epilog=POLICIES)
@click.option(
    "--policies",
    required=True,
    metavar="A,B,...",
    callback=_policies,
    help="Policies to compare; the first is what the others are held against.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=8, help="Runs of each, with seeds --seed and up."
)
@click.option("--jobs", type=click.IntRange(min=1), default=2, help="Processes.")
@click.option("--bound/--no-bound", "with_bound", default=True, help="Show what no scheduler can exceed.")
@options(WORKLOAD, MACHINES)
@seed
@as_json
def compare(
    policies: list[str], seeds: int, jobs: int, with_bound: bool, as_json: bool, **given: Any
) -> None:
    """Run several policies on the same requests and show the differences.

    Intervals are 95 %, over seeds; differences are taken seed by seed.
    """
    wanted = setting(**given)
    if with_bound and not wanted.within_bound:
        click.echo(f"Left out: {NO_BOUND}", err=True)
        with_bound = False
    numbers = _numbers(wanted, given["seed"], seeds)
    trials = [
        Trial("", policy, number, wanted)
        for policy in [*policies, *([BOUND] if with_bound else [])]
        for number in numbers
    ]
    with progress_bar("runs") as progress:
        records = perform_all(trials, jobs, progress=progress)
    if as_json:
        click.echo(json.dumps(records, indent=2))
    else:
        show_comparison(lines(records))


@main.command(epilog=POLICIES)
@click.option("--policy", type=Policy(), default="cp-sat", help="Whose knobs to turn.")
@click.option(
    "--others",
    default="edf,tetriserve",
    metavar="A,B,...",
    callback=_policies,
    help="Policies to draw beside it.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=8, help="Runs of each, with seeds --seed and up."
)
@click.option("--jobs", type=click.IntRange(min=1), default=2, help="Processes.")
@RESULTS
@options(WORKLOAD, MACHINES)
@seed
def exchange(policy: str, others: list[str], seeds: int, jobs: int, folder: Path, **given: Any) -> None:
    """Show what the knobs trade: requests on time for GPU-seconds, and for how long the late wait."""
    from bench.exchange import exchange as draw

    wanted = setting(**given)
    numbers = _numbers(wanted, given["seed"], seeds)
    with progress_bar("runs") as progress:
        written = draw(folder, policy, others, wanted, numbers, jobs, progress)
    for path in written:
        click.echo(path)


@main.command(epilog=POLICIES)
@click.option("--quick", is_flag=True, help="A few short runs of some groups, to see that everything works.")
@click.option(
    "--policies", callback=_some_policies, metavar="A,B,...", help="Instead of all; the first leads."
)
@click.option("--groups", multiple=True, type=click.Choice(GROUPS), help="Only these parts; several times.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    show_default="8, or 2 with --quick",
    help="Runs of each, with seeds --seed and up.",
)
@seed
@click.option(
    "--duration",
    type=POSITIVE,
    show_default="300, or 200 with --quick",
    help="Seconds in which requests arrive.",
)
@click.option(
    "--bound-limit",
    "bound_limit_s",
    type=NOT_NEGATIVE,
    default=20.0,
    help="Time for the bound of each busy period, s; less loosens it, 0 leaves it out.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=2, help="Processes.")
@RESULTS
def paper(
    quick: bool,
    policies: list[str] | None,
    groups: tuple[str, ...],
    seeds: int | None,
    seed: int,
    duration: float | None,
    bound_limit_s: float,
    jobs: int,
    folder: Path,
) -> None:
    """Run the whole matrix of the evaluation and write its tables and plots.

    Policies by mixes, deadlines, rates, bursts, weights and both bundled profiles. Takes hours; when
    interrupted, the same command goes on: runs that the folder has records of are not made again. Delete
    them after a change of the code.
    """
    from bench.paper import available
    from bench.paper import paper as run_paper

    with progress_bar("runs") as progress:
        written = run_paper(
            folder,
            policies or available(),
            seeds=range(seed, seed + (seeds or (2 if quick else 8))),
            jobs=jobs,
            duration=duration or (200.0 if quick else 300.0),
            quick=quick,
            groups=groups,
            bound_limit_s=bound_limit_s,
            progress=progress,
        )
    for path in written:
        click.echo(path)


@main.command(epilog=POLICIES)
@click.option("--quick", is_flag=True, help="Small problems only, to see that everything works.")
@click.option(
    "--policies", callback=_some_policies, metavar="A,B,...", show_default="edf,cp-sat,ilp,tetriserve"
)
@click.option("--samples", type=click.IntRange(min=1), default=200, help="Decisions of each kind, at most.")
@click.option("--budget", "budget_s", type=POSITIVE, default=0.05, help="Time for one decision, s.")
@seed
@RESULTS
def solver(
    quick: bool, policies: list[str] | None, samples: int, budget_s: float, seed: int, folder: Path
) -> None:
    """Time decisions: 1 to 300 requests on 8 GPUs, up to 5,000 on 1,024.

    On moments of simulated overload and on random ones, all policies on the same. Takes minutes.
    """
    from bench import solver as bench

    cases = bench.QUICK_CASES if quick else bench.CASES
    lines = bench.measure(
        policies or bench.POLICIES,
        cases,
        samples,
        budget_s,
        seed,
        lambda case: click.echo(
            f"{case.requests} requests on {8 * case.nodes} GPUs, {case.source}", err=True
        ),
    )
    for path in bench.write(lines, budget_s, folder):
        click.echo(path)


@main.command()
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--policy", type=Policy(), default="cp-sat", help="That it was recorded with.")
@click.option("--gpus", type=click.IntRange(min=1), help="Executors; else those seen at work.")
@click.option("--profile", "profile_name", help="Step times; else those of the recording itself.")
@options(SCHEDULER)
@as_json
def replay(
    recording: Path,
    policy: str,
    gpus: int | None,
    profile_name: str | None,
    as_json: bool,
    late: str,
    round_s: float,
    lead_s: float,
    margin_s: float,
    scale_up: float,
) -> None:
    """Put a recorded run of the service through the simulator and compare.

    RECORDING is what `tetriserve timeline --json` prints. The options are those that the scheduler ran with.
    """
    from bench import replay as bench

    recorded = bench.load(recording)
    steps = profile(profile_name) if profile_name else bench.measured(recorded)
    config = Config(
        round_s=round_s, lead_s=lead_s, margin_s=margin_s, scale_up=scale_up, drop_late=late == "drop"
    )
    outcomes = bench.replay(recorded, steps, policy, gpus or bench.gpus_of(recorded), config)
    figures = bench.compare(recorded, outcomes)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        show_replay(figures)


@main.command()
@options(WORKLOAD)
@seed
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File.")
def workload(output: Path, **given: Any) -> None:
    """Write the requests of a workload to a trace file instead of running them."""
    arrivals = setting(**given).arrivals()
    traces.save(arrivals, output)
    click.echo(f"{len(arrivals)} requests in {output}")
