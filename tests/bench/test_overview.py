"""The table of all cells: signs, the best other, what is outside its interval, bounds that are not proven."""

from bench.matrix import quick_cells
from bench.overview import overview


def record(policy: str, seed: int, sar: float, spent: float = 20.0, **more):
    return {
        "policy": policy,
        "seed": seed,
        "sar_weighted": sar,
        "gpu_seconds_per_on_time_weighted": spent,
        "latency_s": {"p50": 1.0, "p99": 2.0},
        "late_latency_s": {"mean": 12.0 + seed},
        "switches": 3,
        "decision_ms": {"p99": 1.0},
        **more,
    }


def test_the_first_policy_is_held_against_the_others_and_the_bound():
    cell = next(quick_cells(200.0))
    records = [
        *(record("cp-sat", seed, 0.80 + seed / 100) for seed in (0, 1)),
        *(record("search", seed, 0.80) for seed in (0, 1)),
        *(record("edf", seed, 0.75 + seed / 100, spent=25.0) for seed in (0, 1)),
        *(record("srtf", seed, sar) for seed, sar in enumerate((0.60, 0.70))),
        *(record("rssp", seed, 0.3) for seed in (0, 1)),
        *(record("bound", seed, 0.80 + seed / 50, proven=seed == 0) for seed in (0, 1)),
    ]
    header, row = overview([cell], {cell.name: records})
    others = ("search", "edf", "tetriserve")
    assert header[1:5] == ("`cp-sat`, SAR %", *(f"more than `{other}`" for other in others))
    assert row[0] == cell.name
    assert row[1].startswith("80.5 ±")
    assert row[2][:6] == "+0.5 ±"
    assert row[3:5] == ("**+5.0 ±0.0**", "-")
    assert (row[5][:7], row[5][-8:]) == ("+15.5 ±", "(`srtf`)")
    assert (row[6][:5], row[6][-8:]) == ("0.5 ±", ", 1 open")
    assert row[7:] == ("20.0 / 25.0", "12")


def test_what_is_the_same_has_no_sign():
    cell = next(quick_cells(200.0))
    records = [record(policy, seed, 0.5) for policy in ("cp-sat", "edf") for seed in (0, 1)]
    _, row = overview([cell], {cell.name: records})
    assert row[3] == "+0.0 ±0.0"
