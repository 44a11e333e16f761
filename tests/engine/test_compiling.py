"""Compiled transformers: the same latents as eager ones, at any degree, and never mixed up with them."""

import pytest
import torch
from click.testing import CliRunner
from drawing import draw
from torch._dynamo.utils import counters

from bench.crew import Crew, Worker
from executor import command
from executor.calibration import Calibration
from executor.image import ImageSpec
from executor.latents import pack, unpack
from executor.pipelines import load
from executor.profile_cache import Key
from executor.registration import model_info

# Attention has other lengths, and the second member no text, at degree 2.
IMAGES = [
    ImageSpec(
        "a red house under a yellow sun", *size, steps=3, seed=11, guidance=3.0, negative_prompt="a boat"
    )
    for size in ((112, 144), (48, 80))
]


def draw_compiled(worker: Worker, folder: str, image: ImageSpec, slots: list[int], meeting: str):
    """The final state, and how many graphs were compiled so far."""
    key = (folder, "compiled")
    if key not in worker._pipelines:
        torch.set_num_threads(1)
        worker._pipelines[key] = load(folder, compile_mode="default")
    state = draw(worker._pipelines[key], image, worker.group(1, slots, meeting))
    return pack(state), counters["stats"]["unique_graphs"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["4 heads", "sd3"])
def test_compiled_latents_are_those_of_eager_at_degrees_1_and_2(crew: Crew, models, group, name):
    eager = load(models[name])
    for image in IMAGES:
        expected = draw(eager, image, group).latent
        for slots in ([0], [0, 1]):
            meeting = f"compiled {name} {image.width} {len(slots)}"
            for packed, graphs in crew.all(slots, draw_compiled, models[name], image, slots, meeting):
                assert graphs > 0, "nothing was compiled"
                assert (unpack(packed).latent - expected).abs().max() <= 1e-4


def test_compiled_and_eager_are_never_mixed(models, tmp_path, monkeypatch):
    monkeypatch.setattr("executor.compiling.check", lambda *_: None)
    pipelines = [load(models["4 heads"], compile_mode=mode) for mode in (None, "default", "max-autotune")]
    assert len({Key.of(pipeline).digest for pipeline in pipelines}) == 3
    assert len({model_info(pipeline, tmp_path).fingerprint for pipeline in pipelines}) == 3


@pytest.mark.parametrize("known", [False, True])
def test_all_measured_sizes_are_stepped_before_the_start_is_over(models, group, tmp_path, monkeypatch, known):
    """Also where the times come from disk and nothing is measured."""
    monkeypatch.setattr("executor.compiling.check", lambda *_: None)
    monkeypatch.setattr("executor.compiling.compile_blocks", lambda *_: None)
    sizes, batches = [(48, 80), (64, 64)], [1, 2]
    if known:
        Calibration(load(models["4 heads"], compile_mode="default"), tmp_path).prepare(group, sizes, batches)
    pipeline, stepped = load(models["4 heads"], compile_mode="default"), set()
    step = pipeline.step
    pipeline.step = lambda states, group: (
        stepped.add((states[0].image.width, states[0].image.height, len(states))),
        step(states, group),
    )[1]
    Calibration(pipeline, tmp_path).prepare(group, sizes, batches)
    assert stepped >= {(*size, batch) for size in sizes for batch in batches}


def test_without_a_compiler_it_does_not_start(models, monkeypatch):
    monkeypatch.setattr("tetriserve.logs.setup", lambda *_: None)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/no/such/compiler"))
    with pytest.raises(ValueError, match=r"--compile: .*needs a C\+\+ compiler"):
        load(models["4 heads"], compile_mode="default")
    for words in (["--compile", "--model", models["4 heads"]], ["profile", "--compile", "default"]):
        result = CliRunner().invoke(command.main, words)
        assert result.exit_code == 1
        assert "--compile: torch.compile needs a C++ compiler" in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compile=fast"], "'fast' is not one of 'default', 'reduce-overhead', 'max-autotune'"),
        (["--compile", "--lora-dir", "somewhere"], "--compile: not together with --lora-dir"),
    ],
)
def test_what_cannot_be_compiled_is_refused(words, message):
    result = CliRunner().invoke(command.main, words)
    assert result.exit_code in (1, 2)
    assert message in result.output
