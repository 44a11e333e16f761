"""`python -m bench.engine`: each part runs, at tiny sizes, and its files say what was measured on what."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.engine.__main__ import main
from bench.engine.figures import Figure, markdown, provenance
from bench.engine.in_service import _gaps
from bench.engine.random_models import MODELS, build
from scheduler.profile import load


def run(folder: Path, *words: object) -> tuple[dict, str]:
    """Its JSON and its Markdown."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.engine", *map(str, words), "-o", str(folder), "--name", "trial"],
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "trial.json").read_text())
    assert found["provenance"]["versions"]["torch"] == torch.__version__
    assert len(found["provenance"]["load"]) == 3
    assert all(math.isfinite(figure["value"]) for figure in found["figures"])
    return found, (folder / "trial.md").read_text()


def test_what_is_for_a_gpu_runs_on_a_cpu_at_tiny_sizes(tmp_path: Path):
    words = ["--part", "one-rank", "--part", "models", "--part", "hand-over", "--models", "tiny"]
    sizes = ["--sizes", "64x64,112x144", "--batches", "1,2", "--degrees", "1,2,4", "--repeats", "2"]
    found, text = run(tmp_path, *words, *sizes)
    whats = {(figure["what"], figure["size"]) for figure in found["figures"] if figure["part"] == "tiny"}
    for size in ("64x64", "112x144"):
        assert ("decode", size) in whats
        for degree in (1, 2, 4):
            for batch in (1, 2):
                assert (f"step, degree {degree}, batch {batch}", size) in whats
    assert "## tiny" in text
    assert "| pack a checkpoint | 2048x2048 |" in text
    # The same as a profile, which plans can be made with.
    profile = load(tmp_path / "tiny.csv")
    assert profile.max_degree == 4
    assert {e.basis for e in profile.entries if e.degree > 1} == {"derived"}
    assert all("random weights in the size of tiny" in e.source for e in profile.entries)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_steps_in_the_service_are_held_against_the_bare_loop_of_the_same_thread(tmp_path: Path):
    found, _ = run(tmp_path, "--part", "overhead", "--sizes", "64x64", "--requests", 1, "--steps", 4)
    values = {figure["what"]: figure["value"] for figure in found["figures"]}
    bare, ours = values["diffusers, a step"], values["in the service, a step with all around it"]
    assert bare > 0
    assert ours > values["outside the pipeline, a step"] > 0
    assert values["the same, CPU time of the thread"] < ours


def line(
    order: int,
    begin: float,
    meeting: float | None,
    calls: list,
    degree: int,
    ahead: int = 1,
    fetch: list[float] | None = None,
) -> dict:
    end = calls[-1][1]
    cpu = sum(b - a for a, b in calls)
    return {
        "order": order,
        "requests": ["r"],
        "begin": begin,
        "end": end,
        "calls": calls,
        "degree": degree,
        "ahead": ahead,
        "cpu": cpu + 0.25,
        "computed": cpu,
        "meeting": meeting and [meeting, meeting],
        "fetch": fetch,
    }


def test_gaps_are_told_apart():
    one = [
        line(1, 0.0, None, [[0.0, 4.0], [4.5, 8.5]], 1),  # half a second between its steps
        line(2, 8.6, None, [[9.5, 10.5]], 1),  # a second after the one before
        line(3, 10.5, 10.5, [[13.0, 14.0]], 2),  # the other member comes at 12.5: 2 s late
        line(4, 14.0, None, [[14.0, 15.0]], 1, ahead=0),
        line(5, 18.0, None, [[18.0, 19.0]], 1),  # there was no order for 3 s
    ]
    other = [line(3, 12.5, 12.5, [[13.0, 14.0]], 2)]
    values = {figure.what: figure.value for figure in _gaps([one, other])}
    assert values["computing"] == 13.0
    assert values["between steps of an order"] == pytest.approx(100 * 0.5 / 13)
    assert values["between orders"] == pytest.approx(100 * (1.0 + 0.5 + 0.0) / 13)
    assert values["the same, CPU time of the thread"] == pytest.approx(100 * 6 * 0.25 / 13)
    assert values["waiting for states and members that are not ready"] == pytest.approx(100 * 2.0 / 13)
    assert values["without an order"] == pytest.approx(100 * 3.0 / 13)
    assert values["an order of two begins, another degree than before"] == pytest.approx(500)


def test_waiting_for_a_state_that_is_still_computed_is_no_gap():
    one = [
        line(1, 0.0, None, [[0.0, 4.0]], 1),
        line(3, 4.0, None, [[7.0, 8.0]], 1, fetch=[4.5, 6.5]),  # the other has computed it at 6.0
        line(4, 8.0, None, [[9.0, 10.0]], 1, fetch=[8.25, 8.75]),  # it was there
    ]
    other = [line(2, 2.0, None, [[2.0, 6.0]], 1)]
    values = {figure.what: figure.value for figure in _gaps([one, other])}
    assert values["between orders"] == pytest.approx(100 * (3.0 - 1.5 + 1.0) / 10)
    assert values["waiting for states and members that are not ready"] == pytest.approx(100 * 1.5 / 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("words", [[], ["--part", "one-rank"], ["--part", "overhead"]])
def test_a_gpu_that_is_not_there_is_named(words: list[str]):
    result = CliRunner().invoke(main, ["--device", "cuda:0", *words])
    assert result.exit_code == 1
    assert "--device: there is no cuda:0; torch sees 0 CUDA devices" in result.output


@pytest.mark.parametrize(("name", "parameters"), [("flux1-dev", 11.9e9), ("sd3-medium", 2.03e9)])
def test_random_models_are_as_large_as_the_real_ones(name: str, parameters: float):
    # On the meta device, which holds shapes and no weights.
    pipeline = build(name, "meta", torch.bfloat16)
    found = sum(p.numel() for p in pipeline._parts.transformer.parameters())
    assert found == pytest.approx(parameters, rel=0.01)
    assert pipeline.heads == 24
    assert pipeline.limits.max_tokens == 16384
    assert torch.get_default_dtype() == torch.float32
    assert name in MODELS


def test_the_page_has_the_figures_and_where_they_are_from():
    figures = [Figure("A", "x", 0.012345, "ms", "256x256", "why"), Figure("B", "y", 123.4, "MiB")]
    text = markdown(figures, provenance("cpu"))
    assert "| x | 256x256 | 0.01235 ms | why |" in text
    assert "| y |  | 123.4 MiB |  |" in text
    assert "torch 2" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--device", "tpu"], "--device: expected cpu or cuda:N"), (["--part", "all"], "'all' is not one of")],
)
def test_bad_words_are_named(words: list[str], says: str):
    result = CliRunner().invoke(main, words)
    assert result.exit_code in (1, 2)
    assert says in result.output
