"""The benchmark of decisions: moments of the wanted size, and a line for each policy and kind."""

import json

import pytest
from click.testing import CliRunner

from bench import solver
from bench.cli import main
from bench.moments import at_random, simulated
from bench.runs import DEFAULT_PROFILE, profile


def test_random_moments_are_full_and_the_same_for_a_seed():
    moment = at_random(profile(DEFAULT_PROFILE), 40, 4, 8, seed=3)
    assert moment == at_random(profile(DEFAULT_PROFILE), 40, 4, 8, seed=3)
    assert len(moment.requests) == 40
    assert len(moment.gpus) == 32
    for request in moment.requests:
        assert all(f"node{slot // 8}" == request.home for slot in request.slots)
    assert 0 < sum(map(moment.is_late, moment.requests)) < 40


@pytest.mark.parametrize("nodes", [1, 3])
def test_simulated_moments_are_what_the_core_asks_for(nodes):
    moments, core = simulated(profile(DEFAULT_PROFILE), 30, nodes, 8, 12, seed=0)
    assert 0 < len(moments) <= 12
    assert len(core) == len(moments)
    assert all(seconds > 0 for seconds in core)
    if nodes == 1:
        # Those whose last order is out are not planned any more.
        assert all(20 <= len(moment.requests) <= 33 for moment in moments)


def test_the_command_writes_a_line_for_each_policy_and_kind(tmp_path):
    words = ["solver", "--quick", "--policies", "edf,cp-sat", "--samples", "5", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    lines = json.loads((tmp_path / "solver.json").read_text())["lines"]
    assert [(line["policy"], line["source"], line["gpus"]) for line in lines] == [
        (policy, case.source, 8 * case.nodes) for case in solver.QUICK_CASES for policy in ("edf", "cp-sat")
    ]
    for line in lines:
        assert 0 < line["ms"]["p50"] <= line["ms"]["p99"] <= line["ms"]["max"]
        assert (line["core_ms"] is not None) == (line["source"] == "simulated")
        assert sum(line["statuses"].values()) == (line["samples"] if line["policy"] == "cp-sat" else 0)
    table = (tmp_path / "solver.md").read_text()
    assert table.count("| edf |") == table.count("| cp-sat |") == len(solver.QUICK_CASES)
