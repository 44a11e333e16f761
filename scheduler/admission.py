"""Which requests are let in: all, those that can be on time, or those whose deadline can be promised."""

import math
from dataclasses import dataclass
from enum import Enum

from scheduler.pledges import Offer
from scheduler.quote import can_meet, quote
from scheduler.rounds import Rounds
from scheduler.tracking import Submission


class Admission(Enum):
    """What `--admission` takes."""

    ACCEPT = "accept"
    REJECT_LATE = "reject-late"
    PROMISE = "promise"


class Declined(Exception):
    """A request that is not let in; the message says why, and what would be."""

    def __init__(self, wanted_s: float, earliest_s: float, admission: Admission) -> None:
        what = "promised" if admission is Admission.PROMISE else "met"
        soonest = f"the earliest that can is {earliest_s:.3g} s" if earliest_s < math.inf else "none can"
        super().__init__(
            f"deadline: {wanted_s:g} s cannot be {what} now; {soonest} (--admission {admission.value})"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request is let in, with an offer where its deadline can be promised.

    `earliest_s`: the seconds from its arrival for which it would be, where it is not.
    """

    accepted: bool
    offer: Offer | None = None
    earliest_s: float = 0.0


def judge(
    rounds: Rounds,
    now: float,
    submission: Submission,
    admission: Admission,
    unpromised: bool = False,
    arrived_at: float | None = None,
) -> Verdict:
    """Look at a submission before it is accepted; nothing changes.

    `unpromised`: where no promise can be made, it is content without. What has no deadline is let in.
    """
    if admission is Admission.ACCEPT or submission.deadline_s is None:
        return Verdict(True)
    if admission is Admission.PROMISE:
        offer = rounds.offer(now, submission, arrived_at)
        if offer.witness is not None:
            return Verdict(True, offer)
        return Verdict(unpromised, earliest_s=offer.earliest_s)
    request = rounds.arriving(now, submission, arrived_at)
    parts = [moment for _, moment in rounds.best_parts(now, request)]
    if not parts or any(can_meet(moment, request) for moment in parts):
        return Verdict(True)
    return Verdict(False, earliest_s=quote(parts[0], request.width, request.height, request.steps).earliest_s)
