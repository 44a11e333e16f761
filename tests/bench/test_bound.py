"""The bound against exhaustive search on tiny traces, and against what policies achieve."""

import functools
import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import bound as limits
from bench.batches import least_shares
from bench.bound import bound
from bench.program import Job
from bench.runs import DEFAULT_PROFILE, profile
from bench.simulator import Arrival, Simulation
from bench.summary import on_time
from bench.whole import Conflicts, impossible
from scheduler.policies import resolve
from scheduler.policies.mix import ladder
from scheduler.profile import Profile, StepTime
from scheduler.tracking import Submission

STEP = {(256, 1): 1.0, (256, 2): 0.75, (512, 1): 3.0, (512, 2): 1.75, (512, 4): 1.0}
STEPS = [StepTime("step", side, side, degree, 1, seconds) for (side, degree), seconds in STEP.items()]
TINY = Profile([*STEPS, StepTime("step", 256, 256, 4, 1, 0.7)])
STAGED = Profile(
    [
        *STEPS,
        StepTime("encode", 0, 0, 1, 1, 0.25),
        StepTime("decode", 256, 256, 1, 1, 0.25),
        StepTime("decode", 512, 512, 1, 1, 0.5),
    ]
)
BATCHED = Profile(
    [
        *STAGED.entries,
        StepTime("step", 256, 256, 1, 2, 1.25),
        StepTime("step", 256, 256, 2, 2, 0.8),
        StepTime("step", 512, 512, 2, 2, 2.5),
        StepTime("step", 512, 512, 4, 2, 1.75),
    ]
)
FLUX = profile(DEFAULT_PROFILE)


def trace(wanted) -> list[Arrival]:
    return [
        Arrival(at, Submission(f"r{i}", side, side, steps, deadline, weight))
        for i, (at, side, steps, deadline, weight) in enumerate(wanted)
    ]


def exhaustive(arrivals: list[Arrival], gpus: int, profile: Profile = TINY) -> float:
    """The most weight on time over all schedules of uninterruptible steps, without regard to places.

    An optimal schedule exists in which every step, encoding and decoding starts at an arrival or at the end
    of another one.
    """
    requests = [arrival.submission for arrival in arrivals]
    comes = [arrival.at for arrival in arrivals]
    due = [arrival.at + arrival.submission.deadline_s for arrival in arrivals]
    # What each still has to do, last things first.
    decode = ["decode"] * any(profile.decode(s.width, s.height) for s in requests)
    encode = ["encode"] * bool(profile.encode())
    work = [[*decode, *["step"] * s.steps, *encode] for s in requests]

    def seconds(i: int, kind: str, degree: int, batch: int) -> float:
        width, height = requests[i].width, requests[i].height
        if kind == "step":
            return profile.step(width, height, degree, batch)
        return profile.encode() if kind == "encode" else profile.decode(width, height)

    def alike(i: int, host: int, kinds: dict[int, str]) -> bool:
        return host < i and kinds[i] == kinds[host] == "step" and requests[i].width == requests[host].width

    @functools.cache
    def best(now: float, left: tuple[int, ...], busy: tuple[tuple[float, int, int], ...]) -> float:
        free = gpus - sum(degree for _, _, degree in busy)
        running = {request for _, request, _ in busy}
        kinds = {
            i: work[i][stages - 1]
            for i, stages in enumerate(left)
            if stages and comes[i] <= now and i not in running and due[i] > now
        }
        # Nothing, or a degree and whose steps it shares, its own or those of one before it.
        options = []
        for i, kind in kinds.items():
            hosts = [i]
            if profile.max_batch(requests[i].width, requests[i].height) > 1:
                hosts += [host for host in kinds if alike(i, host, kinds)]
            degrees = (1, 2, 4) if kind == "step" else (1,)
            options.append([None, *itertools.product(degrees, hosts)])
        value = 0.0
        for choice in itertools.product(*options):
            batches = defaultdict(list)
            for i, chosen in zip(kinds, choice, strict=True):
                if chosen:
                    batches[chosen].append(i)
            if sum(degree for degree, _ in batches) > free or any(
                host not in members or len(members) > max(1, profile.max_batch(*[requests[host].width] * 2))
                for (_, host), members in batches.items()
            ):
                continue
            started = [
                (now + seconds(host, kinds[host], degree, len(members)), i, degree * (i == host))
                for (degree, host), members in batches.items()
                for i in members
            ]
            flights = sorted([*busy, *started])
            times = [t for t, _, _ in flights] + [t for t in comes if t > now]
            if not times:
                continue
            then = min(times)
            ended = [i for t, i, _ in flights if t <= then]
            after = tuple(stages - (i in ended) for i, stages in enumerate(left))
            gained = sum(requests[i].weight for i in ended if after[i] == 0 and then <= due[i] + 1e-9)
            rest = tuple(flight for flight in flights if flight[0] > then)
            value = max(value, gained + best(then, after, rest))
        return value

    return best(0.0, tuple(map(len, work)), ())


wanted_tiny = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        st.sampled_from([256, 512]),
        st.integers(1, 3),
        st.sampled_from([1.0, 1.75, 2.0, 3.0, 4.0]),
        st.sampled_from([1.0, 3.0]),
    ),
    min_size=1,
    max_size=3,
)


def jobs(wanted, times: Profile, gpus: int) -> list[Job]:
    return [
        Job(
            id=f"r{i}",
            begin=at,
            end=at + deadline,
            encode=times.encode(),
            decode=times.decode(side, side),
            steps=steps,
            weight=weight,
            ladder=ladder(times, side, side, gpus),
        )
        for i, (at, side, steps, deadline, weight) in enumerate(wanted)
    ]


@settings(max_examples=120, deadline=None)
@given(wanted_tiny, st.sampled_from([1, 2, 4]), st.sampled_from([TINY, STAGED]))
def test_never_below_the_best_schedule_there_is(wanted, gpus, times):
    arrivals = trace(wanted)
    assert bound(arrivals, times, gpus).weight >= exhaustive(arrivals, gpus, times) - 1e-6


@settings(max_examples=200, deadline=None)
@given(wanted_tiny, st.sampled_from([1, 2, 4]))
def test_nor_where_steps_can_be_shared(wanted, gpus):
    arrivals = trace(wanted)
    assert bound(arrivals, BATCHED, gpus).weight >= exhaustive(arrivals, gpus, BATCHED) - 1e-6


def test_sharing_lifts_it():
    arrivals = trace([(0.0, 256, 2, 3.5, 1.0), (0.0, 256, 2, 3.5, 1.0)])
    assert bound(arrivals, STAGED, 1).weight == exhaustive(arrivals, 1, STAGED) == 1.0
    assert bound(arrivals, BATCHED, 1).weight == exhaustive(arrivals, 1, BATCHED) == 2.0


def test_a_batch_may_be_faster_than_whole_steps_apart():
    """As a fluid three 512s could change their degree within a step, and have no use for a batch."""
    due = FLUX.encode() + 3 * FLUX.step(512, 512, 8, 3) + FLUX.decode(512, 512) + 1e-6
    assert bound(trace([(0.0, 512, 3, due, 1.0)] * 3), FLUX, 8).weight == 3.0


def test_batches_that_do_no_more_than_narrow_steps_side_by_side_count_for_nothing():
    times = ladder(FLUX, 512, 512, 8)
    assert FLUX.step(512, 512, 8, 8) < 0.4 * 8 * FLUX.step(512, 512, 8)
    # But three 512s on all GPUs, which are faster together than each on one or two, and no step of theirs is.
    assert least_shares(FLUX, 512, 512, times, 8) == {8: pytest.approx(0.438, abs=0.001)}
    assert least_shares(FLUX, 512, 512, times, 2) == {}
    few, many = (least_shares(BATCHED, 256, 256, ladder(BATCHED, 256, 256, 2), n) for n in (1, 2))
    assert few == {}
    assert many == {1: 0.625, 2: pytest.approx(0.8 / 1.5)}


@settings(max_examples=120, deadline=None)
@given(wanted_tiny, st.sampled_from([1, 2, 4]), st.sampled_from([TINY, STAGED]))
def test_what_a_schedule_has_on_time_is_not_impossible(wanted, gpus, times):
    everything = sum(weight for *_, weight in wanted)
    if exhaustive(trace(wanted), gpus, times) == everything:
        assert not impossible(jobs(wanted, times, gpus), gpus)


@pytest.mark.parametrize(
    ("wanted", "times", "gpus", "fluid", "best"),
    [
        # Beside the 256 the 512 would run 0.57 of a step on two GPUs: a whole one is too long.
        ([(1.0, 256, 1, 1.5, 1.0), (0.5, 512, 3, 3.5, 1.0)], TINY, 4, 2.0, 1.0),
        ([(0.5, 512, 2, 3.5, 1.0), (0.0, 512, 2, 3.5, 1.0), (0.0, 256, 1, 1.5, 1.0)], TINY, 4, 3.0, 2.0),
        ([(1.0, 512, 1, 2.5, 1.0), (2.0, 256, 1, 1.0, 1.0)], STAGED, 4, 2.0, 1.0),
        ([(2.0, 256, 2, 2.5, 1.0), (2.0, 512, 1, 4.0, 1.0), (0.0, 256, 3, 4.0, 1.0)], STAGED, 2, 3.0, 2.0),
    ],
)
def test_whole_steps_tighten_it(wanted, times, gpus, fluid, best, monkeypatch):
    arrivals = trace(wanted)
    assert bound(arrivals, times, gpus).weight == pytest.approx(best)
    assert exhaustive(arrivals, gpus, times) == pytest.approx(best)
    monkeypatch.setattr(limits.Conflicts, "find", lambda *_: [])
    assert bound(arrivals, times, gpus).weight == pytest.approx(fluid)


CLASH = [(0.0, 2048, 50, 7.5, 1.0), (1.507, 1024, 50, 4.5, 1.0), (4.202, 512, 50, 3.0, 1.0)]
"""Every two of them fit together, and as a fluid all three just so."""


def test_whole_steps_of_three_sizes_clash():
    assert impossible(jobs(CLASH, FLUX, 8), 8)
    assert not impossible(jobs([(at, *_, 1.02 * t, w) for at, *_, t, w in CLASH], FLUX, 8), 8)


def test_a_conflict_is_as_small_as_can_be():
    others = [(at, 256, 50, 2.25, 1.0) for at in (-2.0, 7.0, 30.0)]
    found = Conflicts(8, 60.0).find(jobs([*others, *CLASH], FLUX, 8))
    assert [[job.id for job in clash] for clash in found] == [["r3", "r4", "r5"]]


def test_out_of_time_is_no_proof():
    assert not impossible(jobs(CLASH, FLUX, 8), 8, time_limit_s=0.0)


@pytest.mark.parametrize(
    ("wanted", "gpus", "best"),
    [
        # Alone and in time; too late even alone.
        ([(0.0, 256, 2, 2.0, 1.0)], 1, 1.0),
        ([(0.0, 256, 2, 1.9, 1.0)], 1, 0.0),
        # Room for one of two; the heavier one counts.
        ([(0.0, 256, 2, 2.0, 1.0), (0.0, 256, 2, 2.0, 3.0)], 1, 3.0),
        # Side by side on two GPUs, one after the other with more time.
        ([(0.0, 256, 2, 2.0, 1.0), (0.0, 256, 2, 2.0, 1.0)], 2, 2.0),
        ([(0.0, 256, 2, 4.0, 1.0), (0.0, 256, 2, 4.0, 1.0)], 1, 2.0),
        # Only all GPUs are fast enough for either.
        ([(0.0, 512, 3, 3.0, 1.0), (0.0, 512, 3, 3.0, 1.0)], 4, 1.0),
    ],
)
def test_is_met_where_fluid_and_steps_agree(wanted, gpus, best):
    arrivals = trace(wanted)
    found = bound(arrivals, TINY, gpus)
    assert found.proven
    assert found.weight == pytest.approx(best)
    assert exhaustive(arrivals, gpus) == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 20),
            st.sampled_from([256, 512]),
            st.integers(1, 8),
            st.floats(1, 20),
            st.sampled_from([1.0, 2.0]),
        ),
        min_size=1,
        max_size=14,
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([TINY, BATCHED]),
)
def test_no_run_is_above_the_bound(wanted, gpus, times):
    arrivals = trace(wanted)
    outcomes = Simulation(resolve("edf"), times, gpus, arrivals).run()
    achieved = sum(t.submission.weight for t in outcomes.requests if on_time(t))
    assert achieved <= bound(arrivals, times, gpus).weight + 1e-6


def test_a_time_limit_only_loosens_it():
    arrivals = trace([(0.1 * i, 512, 3, 6.0 + i % 5, 1.0) for i in range(40)])
    in_time = bound(arrivals, TINY, 4)
    cut_short = bound(arrivals, TINY, 4, time_limit_s=1e-3)
    assert in_time.weight <= cut_short.weight <= cut_short.total


def test_best_effort_requests_do_not_count():
    arrivals = [Arrival(0.0, Submission("r0", 256, 256, 2, None))]
    assert bound(arrivals, TINY, 1).sar is None
