"""Work that no deadline waits for gives way in the middle of a step, and does that step again later.

Steps cannot be interrupted, but they can be left: between two layers all members of a group go, and the
latent is still that from before the step (`executor/yielding.py`).
"""

NOTICE_S = 0.005
"""What it takes to tell executors to stop: a step that ends sooner is too near to end its order with it."""
TO_LEAVE = 3
"""Layers until all members have left: the one that runs, and two by which a device may be behind its host."""


def leaving_s(step_s: float, layers: float) -> float:
    """Seconds from the wish to have the GPUs until a step of `step_s` with so many layers has been left."""
    return NOTICE_S + step_s * min(1.0, TO_LEAVE / layers)
