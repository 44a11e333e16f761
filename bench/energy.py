"""The most weight on time by GPU-seconds alone: quick, looser than the fluid, for when that takes too long.

All whose windows lie between two moments take no more GPU-seconds together than there are between them.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, milp

from bench.least import least_gpu_seconds
from bench.program import TOLERANCE, Job, Rows

ROUNDS = 50
"""Times that the program is solved with more rows: most never matter."""


def most_by_energy(jobs: Sequence[Job], gpus: int, time_limit_s: float) -> float:
    """What the weight on time cannot exceed; out of time, it is looser."""
    until = time.perf_counter() + time_limit_s
    jobs = sorted(jobs, key=lambda job: job.end)
    needs, weights = np.array([_need(job) for job in jobs]), np.array([job.weight for job in jobs])
    begins, ends = (np.array([getattr(job, name) for job in jobs]) for name in ("begin", "end"))
    since = np.unique(begins)
    inside = begins >= since[:, None]
    rooms = gpus * (ends - since[:, None])
    rows, best = Rows(), float(weights.sum())
    relaxed = True
    for _ in range(ROUNDS):
        left = until - time.perf_counter()
        if left <= 0:
            break
        found = milp(
            -weights,
            integrality=np.full(len(jobs), 0 if relaxed else 1),
            bounds=Bounds(0.0, 1.0),
            constraints=rows.constraint(len(jobs)),
            options={"time_limit": left, "mip_rel_gap": 0.0},
        )
        limit = found.fun if relaxed and found.status == 0 else found.mip_dual_bound
        if limit is not None and math.isfinite(limit):
            best = min(best, -float(limit) + 1e-6)
        if found.x is None:
            break
        excess = np.where(inside, np.cumsum(inside * needs * found.x, axis=1) - rooms, -math.inf)
        last = excess.argmax(axis=1)
        broken = np.flatnonzero(excess.max(axis=1) > 1e-6)
        for begin in broken:
            members = np.flatnonzero(inside[begin, : last[begin] + 1])
            rows.add(zip(members, needs[members], strict=True), rooms[begin, last[begin]] + TOLERANCE)
        if not len(broken):
            if not relaxed:
                break
            relaxed = False
    return best


def _need(job: Job) -> float:
    """The GPU-seconds that a request takes at least, in its window."""
    if job.shares:
        each = min(k * step * job.shares.get(k, 1.0) for k, step in job.ladder.step.items())
        steps = job.steps * each
    else:
        steps = least_gpu_seconds(job.ladder, job.steps, job.steps_end - job.steps_begin)
    return job.encode + steps + job.decode
