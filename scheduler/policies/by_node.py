"""Any policy on a cluster of several nodes: each node is planned apart, within the time for all.

What the budget does not suffice for is left for the next plan, which the core asks for at once.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from scheduler.dispatch import homes
from scheduler.placement import layout_of
from scheduler.problem import NOT_RUN, OPTIMAL, ROLES, Decision, Gpu, Plan, Policy, Problem, Request, Stage

LEAST_S = 0.015
"""A node gets at least this much of the budget, as long as there is so much: solvers need some to begin."""
DISPATCH_SHARE = 0.3
"""Of the budget, for finding nodes for requests that have none."""
RESERVE_S = 0.005
"""For putting the plans together."""
_SURE = (
    "out of time",
    "too many",
    "not asked",
    "unknown",
    "feasible",
    NOT_RUN,
    "nothing to give",
    OPTIMAL,
    "all on time",
    "",
)
"""What is known of a plan, the least first; any other status is a failure."""


def by_node(policy: Policy) -> Policy:
    """The policy for one node or many."""

    def plan(problem: Problem, budget_s: float) -> Plan:
        nodes: dict[str, list[Gpu]] = {}
        for gpu in problem.gpus:
            nodes.setdefault(gpu.node, []).append(gpu)
        # A request stays on a node from end to end, if every node can run all of it.
        if len(nodes) == 1 or any(role not in _roles(gpus) for gpus in nodes.values() for role in ROLES):
            return policy(problem, budget_s)
        return _plan(policy, problem, nodes, budget_s)

    return plan


def _roles(gpus: Sequence[Gpu]) -> frozenset[Stage]:
    return frozenset(role for roles in {gpu.roles for gpu in gpus} for role in roles)


def _plan(policy: Policy, problem: Problem, nodes: dict[str, list[Gpu]], budget_s: float) -> Plan:
    began = time.perf_counter()

    def left() -> float:
        return budget_s - (time.perf_counter() - began)

    dispatch_until = (1 - DISPATCH_SHARE) * budget_s
    home = homes(problem.profile_of, nodes, problem.requests, problem.now, lambda: left() > dispatch_until)
    members: dict[str, list[Request]] = {node: [] for node in nodes}
    for request in problem.requests:
        if request.id in home:
            members[home[request.id]].append(request)
    plans: list[Plan] = []
    asked = [node for node in nodes if members[node]]
    unplanned: list[str] = []
    for index, node in enumerate(asked):
        spent, budget = time.perf_counter() - began, left()
        # As if this node took as long as the others did.
        if plans and budget < spent / len(plans) + RESERVE_S:
            unplanned = asked[index:]
            break
        share = max(budget / (len(asked) - index), min(budget, LEAST_S))
        plan = policy(_part(problem, node, nodes[node], members[node]), share)
        plans.append(_moved(plan, _base(nodes[node])))
    again_at = min((plan.again_at for plan in plans), default=math.inf)
    if len(home) < len(problem.requests):
        again_at = problem.now
    return Plan(
        assignments=tuple(a for plan in plans for a in plan.assignments),
        late=tuple(request_id for plan in plans for request_id in plan.late),
        again_at=again_at,
        decision=_merged([plan.decision for plan in plans]),
        unplanned=tuple(unplanned),
        interrupted=tuple(request_id for plan in plans for request_id in plan.interrupted),
    )


def _base(gpus: Sequence[Gpu]) -> int:
    """The slot that a node's slots are counted from, so that blocks stay aligned."""
    first, last = min(gpu.slot for gpu in gpus), max(gpu.slot for gpu in gpus)
    span = 1
    while first // span != last // span:
        span *= 2
    return first // span * span


def _part(problem: Problem, node: str, gpus: Sequence[Gpu], requests: Sequence[Request]) -> Problem:
    """A node as if it were alone, with slots from 0 on: so all nodes of a kind share their layout."""
    base, own = _base(gpus), {gpu.slot for gpu in gpus}
    ascending = sorted(gpus, key=lambda gpu: gpu.slot)
    here = tuple(replace(gpu, slot=gpu.slot - base, node="") for gpu in ascending)
    return replace(
        problem,
        gpus=here,
        requests=tuple(
            replace(r, slots=tuple(s - base for s in r.slots if s in own))
            if base or not own.issuperset(r.slots)
            else r
            for r in requests
        ),
        profile=problem.profile_of(node).limited(layout_of(here).max_degree),
        profiles={},
        running=tuple(
            replace(
                running,
                request=replace(running.request, slots=tuple(s - base for s in running.request.slots)),
                slots=tuple(s - base for s in running.slots),
            )
            for running in problem.running
            if own.issuperset(running.slots)
        ),
    )


def _moved(plan: Plan, base: int) -> Plan:
    """The plan of a part with the cluster's slots."""
    if not base:
        return plan
    there = tuple(replace(a, slots=tuple(slot + base for slot in a.slots)) for a in plan.assignments)
    return replace(plan, assignments=there)


def _merged(decisions: Sequence[Decision]) -> Decision:
    """One decision for all nodes: sums, and the least certain status."""
    if not decisions:
        return Decision()
    statuses, sources = {d.status for d in decisions}, {d.source for d in decisions}
    failures = sorted(statuses.difference(_SURE))
    return Decision(
        source=next(source for source in ("solver", "search", "heuristic") if source in sources),
        status=next(status for status in (*failures, *_SURE) if status in statuses),
        objective=_sum([d.objective for d in decisions]),
        bound=_sum([d.bound for d in decisions]),
        build_s=sum(d.build_s for d in decisions),
        solve_s=sum(d.solve_s for d in decisions),
        gpu_seconds=_sum([d.gpu_seconds for d in decisions]),
        least_gpu_seconds=_sum([d.least_gpu_seconds for d in decisions]),
    )


def _sum(values: Sequence[float]) -> float:
    # The one NaN that a decision begins with: decisions without one are equal.
    return math.nan if any(map(math.isnan, values)) else sum(values)
