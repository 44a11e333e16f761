"""What to do with GPUs that no deadline needs: orders for who finds no way, best-effort work, and the late.

What may still be on time does not give way. Its orders are short, and a degree whose steps are long is not
used unless all are, the request has waited for long, or somebody of them can be on time as a fluid.

Best-effort and late work must not stand in the way of the next arrival, which may have no time to lose. It
gives way in the middle of a step (`yielding.py`), but even that takes a moment. So it runs at degrees at
which it is gone by the time that a newcomer has been encoded, and late work leaves a GPU idle for that.
None of this is queued ahead.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scheduler.placement import mask_of
from scheduler.policies.board import Work
from scheduler.policies.lineup import Lineup, Piece
from scheduler.problem import Stage
from scheduler.yielding import leaving_s

BLOCKING_S = 0.15
"""How long an order may keep a GPU from an arrival, at most; less where arrivals have less to lose."""
PATIENCE_S = 300.0
"""Who has waited for this long takes no heed of arrivals that have less to lose than it takes to stop it."""


def give_hopeful(lineup: Lineup, possible: bool) -> None:
    """Give orders on idle GPUs to who finds no way to be on time yet, oldest first.

    `possible`: a solver has found that one of them can be, though not how in whole steps.
    """
    hopeful = [work for work in _waiting(lineup) if work.has_deadline and not work.late]
    with _idle(lineup):
        _share(lineup, hopeful, possible)


def give_yielding(lineup: Lineup) -> None:
    """Give orders on GPUs that are still idle to best-effort work, then to the late, oldest first."""
    waiting = _waiting(lineup)
    late = [work for work in waiting if work.late]
    with _idle(lineup):
        _share(lineup, [work for work in waiting if not work.has_deadline])
        last = 1 << max(0, lineup.free.bit_length() - 1) & lineup.free
        lineup.free &= ~last
        some = sum(_give(lineup, work, lineup.free.bit_count()) for work in late)
        lineup.free |= last
        if not some and not any(running.yields for running in lineup.board.problem.running):
            # Better on all than not at all.
            any(_give(lineup, work, lineup.free.bit_count()) for work in late)


@contextmanager
def _idle(lineup: Lineup) -> Iterator[None]:
    """Only GPUs on which nothing runs can be given orders meanwhile."""
    problem, ended = lineup.board.problem, lineup.board.ended
    idle = mask_of(gpu.slot for gpu in problem.gpus if gpu.free_at <= problem.now)
    idle &= ~mask_of(slot for running in ended for slot in running.slots)
    apart, lineup.free = lineup.free & ~idle, lineup.free & idle
    yield
    lineup.free |= apart


def _waiting(lineup: Lineup) -> list[Work]:
    """Who has nothing and could begin now, oldest first."""
    board = lineup.board
    found = [
        work
        for work in board.works
        if work.ready <= board.problem.now
        and board.startable(work)
        and work.request.id not in board.busy
        and _is_spare(lineup, work)
    ]
    return sorted(found, key=lambda work: (work.request.arrived_at, work.request.id))


def _share(lineup: Lineup, works: Sequence[Work], possible: bool = False) -> None:
    """Deal the GPUs out fairly."""
    for index, work in enumerate(works):
        _give(lineup, work, lineup.free.bit_count() // (len(works) - index), possible)


def _is_spare(lineup: Lineup, work: Work) -> bool:
    if work.late:
        return not work.request.drop_late
    return work.request.id not in lineup.finish and work.request.id not in lineup.pieces


def _give(lineup: Lineup, work: Work, share: int, possible: bool = False) -> bool:
    """Give an order at the widest degree within the share; at the narrowest that will do, if none is.

    For `possible` see `give_hopeful`.
    """
    problem, ladder = lineup.board.problem, work.ladder
    if work.stage is not Stage.DENOISING:
        degrees, longest = [1], 0.0
    elif work.late or not work.has_deadline:
        degrees, longest = _prompt(lineup, work), problem.round_s
    elif possible:
        degrees, longest = list(ladder.degrees), problem.round_s
    else:
        longest = min(BLOCKING_S, problem.slack_s)
        degrees = [degree for degree in ladder.degrees if ladder.step[degree] <= longest]
        if not degrees:
            if problem.slack_s < ladder.fastest and problem.now - work.request.arrived_at < PATIENCE_S:
                return False
            degrees = [ladder.widest]
    for degree in reversed(degrees):
        if lineup.free and degree <= max(share, degrees[0]):
            piece = _order(lineup, work, degree, longest)
            if piece is not None:
                lineup.give(piece)
                return True
    return False


def _prompt(lineup: Lineup, work: Work) -> list[int]:
    """Degrees at which a step is left while a newcomer is encoded; the fastest, if there is none.

    Any, where the request has waited for long.
    """
    problem, ladder = lineup.board.problem, work.ladder
    if problem.now - work.request.arrived_at > PATIENCE_S:
        return list(ladder.degrees)
    profile = problem.profile
    prompt = [k for k in ladder.degrees if leaving_s(ladder.step[k], profile.layers) <= profile.encode()]
    return prompt or [ladder.widest]


def _order(lineup: Lineup, work: Work, degree: int, longest: float) -> Piece | None:
    step = work.ladder.step[degree] if work.stage is Stage.DENOISING else 0.0
    return lineup.order(work, degree, work.steps, max(longest, step))
