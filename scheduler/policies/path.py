"""The cheapest way through GPUs that become free at different times.

Blocks nest, so the wider a degree, the later a block for it is free. A request can begin narrow and
go on wide once it may; from then on the wide part comes first, so that what is left can wait.
"""

from collections.abc import Sequence
from typing import NamedTuple

from scheduler.policies.mix import TOLERANCE, Ladder, Mix


class Path(NamedTuple):
    """`head_steps` at degree `head` from `begin` on, then a mix from `switch` on.

    Without a head, `head_steps` is 0 and `begin` is `switch`.
    """

    head: int
    head_steps: int
    begin: float
    switch: float
    mix: Mix
    gpu_seconds: float

    @property
    def end(self) -> float:
        """When the last step ends."""
        return self.switch + self.mix.seconds


def cheapest_path(
    ladder: Ladder, steps: int, due: float, openings: Sequence[tuple[int, float]], narrowest: int = 1
) -> Path | None:
    """The path of least GPU-seconds that does `steps` by `due`; None where there is none.

    `openings` are the ladder's degrees, ascending, with the time from which on each can be used; no wider
    one earlier, but by what a change of group costs. The mix uses no degree below `narrowest`; the head may.
    """
    lag = ladder.switch
    for index, (degree, opens) in enumerate(openings):
        if degree < narrowest:
            continue
        best: Path | None = None
        fast = ladder.step[degree]
        # Most are too slow: that is quickly seen.
        mix = None
        if steps * fast <= due - opens + TOLERANCE:
            mix = ladder.cheapest(steps, due - opens, degree, narrowest)
        if mix is not None and lag and mix.wide < degree:
            # A change of group keeps the narrower ones waiting for longer.
            mix = ladder.cheapest(steps, due - opens, degree, degree)
        if mix is not None:
            best = Path(0, 0, opens, opens, mix, mix.gpu_seconds)
        for head, head_opens in openings[:index]:
            if head_opens >= opens:
                continue
            step = ladder.step[head]
            count = int((opens - lag - head_opens) / step + TOLERANCE)
            switch = opens
            # A step that straddles the opening pays where it ends before a wide one would.
            straddled = head_opens + (count + 1) * step + lag
            if straddled - fast < opens:
                count, switch = count + 1, straddled
            if not 0 < count < steps or (steps - count) * fast > due - switch + TOLERANCE:
                continue
            mix = ladder.cheapest(steps - count, due - switch, degree, narrowest)
            if mix is None:
                continue
            cost = count * head * step + mix.gpu_seconds + degree * lag
            if best is None or cost < best.gpu_seconds:
                best = Path(head, count, head_opens, switch, mix, cost)
        # A wider degree is free no earlier and costs no less.
        if best is not None:
            return best
    return None
