"""The whole training in small, as `make model QUICK=1` runs it: from nothing to a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.evaluate import load, make_pictures
from model.train import CHECKSUMS, STAGES


def run(work: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model.train", "--work", str(work), "--out", str(out), "--quick"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, timeout=800)


@pytest.mark.timeout(1800)
def test_quick_training_makes_a_checkpoint_from_nothing_and_the_same_one_again(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    first = run(work, out)
    assert first.returncode == 0, first.stderr
    for stage in STAGES:
        lines = [json.loads(line) for line in (work / f"{stage}.jsonl").read_text().splitlines()]
        assert lines, stage
        assert f"{stage} {lines[-1]['step']}/" in first.stdout
    scores = [line for line in lines if "all" in line]
    assert scores
    assert 0 <= scores[-1]["all"] <= 1
    assert (work / "curves.png").stat().st_size > 0
    assert list(work.glob("sheet-*.png"))

    # With every stage at its end there is nothing to do but to write the same again.
    again = run(work, tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / CHECKSUMS).read_text() == (out / CHECKSUMS).read_text()

    [picture] = make_pictures(load(out), ["a red house"], 128, 128, steps=2)
    assert picture.shape == (128, 128, 3)
