"""Runs as plain data, so that they can be sent to other processes, named and resumed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench import traces
from bench.conditions import Conditions, random_faults
from bench.simulator import Arrival, Outcomes, Simulation
from bench.summary import latency_percentiles, summary
from bench.workloads import Workload
from scheduler.admission import Admission
from scheduler.config import Config
from scheduler.policies import resolve
from scheduler.profile import Profile, load

PROFILES = Path(__file__).parent / "profiles"
DEFAULT_PROFILE = "flux1-dev-8xh100"
FAIR = Conditions()
SERVER_CONFIG = Config(round_s=0.25, lead_s=0.1, margin_s=0.1, age_bound_s=600.0)
"""What `python -m scheduler` runs with unless it is told otherwise."""


def bundled_profiles() -> list[str]:
    """Names that `--profile` takes besides files."""
    return sorted(path.stem for path in PROFILES.glob("*.csv"))


@lru_cache
def profile(name: str) -> Profile:
    """A bundled profile by its name, or one from a file. ValueError: there is none, or it is wrong."""
    path = PROFILES / f"{name}.csv" if name in bundled_profiles() else Path(name)
    if not path.is_file():
        raise ValueError(
            f"there is no profile and no file {name!r}; there are {', '.join(bundled_profiles())}"
        )
    times = load(path)
    if times.max_degree.bit_count() != 1:
        raise ValueError(f"{path}: the widest degree is a power of two, not {times.max_degree}")
    return times


@dataclass(frozen=True, slots=True)
class Setting:
    """All of a run but its policy: requests, machines and knobs.

    Requests are drawn from `workload`, or those of the file `trace`. Executors die `failures_per_hour`
    each while they are up, and are back after `repair_s`. The GPUs are in `nodes` equal nodes,
    each of `islands` equal islands; ValueError where these do not come out even.
    """

    workload: Workload
    trace: Path | None = None
    profile: str = DEFAULT_PROFILE
    gpus: int = 8
    config: Config = SERVER_CONFIG
    conditions: Conditions = FAIR
    failures_per_hour: float = 0.0
    repair_s: float = 30.0
    failure_seed: int | None = None
    nodes: int = 1
    admission: Admission = Admission.ACCEPT
    islands: int = 1

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"there is at least one GPU, not {self.gpus}")
        if self.gpus % (self.nodes * self.islands):
            raise ValueError(
                f"{self.gpus} GPUs do not make {self.nodes} equal nodes of {self.islands} equal islands"
            )

    @property
    def varies(self) -> bool:
        """Whether another run can differ; with a trace and nothing else that is drawn or timed it cannot."""
        c = self.conditions
        drawn = self.trace is None or c.step_cv or c.latency_s or c.error_rate or c.charge_measured
        return bool(drawn) or (self.failures_per_hour > 0 and self.failure_seed is None)

    @property
    def within_bound(self) -> bool:
        """Whether the bound holds: nothing is ever faster than in the profile, by noise or a node's pace."""
        return not self.conditions.step_cv and min(self.conditions.node_paces, default=1.0) >= 1

    def seeded(self, seed: int) -> "Setting":
        """The same with another seed for all that is drawn."""
        return replace(
            self,
            workload=replace(self.workload, seed=seed),
            conditions=replace(self.conditions, seed=seed),
        )

    def arrivals(self) -> list[Arrival]:
        """The requests, by time. ValueError where a trace is wrong or too little is asked for."""
        if self.trace is None:
            arrivals = self.workload.arrivals()
            if not arrivals:
                raise ValueError("no request arrives: raise the rate or the duration")
            return arrivals
        scale = self.workload.slo_scale
        return [
            replace(arrival, submission=replace(arrival.submission, deadline_s=deadline_s * scale))
            if (deadline_s := arrival.submission.deadline_s) is not None
            else arrival
            for arrival in traces.load(self.trace)[: self.workload.requests]
        ]

    def simulate(self, policy: str, arrivals: Sequence[Arrival]) -> Outcomes:
        """Run a policy over the requests."""
        seed = self.conditions.seed if self.failure_seed is None else self.failure_seed
        return Simulation(
            resolve(policy),
            profile(self.profile),
            self.gpus,
            arrivals,
            config=self.config,
            conditions=self.conditions,
            faults=random_faults(range(self.gpus), self.failures_per_hour, self.repair_s, seed),
            node_size=self.gpus // self.nodes,
            island_size=self.gpus // self.nodes // self.islands,
            admission=self.admission,
        ).run()


def run_in_detail(policy: str, setting: Setting) -> dict[str, Any]:
    """Figures of one run, with the distribution of latencies."""
    outcomes, figures = run(policy, setting)
    return {**figures, "latency_percentiles_s": latency_percentiles(outcomes)}


def run(policy: str, setting: Setting) -> tuple[Outcomes, dict[str, Any]]:
    """One run, and its figures as `summary` gives them."""
    arrivals = setting.arrivals()
    outcomes = setting.simulate(policy, arrivals)
    return outcomes, summary(outcomes, arrivals, setting.gpus)
