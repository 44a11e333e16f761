"""Homes: the node on which each request is planned. Found at its first round; some that wait are moved."""

from scheduler.dispatch import best, choose, crowded_out
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
        never, profile = view.never(now), view.limited
        for tracked in list(nodes.homeless.values()):
            home = usable[0] if len(usable) == 1 else nodes.of(tracked.holders)
            if home is None and tracked.next_stage:
                home = choose(view.loads(now), profile, view.outstanding(tracked, never), now)
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
            homes = best(view.loads(now), view.limited, request, now)
        elif nodes.apart:
            homes = nodes.open
        parts: list[tuple[str | None, Problem | None]] = [(None, view.snapshot(now))]
        if homes is not None:
            parts = [(home, view.snapshot(now, [home])) for home in homes]
        return [(home, moment) for home, moment in parts if moment is not None]

    def _rebalance(self, now: float, usable: list[str]) -> None:
        """Move a few that wait: to idle nodes, and from where they cannot be on time to where they can."""
        view, nodes = self._view, self._nodes
        never, profile = view.never(now), view.limited
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
        for node in idle[:MOVES]:
            donor = max(loads, key=lambda node: (loads[node].backlog, node), default=node)
            # The first to be served there stays.
            if found := sorted(waiting(donor), key=lambda r: (bool(r.slots), r.deadline, r.id))[1:]:
                self._move(found[0], donor, node)
                moves += 1
        for node in stale:
            load = loads.get(node)
            request = load and not load.fits(now) and crowded_out(load, profile, waiting(node), now)
            if load and request and moves < MOVES:
                others = {other: load for other, load in loads.items() if other != node}
                home = choose(others, profile, request, now, must_fit=True)
                if home is None:
                    return
                self._move(request, node, home)
                moves += 1

    def _move(self, request: Request, donor: str, home: str) -> None:
        self._nodes.settle(self._view.active[request.id], home)
        self._nodes.touch(donor, home)
