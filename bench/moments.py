"""Moments to decide on: problems of a wanted size, from simulated overload or at random."""

import random
from dataclasses import replace

from bench.runs import SERVER_CONFIG
from bench.simulator import Arrival, Simulation
from bench.workloads import BASE_DEADLINES, base_deadline
from scheduler.policies import resolve
from scheduler.problem import Gpu, Plan, Problem, Request, Stage
from scheduler.profile import Profile
from scheduler.tracking import Submission

STEPS = 50
REQUEST_GPU_SECONDS = 20.0
"""About what a request of the uniform mix takes, to choose deadlines that about half of a crowd can meet."""
CRUSH_S = 3.0
"""Seconds in which a simulated crowd arrives, at most."""


def simulated(
    profile: Profile, requests: int, nodes: int, node_size: int, count: int, seed: int
) -> tuple[list[Problem], list[float]]:
    """Problems that the core asks policies to solve while about `requests` are outstanding.

    With several nodes these are of the nodes that an event has touched. Also what the core took for each,
    in seconds. Fewer than `count` where the crowd is gone before.
    """
    rng = random.Random(f"crowd {seed}")
    crowd = requests + max(2, requests // 10)
    drain = crowd * REQUEST_GPU_SECONDS / (nodes * node_size)
    arrivals = []
    for number in range(crowd):
        side = rng.choice(list(BASE_DEADLINES))
        deadline = 1.5 * base_deadline(side, side) + rng.uniform(0.0, drain)
        at = min(CRUSH_S, 0.02 * crowd) * number / crowd
        arrivals.append(Arrival(at, Submission(f"r{number}", side, side, STEPS, deadline)))
    found: list[tuple[int, Problem]] = []
    edf = resolve("edf")

    def watch(problem: Problem, budget_s: float) -> Plan:
        if simulation.outstanding >= 0.9 * requests and any(
            gpu.free_at <= problem.horizon for gpu in problem.gpus
        ):
            found.append((len(outcomes.core_seconds), problem))
        return edf(problem, budget_s)

    simulation = Simulation(
        watch, profile, nodes * node_size, arrivals, config=SERVER_CONFIG, node_size=node_size
    )
    outcomes = simulation.outcomes
    # More than wanted, to choose from all along the way.
    simulation.run(lambda: len(found) >= 4 * count)
    chosen = found[:: max(1, len(found) // count)][:count]
    return [problem for _, problem in chosen], [outcomes.core_seconds[index] for index, _ in chosen]


def at_random(profile: Profile, requests: int, nodes: int, node_size: int, seed: int) -> Problem:
    """A busy moment: requests at any step of theirs, GPUs in the middle of orders; all nodes at once."""
    rng = random.Random(f"moment {seed}")
    now = 1000.0
    drain = requests * REQUEST_GPU_SECONDS / (nodes * node_size)
    gpus = [
        Gpu(slot, now + rng.choice([0.0, 0.0, rng.uniform(0.0, 0.3)]), f"node{slot // node_size}")
        for slot in range(nodes * node_size)
    ]
    outstanding = []
    for number in range(requests):
        side = rng.choice(list(BASE_DEADLINES))
        node = number % nodes
        stage = rng.choice([Stage.ENCODING] * 5 + [Stage.DENOISING] * 4 + [Stage.DECODING])
        degree = rng.choice([k for k in (1, 2, 4, 8) if k <= node_size])
        first = node * node_size + rng.randrange(0, node_size, degree)
        request = Request(
            f"r{number}",
            side,
            side,
            stage,
            {Stage.ENCODING: STEPS, Stage.DENOISING: rng.randint(1, STEPS - 1), Stage.DECODING: 0}[stage],
            ready_at=now - rng.uniform(0.0, 5.0),
            arrived_at=now - 5.0,
            deadline=now + rng.uniform(0.0, drain + 2 * base_deadline(side, side)),
            home=f"node{node}",
        )
        if stage is not Stage.ENCODING:
            request = replace(request, slots=tuple(range(first, first + degree)))
        outstanding.append(request)
    horizon = now + SERVER_CONFIG.lead_s
    return Problem(
        now,
        horizon,
        SERVER_CONFIG.round_s,
        tuple(gpus),
        tuple(outstanding),
        profile.limited(node_size),
        SERVER_CONFIG.margin_s,
    )
