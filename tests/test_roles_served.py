"""Executors with roles as real processes: one encodes and decodes, two denoise."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tetriserve import Client, Unavailable
from tetriserve.local import LocalCluster

PROMPT = "a red house under a yellow sun"
ENDS, STEPS = ("--roles", "encode,decode"), ("--roles", "denoise")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model.layout import write_checkpoint

    shape = {"double_blocks": 1, "single_blocks": 1, "text_width": 32, "vae_channels": (8, 8, 8, 8)}
    return write_checkpoint(tmp_path_factory.mktemp("model") / "small", heads=4, head_dim=16, **shape)


@pytest.fixture(scope="module")
def cluster(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    options = ["--model", str(model), "--sizes", "128x128", "--cache-dir", str(folder / "cache")]
    options += ["--log-level", "debug"]
    with LocalCluster(folder, 3, policy="edf", options=options, each=(ENDS, STEPS, STEPS)) as cluster:
        cluster.wait_ready(timeout=150)
        yield cluster


@pytest.mark.timeout(300)
def test_each_stage_runs_where_its_role_is_and_the_picture_is_that_of_one_executor(
    cluster: LocalCluster, model: Path
) -> None:
    from executor.groups import Groups, Member
    from executor.image import ImageSpec
    from executor.pipelines import load

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
    pipeline, groups = load(model), Groups()
    image = ImageSpec(PROMPT, 144, 112, 4, 5)
    state, alone = (
        pipeline.start(image, pipeline.encode(image)),
        groups.get(1, [Member(0, groups.store_address)], "a"),
    )
    while not state.done:
        (state,) = pipeline.step([state], alone)
    groups.close()
    expected = np.asarray(pipeline.decode(state)).astype(int)
    for picture in drawn.values():
        assert np.abs(picture - expected).max() <= 1

    # Four requests with one prompt: the text encoders ran once.
    (ends,) = [c for c in cluster.children if "texts_encoded" in c.log.read_text()]
    last = [line for line in ends.log.read_text().splitlines() if "texts_encoded" in line][-1]
    assert "texts_encoded=1" in last
    assert "texts_known=3" in last


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
            [sys.executable, "-m", "tetriserve.cli", "cluster"],
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
