"""GPU-seconds alone: never fewer than a request needs, and a bound that is never below the real one."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import bound as limits
from bench import least
from bench.bound import bound
from bench.energy import most_by_energy
from bench.least import least_gpu_seconds
from bench.program import Job, busy_periods
from bench.runs import DEFAULT_PROFILE, Setting, profile
from bench.summary import on_time
from bench.workloads import Workload, mix
from scheduler.policies.mix import Ladder, ladder

FLUX = profile(DEFAULT_PROFILE)


def brute_force(rungs: Ladder, steps: int, seconds: float) -> float:
    best = math.inf
    for counts in itertools.product(range(steps + 1), repeat=len(rungs.degrees)):
        taken = list(zip(counts, rungs.step.items(), strict=True))
        if sum(counts) == steps and sum(n * step for n, (_, step) in taken) <= seconds + 1e-9:
            best = min(best, sum(n * k * step for n, (k, step) in taken))
    return best


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 9), share=st.floats(-0.05, 1.05))
def test_the_least_gpu_seconds_are_what_brute_force_finds(seed, steps, share):
    rng = random.Random(seed)
    name, gpus = rng.choice([(DEFAULT_PROFILE, 8), ("sd3-medium-4xa40", 4)])
    rungs = ladder(profile(name), *[rng.choice((256, 512, 1024, 2048))] * 2, gpus)
    seconds = steps * (rungs.fastest + share * (rungs.step[1] - rungs.fastest))
    assert least_gpu_seconds(rungs, steps, seconds) == pytest.approx(brute_force(rungs, steps, seconds))


def test_a_third_degree_can_be_cheaper_than_the_best_mix_of_two():
    rungs = ladder(FLUX, 2048, 2048, 8)
    cases = [(steps, steps * rungs.fastest * (1 + n / 40)) for steps in (5, 9) for n in range(1, 200)]
    pairs = [(rungs.cheapest(*case), least_gpu_seconds(rungs, *case)) for case in cases]
    saved = [1 - least / mix.gpu_seconds for mix, least in pairs if mix is not None]
    assert min(saved) > -1e-9
    assert max(saved) > 0.005


def test_very_many_steps_are_not_counted_one_by_one(monkeypatch):
    rungs = ladder(FLUX, 2048, 2048, 8)
    seconds = 9 * rungs.fastest * 1.3
    counted = least_gpu_seconds(rungs, 9, seconds)
    monkeypatch.setattr(least, "MOST_COUNTS", 50)
    assert 0.98 * counted < least_gpu_seconds.__wrapped__(rungs, 9, seconds) <= counted + 1e-9
    assert least_gpu_seconds.__wrapped__(rungs, 9, 8 * rungs.fastest) == math.inf


def crowd(seed: int) -> Setting:
    kinds = mix("skewed")
    return Setting(Workload(kinds, rate=40, duration=20, slo_scale=1.5, deadlines="unrelated", seed=seed))


def feasible(setting: Setting) -> list[Job]:
    return [job for job in limits._jobs(setting.arrivals(), FLUX, 8) if job.feasible]


@pytest.mark.parametrize("seed", range(3))
def test_no_run_has_more_on_time_than_gpu_seconds_allow(seed):
    jobs, arrivals = feasible(crowd(seed)), crowd(seed).arrivals()
    limit = sum(most_by_energy(period, 8, 10.0) for period in busy_periods(jobs))
    outcomes = crowd(seed).simulate("search", arrivals)
    assert sum(map(on_time, outcomes.requests)) <= limit < len(jobs)


def test_without_the_fluid_the_bound_is_that_of_gpu_seconds(monkeypatch):
    monkeypatch.setattr(limits, "RELAXED_ROUNDS", 0)
    monkeypatch.setattr(limits, "ROUNDS", 0)
    found = bound(crowd(0).arrivals(), FLUX, 8, 60.0)
    assert not found.proven
    assert found.weight < found.total


def test_without_time_it_says_nothing_wrong():
    jobs = feasible(crowd(0))
    assert most_by_energy(jobs, 8, 0.0) == len(jobs)
