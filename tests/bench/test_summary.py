"""What a run comes to: who counts, and what is called a fallback."""

import pytest

from bench.fleet import Tally
from bench.simulator import Arrival, Outcomes, Simulation
from bench.summary import summary
from scheduler.admission import Admission
from scheduler.policies import resolve
from scheduler.problem import Decision
from scheduler.profile import Profile, StepTime
from scheduler.tracking import Submission

TIMES = Profile([StepTime("step", side, side, 1, 1, 1.0) for side in (256, 512)])


def test_who_was_not_let_in_counts_for_its_size_and_class():
    arrivals = [
        Arrival(0.0, Submission("r0", 256, 256, 2, 9.0), "gold"),
        *(Arrival(0.0, Submission(f"r{n}", 512, 512, 2, 1.0), "gold") for n in (1, 2, 3)),
        Arrival(0.0, Submission("r4", 256, 256, 2, 1.0), "iron"),
    ]
    outcomes = Simulation(resolve("edf"), TIMES, 1, arrivals, admission=Admission.REJECT_LATE).run()
    found = summary(outcomes, arrivals, 1)
    assert (found["refused"], found["sar"]) == (4, 0.2)
    assert found["sar_by_size"] == {"256x256": 0.5, "512x512": 0.0}
    assert found["sar_by_class"] == {"gold": 0.25, "iron": 0.0}


def test_gpu_seconds_per_request_on_time_go_by_weight_too():
    arrivals = [
        Arrival(0.0, Submission("heavy", 256, 256, 2, 9.0, weight=3.0)),
        Arrival(0.0, Submission("hopeless", 512, 512, 2, 1.0, weight=1.0)),
        Arrival(0.0, Submission("unhurried", 512, 512, 2, None)),
    ]
    found = summary(Simulation(resolve("edf"), TIMES, 1, arrivals).run(), arrivals, 1)
    assert (found["on_time"], found["sar_weighted"]) == (1, 0.75)
    assert found["gpu_seconds_per_on_time"] == pytest.approx(6.0)
    assert found["gpu_seconds_per_on_time_weighted"] == pytest.approx(6.0 / 1.5)


def test_a_fallback_is_one_from_a_solver_that_was_asked():
    decisions = [
        Decision("heuristic", "feasible", solve_s=0.1),
        Decision("heuristic", "unknown", solve_s=0.1),
        Decision("heuristic", "not run", solve_s=0.1),
        Decision("heuristic", "optimal", solve_s=0.1),
        Decision("solver", "feasible", solve_s=0.1),
        *(Decision("heuristic", status) for status in ("", "all on time", "nothing to give", "too many")),
    ]
    found = summary(Outcomes([], Tally(), decisions), [], 1)
    assert found["fallbacks"] == 3
