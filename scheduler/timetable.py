"""Who has which GPUs when: bookings, and finding room for a request among them.

Simple and explicit, because promises rest on it: every stage of every booked request has its slots,
its beginning and its end.
"""

import math
from bisect import insort
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


class Timetable:
    """The GPUs of a problem, free from some time on but for what is booked."""

    def __init__(self, problem: Problem, free_at: Mapping[int, float]) -> None:
        self.problem = problem
        self.free_at = free_at
        self._slip = slip(problem.now)
        self._layout = layout_of(problem.gpus)
        self._taken: dict[int, list[tuple[float, float]]] = {slot: [] for slot in free_at}
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

    def take(self, bookings: Iterable[Booking]) -> None:
        """Enter bookings; they do not overlap with others on their slots."""
        for booking in bookings:
            for slot in booking.slots:
                insort(self._taken[slot], (booking.begin, booking.end))

    def earliest(self, slots: Iterable[int], ready: float, seconds: float) -> float:
        """When these slots are free together for so long, from `ready` on."""
        slots = tuple(slots)
        begin = max(ready, *[self.free_at[slot] for slot in slots])
        taken = sorted({span for slot in slots for span in self._taken[slot]})
        for begun, ended in taken:
            if begun >= begin + seconds - self._slip:
                break
            if ended > begin + self._slip:
                begin = ended
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
