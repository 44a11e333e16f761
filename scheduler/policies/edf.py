"""Earliest deadline first: each request at the cheapest degrees that still meet its deadline.

Planned anew at every event, so that a request runs wide only for as long as it must. What does not
fit runs narrower until it may go on wide, or waits for a reserved block, with others in the gaps before
it. Idle GPUs speed up what runs.
"""

from collections.abc import Iterable

from scheduler.policies.batching import encode_first, share
from scheduler.policies.board import Work
from scheduler.policies.interrupt import only_for_deadlines, take_back, yielding
from scheduler.policies.lineup import Lineup, Ranking, line_up, on_time
from scheduler.policies.spare import give_hopeful, give_yielding
from scheduler.problem import NOT_RUN, Decision, Plan, Policy, Problem

CHEAP = 0.25
"""Scale-up comes before work that gives way where at most this share of its GPU-seconds is extra: who is done
early makes room for arrivals that nobody knows of."""


def edf() -> Policy:
    """The policy; its time budget is not needed."""
    return plan


def plan(problem: Problem, _budget_s: float) -> Plan:
    """Orders for this round."""
    board = yielding(problem)
    order = by_deadline(board.works)
    lineup = line_up(board, Ranking(order))
    return finish(lineup, Decision(objective=on_time(lineup)))


def by_deadline(works: Iterable[Work]) -> tuple[Work, ...]:
    """Work whose deadline can be met, earliest first."""
    feasible = [work for work in works if work.has_deadline and not work.late]
    return tuple(sorted(feasible, key=lambda work: (work.due, work.request.arrived_at, work.request.id)))


def finish(lineup: Lineup, decision: Decision) -> Plan:
    """The plan of a line-up, with GPUs that no deadline needs put to use.

    First by who may be on time all the same, at any degree where a solver says so, and by scale-up that costs
    little; then by work that gives way, and by what else there is of scale-up. Who would wait all the same
    shares the steps of others, where the profile says that it pays.
    """
    give_hopeful(lineup, decision.status == NOT_RUN)
    lineup.widen(CHEAP, besides=only_for_deadlines(lineup))
    interrupted = take_back(lineup)
    give_yielding(lineup)
    lineup.widen()
    late = tuple(work.request.id for work in lineup.board.works if work.late)
    busy = lineup.board.busy
    assignments = encode_first(lineup.board.problem, lineup.assignments(), busy)
    assignments = share(lineup.board.problem, assignments, busy)
    return Plan(assignments, late, decision=decision, interrupted=interrupted)
