"""Executors with roles as real processes: one encodes and decodes, two denoise."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from executor.image import ImageSpec
from tetriserve import Client, InvalidArgument, Unavailable
from tetriserve.local import LocalCluster

PROMPT = "a red house under a yellow sun"
ENDS, STEPS = ("--roles", "encode,decode"), ("--roles", "denoise")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model.layout import write_checkpoint

    shape = {"double_blocks": 1, "single_blocks": 1, "text_width": 32, "vae_channels": (8, 8, 8, 8)}
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", heads=4, head_dim=16, **shape)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One, random, for the attention of the first block."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapters")
    save_file(
        {
            f"transformer.transformer_blocks.0.attn.{layer}.lora_{side}.weight": torch.randn(*shape)
            for layer in ("to_q", "to_v")
            for side, shape in (("A", (4, 64)), ("B", (64, 4)))
        },
        folder / "sketch.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def cluster(model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    options = ["--model", str(model), "--sizes", "128x128", "--cache-dir", str(folder / "cache")]
    options += ["--log-level", "debug", "--lora-dir", str(adapters), "--cache", "2"]
    with LocalCluster(folder, 3, policy="edf", options=options, each=(ENDS, STEPS, STEPS)) as cluster:
        cluster.wait_ready(timeout=150)
        yield cluster


def draw_alone(model: Path, image: ImageSpec, adapters: Path | None = None) -> np.ndarray:
    """The picture that this process makes of it."""
    from executor.groups import Groups, Member
    from executor.pipelines import load

    pipeline, groups = load(model), Groups()
    pipeline.step_cache = 2
    if adapters:
        pipeline.load_adapters(adapters, 1 << 30)
    state = pipeline.start(image, pipeline.encode(image))
    alone = groups.get(1, [Member(0, groups.store_address)], "alone")
    while not state.done:
        (state,) = pipeline.step([state], alone)
    groups.close()
    return np.asarray(pipeline.decode(state)).astype(int)


@pytest.mark.timeout(300)
def test_a_lora_is_drawn_with_by_name(cluster: LocalCluster, model: Path, adapters: Path) -> None:
    image = ImageSpec(PROMPT, 128, 96, 3, 9)
    with_it = dataclasses.replace(image, lora="sketch", lora_scale=0.5)
    with Client(cluster.target) as client:
        assert client.cluster().model.loras == ("sketch",)
        with pytest.raises(InvalidArgument, match="lora: 'oil' is not known; there are sketch"):
            client.submit(PROMPT, "128x96", lora="oil")
        ids = [
            client.submit(PROMPT, "128x96", steps=3, seed=9, lora=lora).id
            for lora in ("sketch:0.5", None, "sketch:0.5")
        ]
        drawn = [np.asarray(client.result(id, timeout=60)).astype(int) for id in ids]
    bare, styled = draw_alone(model, image), draw_alone(model, with_it, adapters)
    assert np.abs(bare - styled).max() > 5
    for picture, expected in zip(drawn, (styled, bare, styled), strict=True):
        assert np.abs(picture - expected).max() <= 1


@pytest.mark.timeout(300)
def test_each_stage_runs_where_its_role_is_and_the_picture_is_that_of_one_executor(
    cluster: LocalCluster, model: Path
) -> None:
    with Client(cluster.target) as client:
        roles = {e.slot: {role.value for role in e.roles} for e in client.cluster().executors}
        assert sorted(map(sorted, roles.values())) == [["decoding", "encoding"], ["denoising"], ["denoising"]]
        assert client.cluster().warnings == ()
        drawn = {}
        for policy in ("edf", "fixed:2", "fixed:1", "tetriserve"):
            client.set_policy(policy)
            request = client.submit(PROMPT, "144x112", steps=4, seed=5, deadline=60)
            drawn[policy] = np.asarray(client.result(request.id, timeout=60)).astype(int)
            for span in client.get(request.id).spans:
                assert all(span.stage.value in roles[slot] for slot in span.slots)
    expected = draw_alone(model, ImageSpec(PROMPT, 144, 112, 4, 5))
    for picture in drawn.values():
        assert np.abs(picture - expected).max() <= 1

    # All requests have one prompt: the text encoders ran once.
    (ends,) = [c for c in cluster.children if "texts_encoded" in c.log.read_text()]
    last = [line for line in ends.log.read_text().splitlines() if "texts_encoded" in line][-1]
    assert "texts_encoded=1" in last
    assert "texts_known=6" in last


@pytest.mark.timeout(120)
def test_what_nobody_can_do_is_said_and_waits_until_somebody_can(cluster: LocalCluster) -> None:
    """The one that encodes and decodes stops; another one takes its place."""
    with Client(cluster.target) as client:
        (slot,) = [e.slot for e in client.cluster().executors if len(e.roles) == 2]
        gone = next(c for c in cluster.children if "texts_encoded" in c.log.read_text())
        gone.process.terminate()
        gone.process.wait(30)
        warnings = client.cluster().warnings
        assert [w.split(":")[0] for w in warnings] == [
            "no executor can run encoding",
            "no executor can run decoding",
        ]
        with pytest.raises(Unavailable, match="no executor can run encoding"):
            client.quote("128x128")
        waiting = client.submit(PROMPT, "128x128", steps=2, seed=1)
        shown = subprocess.run(
            [sys.executable, "-m", "tetriserve", "cluster"],
            capture_output=True,
            text=True,
            env=os.environ | {"TETRISERVE_SCHEDULER": cluster.target, "COLUMNS": "200"},
        ).stdout
        assert "warning: no executor can run encoding: requests wait" in shown
        assert "denoising" in shown
        log = cluster.children[0].log.read_text()
        assert "no executor can run decoding: requests wait" in log

        words = ["--scheduler", cluster.target, *cluster.options, *ENDS]
        cluster._spawn("successor", ["-m", "executor", *words])
        cluster.children.remove(gone)
        assert client.result(waiting.id, timeout=80).size == (128, 128)
        assert client.cluster().warnings == ()
        assert slot in [e.slot for e in client.cluster().executors]


def test_roles_that_are_none_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "executor", "--roles", "encode,paint"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected some of encode,denoise,decode, not 'paint'" in done.stderr
