"""Families that `--model` names, from the client to the picture: real processes, both precisions."""

import math

import numpy as np
import pytest
from PIL import Image

from tetriserve import Client, InvalidArgument
from tetriserve.local import LocalCluster

PROMPT = "a red house under a yellow sun"


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.timeout(240)  # executors load torch
@pytest.mark.parametrize(
    ("name", "family", "dtype", "kernel", "negative"),
    [
        pytest.param("4 heads", "flux", "bfloat16", "sdpa", False, marks=pytest.mark.long),
        ("sd3.5", "sd3", "bfloat16", "sdpa", True),
        pytest.param("pixart", "pixart", "float32", "math", True, marks=pytest.mark.long),
    ],
)
def test_a_family_is_served(models, tmp_path, name, family, dtype, kernel, negative):
    options = ["--model", models[name], "--dtype", dtype, "--attention", kernel]
    options += ["--sizes", "64x64", "--cache-dir", str(tmp_path / "cache")]
    with (
        LocalCluster(tmp_path / "cluster", 2, policy="fixed:1", options=options) as cluster,
        Client(cluster.target) as client,
    ):
        cluster.wait_ready(timeout=150)
        model = client.cluster().model
        assert model.family == family

        def draw(negative_prompt: str = "", guidance: float | None = None):
            id = client.submit(
                PROMPT, "144x112", steps=5, seed=7, guidance=guidance, negative_prompt=negative_prompt
            ).id
            picture = client.result(id, timeout=100)
            return picture, client.get(id)

        plain, _ = draw()
        assert plain.size == (144, 112)
        avoiding, status = draw("a dark boat")
        assert (psnr(plain, avoiding) < math.inf) == negative
        ignored = [warning for warning in status.warnings if "the negative prompt is ignored" in warning]
        assert bool(ignored) != negative
        if negative:
            unguided, status = draw("a dark boat", guidance=1.0)
            assert "the negative prompt is ignored: guidance is not above 1" in status.warnings
            assert psnr(unguided, plain) < math.inf
        client.set_policy("fixed:2")
        shared, status = draw("a dark boat")
        assert status.degrees == (2,)
        assert psnr(shared, avoiding) >= 50

        for wrong, field in (({"size": "100x112"}, "width"), ({"steps": 1001}, "steps")):
            with pytest.raises(InvalidArgument, match=field):
                client.submit(PROMPT, **{"size": "112x112", **wrong})
        assert client.cluster().outstanding == 0
