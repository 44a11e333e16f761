"""Homes: the node on which each request is planned. Found at its first round; some that wait are moved."""

from collections.abc import Mapping

from scheduler.dispatch import Load, best, choose, crowded_out
from scheduler.problem import Problem, Request
from scheduler.view import View

MOVES = 4
"""Requests that change their node in one decision, at most."""


class Homes:
    """Gives requests their homes, by what the view shows of the nodes' loads."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._nodes = view.nodes

    def dispatch(self, now: float) -> None:
        """Find a node for every request that has none; move some that wait to where there is more room."""
        view, nodes, usable = self._view, self._nodes, self._nodes.open
        if view.profile is None or not usable or not nodes.apart:
            return
        never = view.never(now)
        for tracked in list(nodes.homeless.values()):
            home = usable[0] if len(usable) == 1 else nodes.of(tracked.holders)
            if home is None and tracked.next_stage:
                home = choose(view.loads(now), view.outstanding(tracked, never), now)
            if home is not None:
                nodes.settle(tracked, home)
        if len(usable) > 1:
            self._rebalance(now, usable)

    def best_parts(self, now: float, request: Request) -> list[tuple[str | None, Problem]]:
        """What is planned together and would take the request: the best few nodes, or all as one."""
        view, nodes = self._view, self._nodes
        if view.profile is None or not nodes.open:
            return []
        homes = None
        if nodes.apart and len(nodes.open) > 1:
            homes = best(view.loads(now), request, now)
        elif nodes.apart:
            homes = nodes.open
        parts: list[tuple[str | None, Problem | None]] = [(None, view.snapshot(now))]
        if homes is not None:
            parts = [(home, view.snapshot(now, [home])) for home in homes]
        return [(home, moment) for home, moment in parts if moment is not None]

    def _rebalance(self, now: float, usable: list[str]) -> None:
        """Move a few that wait: to idle nodes, and from where they cannot be on time to where they can."""
        view, nodes = self._view, self._nodes
        never = view.never(now)
        idle = [node for node in usable if not nodes.members[node]]
        stale = nodes.due(now, view.config.round_s)
        if idle and all(tracked.flights for tracked in view.active.values()):
            idle = []
        if not idle and not stale:
            return
        loads = view.loads(now)

        def waiting(node: str) -> list[Request]:
            members = nodes.members[node].values()
            found = [t for t in members if t.next_stage and not t.flights and not t.kept]
            return [view.outstanding(tracked, never) for tracked in found]

        moves = 0
        for node in [node for node in idle if node in loads][:MOVES]:
            donor = max(loads, key=lambda node: (loads[node].backlog, node))
            # The first to be served there stays, and who would be late on a slower node.
            found = sorted(waiting(donor), key=lambda r: (bool(r.slots), r.deadline, r.id))[1:]
            helped = (r for r in found if not _loses(r, loads, donor, node, now))
            if request := next(helped, None):
                self._move(request, donor, node)
                moves += 1
        for node in stale:
            load = loads.get(node)
            lost = load and not load.fits(now) and crowded_out(load, waiting(node), now)
            if load and lost and moves < MOVES:
                others = {other: load for other, load in loads.items() if other != node}
                home = choose(others, lost, now, must_fit=True)
                if home is None:
                    return
                self._move(lost, node, home)
                moves += 1

    def _move(self, request: Request, donor: str, home: str) -> None:
        self._nodes.settle(self._view.active[request.id], home)
        self._nodes.touch(donor, home)


def _loses(request: Request, loads: Mapping[str, Load], donor: str, node: str, now: float) -> bool:
    """Whether a request could be on time where it is, but not on the other node, even alone."""
    return loads[donor].wants(request, now)[0] < loads[node].wants(request, now)[0]
