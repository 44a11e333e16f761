"""Selective batching: requests that would wait share the steps of others of their size.

Where one picture does not fill a GPU, two together take less than twice as long. The price is paid by
who runs already: each of its steps takes longer. So only those orders are shared that can afford it.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from scheduler.policies.mix import TOLERANCE
from scheduler.policies.sharing import saves
from scheduler.problem import Assignment, Problem, Request, Stage

SPARE_ROUNDS = 0.5
"""Rounds that must be left before a deadline, for what the plan does not foresee."""


def share(
    problem: Problem, assignments: Sequence[Assignment], busy: Collection[str] = ()
) -> tuple[Assignment, ...]:
    """The orders, with waiting requests taken into them, those with the earliest deadline first.

    A request joins an order of its size where

    - that is worth it (`sharing.saves`);
    - all who have the order now, as far as they can be on time, still would be if they went on alone after
      it, at its degree;
    - the request itself can still be on time after it; one that is late anyway joins the late alone.

    The order ends no later than before: it has fewer steps where these take longer. The requests `busy` have
    orders already.
    """
    hosts = _hosts(problem, assignments)
    shared = list(assignments)
    for request in _waiting(problem, assignments, busy, Stage.DENOISING):
        open_hosts = hosts[request.batch_key] = [h for h in hosts[request.batch_key] if h.has_room()]
        fits = [host for host in open_hosts if host.takes(request)]
        if fits:
            host = min(fits, key=lambda host: (host.extra, host.index))
            host.take(request)
            shared[host.index] = host.assignment
    return tuple(shared)


def encode_first(
    problem: Problem, assignments: Sequence[Assignment], busy: Collection[str] = ()
) -> tuple[Assignment, ...]:
    """The orders, with encodings in place of some, so that these can be shared by the next plan.

    Who waits for a GPU is not encoded either, and so could share no steps. It goes first where an order of
    its size and of one GPU can afford to wait for it, under the rules of `share`.
    """
    hosts, encode = _hosts(problem, assignments), problem.profile.encode()
    free_at = {gpu.slot: gpu.free_at for gpu in problem.gpus if Stage.ENCODING in gpu.roles}
    put_off = list(assignments)
    for request in _waiting(problem, assignments, busy, Stage.ENCODING):
        found = hosts[request.batch_key]
        fits = (h for h in found if h.assignment.slots[0] in free_at and h.waits_for(request, encode))
        host = next(fits, None)
        if host is not None:
            found.remove(host)
            slots = host.assignment.slots
            begin = max(problem.now, request.ready_at, free_at[slots[0]])
            put_off[host.index] = Assignment((request.id,), Stage.ENCODING, slots, 0, begin, begin + encode)
    return tuple(put_off)


def _hosts(problem: Problem, assignments: Sequence[Assignment]) -> dict[tuple[object, ...], "list[_Host]"]:
    """The orders that others could share, by what must be equal."""
    requests = {request.id: request for request in problem.requests}
    hosts: dict[tuple[object, ...], list[_Host]] = defaultdict(list)
    for index, assignment in enumerate(assignments):
        members = [requests[request_id] for request_id in assignment.request_ids]
        if assignment.stage is Stage.DENOISING and not members[0].alone:
            hosts[members[0].batch_key].append(_Host(problem, index, assignment, members))
    return hosts


def _waiting(
    problem: Problem, assignments: Sequence[Assignment], busy: Collection[str], stage: Stage
) -> list[Request]:
    given = {*busy, *(request_id for a in assignments for request_id in a.request_ids)}
    waiting = [
        (problem.is_late(r), r.deadline, r.arrived_at, r.id, r)
        for r in problem.requests
        if r.stage is stage and problem.startable(r) and not r.alone and r.id not in given
    ]
    return [r for late, *_, r in sorted(waiting, key=lambda w: w[:-1]) if not (late and r.drop_late)]


@dataclass(slots=True)
class _Host:
    """An order, and what it would be with one request more."""

    problem: Problem
    index: int
    assignment: Assignment
    members: list[Request]

    def _step(self, batch: int) -> float:
        first = self.members[0]
        return self.problem.profile.step(first.width, first.height, self.assignment.degree, batch)

    @property
    def extra(self) -> float:
        """GPU-seconds of a step that one request more costs."""
        batch = len(self.members)
        return self.assignment.degree * (self._step(batch + 1) - self._step(batch))

    @property
    def _next_steps(self) -> int:
        """Steps of the larger batch within the time of the order."""
        room = self.assignment.end - self.assignment.begin
        return min(self.assignment.steps, int(room / self._step(len(self.members) + 1) + TOLERANCE))

    def has_room(self) -> bool:
        """Whether one more would be worth it and hurt nobody who has the order."""
        first, profile, batch = self.members[0], self.problem.profile, len(self.members) + 1
        if not saves(profile, first.width, first.height, self.assignment.degree, batch):
            return False
        if self._next_steps < 1:
            return False
        return all(self.problem.is_late(member) or self._affords(member) for member in self.members)

    def waits_for(self, request: Request, encode: float) -> bool:
        """Whether the order can begin later by an encoding, to be shared by its request then."""
        problem, begin = self.problem, self.assignment.begin + encode
        encoded = replace(request, stage=Stage.DENOISING, ready_at=begin)
        return (
            self.assignment.degree == 1
            and request.ready_at <= self.assignment.begin + TOLERANCE
            and self.has_room()
            and not any(map(problem.is_late, self.members))
            and all(self._affords(member, encode) for member in self.members)
            and not problem.is_late(encoded)
        )

    def _affords(self, member: Request, delay: float = 0.0) -> bool:
        problem, batch = self.problem, len(self.members) + 1
        together = self._next_steps
        seconds = together * self._step(batch) + (member.steps - together) * self._step(1)
        end = self.assignment.begin + delay + seconds
        # Those who step together also want to be decoded at the same moment.
        spare = SPARE_ROUNDS * problem.round_s + problem.margin_s
        return end + batch * self._decode + spare <= member.deadline

    @property
    def _decode(self) -> float:
        return self.problem.profile.decode(self.members[0].width, self.members[0].height)

    def takes(self, request: Request) -> bool:
        """Whether the request could have part in all of the order, and be on time if it can be."""
        if request.ready_at > self.assignment.begin + TOLERANCE or not request.can_join(self.members[0]):
            return False
        if self.problem.is_late(request):
            return all(map(self.problem.is_late, self.members))
        steps = min(self._next_steps, request.steps)
        end = self.assignment.begin + steps * self._step(len(self.members) + 1)
        return not self.problem.is_late(replace(request, steps=request.steps - steps, ready_at=end))

    def take(self, request: Request) -> None:
        """Let it in."""
        steps = min(self._next_steps, request.steps)
        end = self.assignment.begin + steps * self._step(len(self.members) + 1)
        ids = (*self.assignment.request_ids, request.id)
        self.assignment = replace(self.assignment, request_ids=ids, steps=steps, end=end)
        self.members.append(request)
