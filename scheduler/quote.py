"""Quotes: by when could this image be done, without breaking what is on its way?"""

from dataclasses import dataclass, replace

from scheduler.forecast import forecast
from scheduler.policies.lineup import on_time
from scheduler.problem import Problem, Request, Stage

PRECISION = 0.01
"""Relative; a quote is an estimate."""
GIVE_UP_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Quote:
    """Seconds from now, and GPU-seconds at the cheapest degree."""

    earliest_s: float
    alone_s: float
    gpu_seconds: float


def quote(problem: Problem, width: int, height: int, steps: int) -> Quote:
    """Search the earliest deadline that fits in among the requests that have one."""
    profile, now = problem.profile, problem.now
    request = Request("quote", width, height, Stage.ENCODING, steps, now, now)
    alone = problem.least_seconds(request) + problem.margin_s
    cheapest = min(k * profile.step(width, height, k) for k in profile.degrees(width, height))
    gpu_seconds = profile.encode() + steps * cheapest + profile.decode(width, height)
    before = _kept(problem, ())

    def fits(seconds: float) -> bool:
        wanted = replace(request, deadline=now + seconds)
        return _kept(problem, (wanted,)) >= before + wanted.weight - 1e-9

    low = high = alone
    while not fits(high) and high < GIVE_UP_S:
        low, high = high, 2 * high
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return Quote(high, alone, gpu_seconds)


def can_meet(problem: Problem, request: Request) -> bool:
    """Whether one more request would be on time, with all that would be without it."""
    return _kept(problem, (request,)) >= _kept(problem, ()) + request.weight - 1e-9


def _kept(problem: Problem, more: tuple[Request, ...]) -> float:
    """Weight of the requests that would be on time with `more` of them."""
    return on_time(forecast(replace(problem, requests=problem.requests + more)))
