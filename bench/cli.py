"""The command line: `python -m bench simulate --policy edf --mix skewed --rate 12`."""

import json
from pathlib import Path
from typing import Any

import click

from bench import traces
from bench.options import MACHINES, WORKLOAD, Policy, options, setting
from bench.runs import run
from bench.show import show_summary
from scheduler import policies

SETTINGS = {"max_content_width": 110, "show_default": True}
POLICIES = "\b\nPolicies:\n" + "\n".join(f"  {line}" for line in policies.describe().splitlines())


class Commands(click.Group):
    """Commands whose errors are one line, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, ImportError) as error:
            raise click.ClickException(str(error)) from error


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
@as_json
def simulate(policy: str, as_json: bool, **given: Any) -> None:
    """Run one policy over one workload and print what came of it.

    SAR (SLO attainment ratio) is the share of requests on time.
    """
    figures = {"policy": policy, "seed": given["seed"], **run(policy, setting(**given))}
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        show_summary(figures)


@main.command()
@options(WORKLOAD)
@seed
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File.")
def workload(output: Path, **given: Any) -> None:
    """Write the requests of a workload to a trace file instead of running them."""
    arrivals = setting(**given).arrivals()
    traces.save(arrivals, output)
    click.echo(f"{len(arrivals)} requests in {output}")
