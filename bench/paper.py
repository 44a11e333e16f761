"""`python -m bench paper`: the whole matrix, its tables and its plots."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench import plots
from bench.compare import HEADER, LEGEND, lines
from bench.compare import cells as as_text
from bench.matrix import POLICIES, Cell, cells, default_profile_cells, quick_cells
from bench.overview import LEGEND as GLANCE
from bench.overview import overview
from bench.trials import BOUND, Record, Trial, perform_all
from scheduler.policies import resolve

RECORDS = "records.jsonl"


def available(wanted: Sequence[str] = POLICIES) -> list[str]:
    """Those of the wanted policies that this version, with the solvers that are installed, has."""
    found = []
    for policy in wanted:
        with contextlib.suppress(ValueError, ImportError):
            resolve(policy)
            found.append(policy)
    return found


def paper(
    folder: Path,
    policies: Sequence[str],
    *,
    seeds: Sequence[int],
    jobs: int,
    duration: float,
    quick: bool,
    groups: Sequence[str],
    bound_limit_s: float,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Run what is not in the folder's records yet, then write tables and plots; the files written.

    The clairvoyant bound may take `bound_limit_s` for each busy period; 0: it is left out. ValueError: one of
    the groups has no quick runs.
    """
    found = list((quick_cells if quick else cells)(duration))
    there = list(dict.fromkeys(cell.group for cell in found))
    if lacking := [group for group in groups if group not in there]:
        raise ValueError(f"--quick has only the --groups {', '.join(there)}, not {', '.join(lacking)}")
    if groups:
        found = [cell for cell in found if cell.group in groups]
    folder.mkdir(parents=True, exist_ok=True)
    trials = []
    for cell in found:
        trials += [Trial(cell.name, policy, seed, cell.setting) for policy in policies for seed in seeds]
        if bound_limit_s:
            trials += [Trial(cell.name, BOUND, seed, cell.setting, bound_limit_s) for seed in seeds]
    records = perform_all(trials, jobs, folder / RECORDS, progress)
    by_cell: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_cell[record["cell"]].append(record)
    drawn = f"Seeds {seeds[0]} to {seeds[-1]}, {len(policies)} policies"
    if bound_limit_s:
        drawn += f" and the clairvoyant bound ({bound_limit_s:g} s for each busy period)"
    drawn += "."
    written = [
        _tables(group, drawn, [cell for cell in found if cell.group == group], by_cell, folder)
        for group in dict.fromkeys(cell.group for cell in found)
    ]
    main = default_profile_cells(found)
    if main:
        written += plots.sar_by(main, by_cell, "scale", folder)
        written += plots.sar_by(main, by_cell, "rate", folder)
        written.append(plots.latencies(_middle(main), by_cell, folder / "latency_cdf.png"))
        written.append(plots.cost(main, by_cell, folder / "sar_by_gpu_seconds.png"))
        example = replace(_middle(main).setting.workload, duration=60.0)
        setting = replace(_middle(main).setting, workload=example)
        outcomes = setting.simulate(policies[0], setting.arrivals())
        written.append(plots.timeline(policies[0], outcomes, setting.gpus, folder / "timeline.png"))
    return written


def _middle(found: Sequence[Cell]) -> Cell:
    """The skewed mix with some slack at a usual rate, or what comes nearest."""
    return min(found, key=lambda cell: (cell.mix != "skewed", abs(cell.scale - 1.2), abs(cell.rate - 12)))


def _tables(
    group: str, drawn: str, found: Sequence[Cell], by_cell: dict[str, list[Record]], folder: Path
) -> Path:
    """A file for each group, so that one can be run again without the others."""
    workload = found[0].setting.workload
    how = f"{drawn} {workload.duration:g} s of arrivals on {found[0].setting.profile}."
    text = [f"# {group}", "", how + " Means over seeds with 95 % intervals.", ""]
    text += ["## At a glance", "", GLANCE, "", *_table(*overview(found, by_cell)), "", LEGEND, ""]
    for cell in found:
        text += [f"## {cell.name}", "", *_table(HEADER, *map(as_text, lines(by_cell[cell.name]))), ""]
    path = folder / f"{group.replace(' ', '-')}.md"
    path.write_text("\n".join(text))
    return path


def _table(header: Sequence[str], *rows: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(texts)} |" for texts in (header, ["---"] * len(header), *rows)]
