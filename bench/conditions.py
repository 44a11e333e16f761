"""What virtual executors are like: noise, costs, delays and faults."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conditions:
    """Times in seconds.

    `step_cv` is the coefficient of variation of step times, `switch_s` what a group costs whose
    members last ran in another; plans count it where `knows_switches`. Decisions take `decision_s`, or with
    `charge_measured` as long as the policy really took; `budget_s` is what a policy is told to take at most.
    Messages take up to `latency_s`, each way. Checkpoints arrive `checkpoint_s` after an order's end, or
    never.
    `error_rate` is the share of orders that fail on one of their members; steps of the requests `poisoned`
    always do. Steps, encodings and decodings take `node_paces` times as long as in the profile, by node, the
    last for all further ones. Where any are given, the core learns them as it does in the service, or with
    `knows_paces` false keeps to the profile.
    """

    step_cv: float = 0.0
    switch_s: float = 0.0
    knows_switches: bool = True
    decision_s: float = 0.0
    charge_measured: bool = False
    budget_s: float = 1.0
    latency_s: float = 0.0
    checkpoint_s: float | None = 0.0
    error_rate: float = 0.0
    poisoned: frozenset[str] = frozenset()
    node_paces: tuple[float, ...] = ()
    knows_paces: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """An executor goes at `at`, and a new one takes its slot `repair_s` after that is known.

    A `clean` one hands back what it has not begun and finishes what it has. Any other dies with
    all that it holds, and is missed `detection_s` later.
    """

    at: float
    slot: int
    repair_s: float = 30.0
    detection_s: float = 0.0
    clean: bool = False


def random_faults(slots: Iterable[int], per_hour: float, repair_s: float, seed: int) -> Iterator[Fault]:
    """Deaths at `per_hour` for each executor that is up, in order of time, without end."""
    if per_hour <= 0:
        return
    rng = random.Random(f"faults {seed}")
    heap = [(rng.expovariate(per_hour / 3600), slot) for slot in slots]
    heapq.heapify(heap)
    while heap:
        at, slot = heap[0]
        yield Fault(at, slot, repair_s)
        heapq.heapreplace(heap, (at + repair_s + rng.expovariate(per_hour / 3600), slot))
