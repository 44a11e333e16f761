"""The knobs of the core."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """Knobs of the core; times in seconds.

    `round_s` bounds an order's length and the time between plans; `lead_s` is how long before the end
    of its last order an executor can be given the next; `margin_s` is kept free before deadlines;
    `attempts` failed orders end a request; `grace_s` is how long the other members of a group may
    still report after one has failed, before they are aborted. Who is late, or has no deadline, gets a
    claim on GPUs once it has been here for `age_bound_s`. `scale_up` is how freely idle GPUs are spent on
    finishing early (see `Problem`).
    """

    round_s: float = 0.25
    lead_s: float = 0.05
    margin_s: float = 0.0
    attempts: int = 3
    grace_s: float = 2.0
    drop_late: bool = False
    age_bound_s: float = math.inf
    scale_up: float = 1.0
