"""Who has which GPUs when: bookings, and finding room for a request among them.

Simple and explicit, because promises rest on it: every stage of every booked request has its slots,
its beginning and its end.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scheduler.placement import layout_of
from scheduler.problem import EVERY_ROLE, Problem, Request, Stage


def slip(now: float) -> float:
    """Seconds that rounding may lose: the server's times count from 1970, the simulator's from 0."""
    return 1e-9 + 4 * math.ulp(now)


@dataclass(frozen=True, slots=True)
class Booking:
    """Slots that are kept for a stage of a request, for all its `steps` or some; times in seconds."""

    request_id: str
    stage: Stage
    slots: tuple[int, ...]
    steps: int
    begin: float
    end: float


@dataclass(slots=True)
class Rest:
    """What is left of a request once the orders that it has are done; it can go on at `ready`."""

    request: Request
    stage: Stage
    steps: int
    ready: float

    @classmethod
    def of(cls, request: Request, now: float) -> "Rest":
        """As the core sees it."""
        return cls(request, request.stage, request.steps, max(now, request.ready_at))

    def done(self, stage: Stage, steps: int, end: float) -> bool:
        """An order of this stage will have ended then; whether nothing is left."""
        self.ready = end
        if stage is Stage.ENCODING:
            self.stage = Stage.DENOISING
        elif stage is Stage.DENOISING:
            self.steps -= steps
            self.stage = Stage.DENOISING if self.steps else Stage.DECODING
        return stage is Stage.DECODING


class _Busy:
    """When a block is taken: spans that do not touch, ascending."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []

    def add(self, begin: float, end: float, slack: float) -> None:
        first, last = bisect_left(self.ends, begin - slack), bisect_right(self.begins, end + slack)
        if first < last:
            begin, end = min(begin, self.begins[first]), max(end, self.ends[last - 1])
        self.begins[first:last] = [begin]
        self.ends[first:last] = [end]


class Timetable:
    """The GPUs of a problem, free from some time on but for what is booked."""

    def __init__(self, problem: Problem, free_at: Mapping[int, float]) -> None:
        self.problem = problem
        self.free_at = free_at
        self._slip = slip(problem.now)
        self._layout = layout_of(problem.gpus)
        roles = {gpu.slot: gpu.roles for gpu in problem.gpus}
        self._able = {
            stage: [slot for slot in self._layout.slots if stage in roles[slot]] for stage in EVERY_ROLE
        }
        denoisers = set(self._able[Stage.DENOISING])
        members = self._layout.members
        self._blocks = {
            degree: [members[block] for block in blocks if denoisers.issuperset(members[block])]
            for degree, blocks in self._layout.blocks.items()
        }

        blocks = [block for blocks in self._blocks.values() for block in blocks]
        self._busy = {block: _Busy() for block in {*blocks, *((slot,) for slot in self._layout.slots)}}
        self._of: dict[int, list[_Busy]] = {slot: [] for slot in self._layout.slots}
        for block, busy in self._busy.items():
            for slot in block:
                self._of[slot].append(busy)
        self._free = {block: max([free_at[slot] for slot in block]) for block in self._busy}

    def take(self, bookings: Iterable[Booking]) -> None:
        """Enter bookings; they do not overlap with others on their slots."""
        for booking in bookings:
            if booking.end > booking.begin:
                for busy in {id(busy): busy for slot in booking.slots for busy in self._of[slot]}.values():
                    busy.add(booking.begin, booking.end, self._slip)

    def earliest(self, block: tuple[int, ...], ready: float, seconds: float) -> float:
        """When a block is free for so long, from `ready` on."""
        begin, busy = max(ready, self._free[block]), self._busy[block]
        index = bisect_right(busy.ends, begin + self._slip)
        while index < len(busy.begins) and busy.begins[index] < begin + seconds - self._slip:
            begin = busy.ends[index]
            index += 1
        return begin

    def place(self, rest: Rest, limit: float, not_before: float = -math.inf) -> list[Booking]:
        """Bookings for all that is left of a request, at the fewest GPU-seconds that have it done by `limit`.

        Else as early as can be; the end of the last tells. Not entered yet. Empty: no GPU can do it.
        """
        problem, request = self.problem, rest.request
        ready = max(rest.ready, not_before)
        before: list[Booking] = []
        if rest.stage is Stage.ENCODING:
            encoding = self._single(request, Stage.ENCODING, ready, problem.profile.encode(), ())
            if encoding is None:
                return []
            before, ready = [encoding], encoding.end
        decode_s = problem.profile.decode(request.width, request.height)
        if not rest.steps:
            decoding = self._single(request, Stage.DECODING, ready, decode_s, request.slots)
            return [*before, decoding] if decoding else []
        best: list[Booking] = []
        for degree in problem.profile.degrees(request.width, request.height):
            seconds = rest.steps * problem.profile.step(request.width, request.height, degree)
            seconds += problem.profile.switch if degree > 1 else 0.0
            options = [
                (self.earliest(block, ready, seconds), block) for block in self._blocks.get(degree, ())
            ]
            if not options:
                break
            begin, block = min(options)
            steps = Booking(request.id, Stage.DENOISING, block, rest.steps, begin, begin + seconds)
            decoding = self._single(request, Stage.DECODING, steps.end, decode_s, block)
            if decoding is None:
                return []
            if not best or decoding.end < best[-1].end:
                best = [*before, steps, decoding]
            if best[-1].end <= limit + self._slip:
                break
        return best

    def _single(
        self, request: Request, stage: Stage, ready: float, seconds: float, preferred: tuple[int, ...]
    ) -> Booking | None:
        """An encoding or a decoding on the slot that is free first; among equals on a `preferred` one."""
        able = self._able[stage]
        options = [(self.earliest((slot,), ready, seconds), slot not in preferred, slot) for slot in able]
        if not options:
            return None
        begin, _, slot = min(options)
        return Booking(request.id, stage, (slot,), 0, begin, begin + seconds)


def ends(bookings: Iterable[Booking]) -> dict[str, float]:
    """When each booked request is done."""
    last: dict[str, float] = {}
    for booking in bookings:
        last[booking.request_id] = max(booking.end, last.get(booking.request_id, -math.inf))
    return last
