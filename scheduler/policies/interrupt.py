"""What could be had if orders under way ended at their next step: room for whom an order came too early.

An order is a round long and may be given a lead ahead, so that a request with no time to lose can find
all GPUs taken for as long. Its steps cannot be interrupted, but the order can.
"""

from collections.abc import Iterable
from dataclasses import replace

from scheduler.placement import mask_of
from scheduler.policies.board import Board
from scheduler.policies.lineup import Lineup
from scheduler.problem import Problem, Running


def cut(problem: Problem, ended: Iterable[Running]) -> Board:
    """The board as if these orders under way ended early."""
    ended = tuple(ended)
    if not ended:
        return Board(problem)
    rest = {running.request.id: running.request for running in ended}
    ends = {slot: running.ends for running in ended for slot in running.slots}
    changed = replace(
        problem,
        gpus=tuple(replace(gpu, free_at=ends.get(gpu.slot, gpu.free_at)) for gpu in problem.gpus),
        requests=tuple(rest.get(request.id, request) for request in problem.requests),
    )
    return Board(changed, ended)


def yielding(problem: Problem) -> Board:
    """The board as if all orders that yield did so: no deadline waits for them."""
    return cut(problem, (running for running in problem.running if running.yields))


def only_for_deadlines(lineup: Lineup) -> int:
    """GPUs of orders that no scale-up may end: those that do not yield, or have been left for nothing."""
    return mask_of(slot for r in lineup.board.ended if r.in_vain or not r.yields for slot in r.slots)


def take_back(lineup: Lineup) -> tuple[str, ...]:
    """Who of those that the line-up's board takes to have `ended` has to be interrupted for it.

    What the line-up would give them comes later: it is dropped.

    An order goes on where the line-up would only go on with it, or does not need its GPUs in its time. One
    that yields can still do so when they are, if that is within a lead.
    """
    under_way = lineup.board.ended
    own = {r.request.id: lineup.pieces.pop(r.request.id, None) for r in under_way}
    shared = {key: piece for key, piece in own.items() if piece is not None and piece.guests}
    for batch in shared.values():
        for work in (batch.work, *batch.guests):
            lineup.pieces.pop(work.request.id, None)
    members = lineup.board.layout.members
    given = mask_of(slot for piece in lineup.pieces.values() for slot in members[piece.block])
    found = []
    for r in under_way:
        piece, slots = own[r.request.id], mask_of(r.slots)
        goes_on = piece is not None and piece.block == slots
        until, horizon = r.until, lineup.board.problem.horizon
        if r.yields and r.ends <= horizon:
            until = min(until, horizon)  # later plans are in time for what is later
        kept = lineup.reserved(r.slots) < until
        if r.request.id in shared or (not goes_on and (slots & given or kept)):
            found.append(r.request.id)
        else:
            lineup.free &= ~slots
    return tuple(found)
