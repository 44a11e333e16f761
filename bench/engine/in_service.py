"""What executors do besides computing: a real scheduler, real executors, times from their own clocks."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.engine.figures import Figure
from tetriserve import Client
from tetriserve.local import LocalCluster

PROMPT = "a red house under a yellow sun"
RECORDED = ("-m", "bench.engine.recorded")
TIMEOUT_S = 600.0

Size = tuple[int, int]
Line = dict[str, Any]


def overhead(
    folder: Path,
    sizes: Sequence[Size],
    requests: int,
    steps: int,
    device: str,
    options: Sequence[str],
    random: str,
) -> list[Figure]:
    """Time per step in the service, against diffusers' own loop run in turn by the same thread."""
    environment = {"BARE": "1", "RANDOM": random}
    with _recorded(folder, 1, "fixed:1", device, options, environment) as (cluster, records):
        with Client(cluster.target) as client:
            for width, height in sizes:
                for seed in range(requests):
                    status = client.submit(PROMPT, f"{width}x{height}", steps=steps, seed=seed)
                    client.wait(status.id, timeout=TIMEOUT_S)
        lines = [line for executor in records() for line in executor if line.get("bare")]
    figures = []
    for size in sizes:
        figures += _overhead(size, [line for line in lines if line["size"] == [list(size)]])
    return figures


def _overhead(size: Size, lines: Sequence[Line]) -> list[Figure]:
    part, name = "A step in the service against diffusers' own loop", f"{size[0]}x{size[1]}"
    per_order = []
    for line in lines:
        steps = len(line["calls"])
        computing = sum(end - begin for begin, end in line["calls"])
        per_order.append(
            {
                "service": (line["end"] - line["begin"]) / steps,
                "bare": statistics.median(line["bare"]),
                "service_cpu": line["cpu"] / steps,
                "bare_cpu": statistics.median(line["bare_cpu"]),
                "host": (line["end"] - line["begin"] - computing) / steps,
                "host_cpu": (line["cpu"] - line["computed"]) / steps,
                "steps": steps,
            }
        )
    if not per_order:
        return []

    def median(name: str) -> float:
        return statistics.median(order[name] for order in per_order)

    ratio = statistics.median(order["service"] / order["bare"] for order in per_order)
    cpu = statistics.median(order["service_cpu"] / order["bare_cpu"] for order in per_order)
    more = statistics.median(order["service"] - order["bare"] for order in per_order)
    note = f"median of {len(per_order)} orders of about {median('steps'):.0f} steps, each with its pair"
    return [
        Figure(part, "diffusers, a step", 1000 * median("bare"), "ms", name, note),
        Figure(part, "in the service, a step with all around it", 1000 * median("service"), "ms", name),
        Figure(part, "in the service / diffusers, time", ratio, "x", name, "median of ratios of pairs"),
        Figure(part, "in the service / diffusers, CPU time of the thread", cpu, "x", name),
        Figure(part, "in the service - diffusers", 1000 * more, "ms", name, "median of differences of pairs"),
        Figure(part, "outside the pipeline, a step", 1000 * median("host"), "ms", name, "orders, reports"),
        Figure(part, "the same, CPU time of the thread", 1000 * median("host_cpu"), "ms", name),
    ]


def gaps(
    folder: Path, sizes: Sequence[Size], requests: int, steps: int, executors: int, options: Sequence[str]
) -> list[Figure]:
    """What is between the computations of executors that always have another order waiting."""
    words = ["--warm-groups", "always"]
    with _recorded(folder, executors, "edf", "cpu", options, {}, words) as (cluster, records):
        with Client(cluster.target) as client:
            ids = [
                client.submit(PROMPT, f"{w}x{h}", steps=steps, seed=seed, deadline=60 + 5 * seed).id
                for seed, (w, h) in zip(range(requests), itertools.cycle(sizes), strict=False)
            ]
            for id in ids:
                client.wait(id, timeout=TIMEOUT_S)
        lines = records()
    return _gaps(lines)


def _gaps(executors: Sequence[Sequence[Line]]) -> list[Figure]:
    some = f"{len(executors)} executor{'s' * (len(executors) > 1)}"
    part = f"Gaps between computations, {some} with orders queued ahead"
    busy = within = ahead = idle = waiting = starting = host = 0.0
    starts: dict[bool, list[float]] = {True: [], False: []}
    counts: dict[str, int] = defaultdict(int)
    arrivals: dict[int, float] = {}
    for line in itertools.chain.from_iterable(executors):
        if line["meeting"]:
            order = line["order"]
            arrivals[order] = max(arrivals.get(order, 0.0), line["meeting"][0])
    for lines in executors:
        before: Line | None = None
        for line in sorted(lines, key=lambda line: line["begin"]):
            calls = line["calls"]
            if not calls or not line["requests"]:
                continue
            busy += sum(end - begin for begin, end in calls)
            host += line["cpu"] - line["computed"]
            within += sum(b[0] - a[1] for a, b in itertools.pairwise(calls))
            if before is not None:
                gap = calls[0][0] - before["calls"][-1][1]
                if not before["ahead"]:
                    idle += gap
                    before = line
                    continue
                # Until its state is there, and then its last member, there is nothing that this one could do.
                late = _late(line, executors)
                if line["degree"] > 1:
                    late += max(0.0, arrivals[line["order"]] - line["meeting"][0])
                waiting += late
                gap -= late
                if line["degree"] > 1:
                    starting += gap
                    same = before["degree"] == line["degree"]
                    starts[not same].append(calls[0][0] - arrivals[line["order"]])
                else:
                    ahead += gap
                    counts["alone"] += 1
            before = line
    orders = counts["alone"] + sum(map(len, starts.values()))

    def share(what: str, seconds: float, note: str) -> Figure:
        return Figure(part, what, 100 * seconds / busy, "%", "", note)

    figures = [
        Figure(part, "computing", busy, "s", "", "all shares are of this"),
        share("between steps of an order", within, "go, store, reports"),
        share("between orders", ahead + starting, f"{orders} that were there when the one before ended"),
        share("the same, CPU time of the thread", host, "the rest waits for a core, a lock, a peer"),
        share("waiting for states and members that are not ready", waiting, "by the plan"),
        share("without an order", idle, "beginning, end, and orders that came late"),
    ]
    if counts["alone"]:
        figures.append(
            Figure(part, "an order of one member begins after", 1000 * ahead / counts["alone"], "ms")
        )
    for switched, name in ((False, "the same degree as before"), (True, "another degree than before")):
        if starts[switched]:
            value = 1000 * statistics.median(starts[switched])
            note = f"after the last member has come; median of {len(starts[switched])}"
            figures.append(Figure(part, f"an order of two begins, {name}", value, "ms", "", note))
    return figures


def _late(line: Line, executors: Sequence[Sequence[Line]]) -> float:
    """For how long the order waited for a state that its holder had still to compute."""
    if not line["fetch"]:
        return 0.0
    begin, end = line["fetch"]
    ready = (
        other["calls"][-1][1]
        for other in itertools.chain.from_iterable(executors)
        if other["calls"] and set(other["requests"]) & set(line["requests"])
    )
    return max((then - begin for then in ready if begin < then < end), default=0.0)


@contextmanager
def _recorded(
    folder: Path,
    executors: int,
    policy: str,
    device: str,
    options: Sequence[str],
    environment: Mapping[str, str],
    scheduler: Sequence[str] = (),
) -> Iterator[tuple[LocalCluster, Any]]:
    """A cluster of recorded executors, and what gives their lines so far, one list an executor."""
    records = folder / "records"
    records.mkdir(parents=True, exist_ok=True)
    for old in records.glob("*.jsonl"):
        old.unlink()
    set_for_children = {"RECORD": str(records), **{k: v for k, v in environment.items() if v}}
    before = {name: os.environ.get(name) for name in set_for_children}
    os.environ.update(set_for_children)
    cluster = LocalCluster(
        folder / "cluster",
        executors,
        policy=policy,
        device="cpu" if device == "cpu" else "cuda",
        options=options,
        executor=RECORDED,
        scheduler_options=scheduler,
    )

    def lines() -> list[list[Line]]:
        files = sorted(records.glob("*.jsonl"))
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]

    try:
        with cluster:
            cluster.wait_ready(timeout=TIMEOUT_S)
            yield cluster, lines
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
