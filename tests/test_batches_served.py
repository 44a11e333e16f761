"""Batches as users meet them: a real scheduler, two real executors, and pictures that do not show it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tetriserve import Client, Stage
from tetriserve.local import LocalCluster

PROMPTS = ["a red house", "a boat at night", "", "a tree under a yellow sun", "a blue car", "a house"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    from model.layout import write_checkpoint

    folder = tmp_path_factory.mktemp("cluster")
    shape = {"double_blocks": 1, "single_blocks": 1, "text_width": 32, "vae_channels": (8, 8, 8, 8)}
    model = write_checkpoint(folder / "model", heads=4, head_dim=16, **shape)
    # A profile by which batches pay, however busy this machine is; degree 2 is not worth using.
    profile = folder / "profile.csv"
    lines = ["width,height,degree,batch,seconds_per_step,text_encode_s,vae_decode_s"]
    lines += [f"128,128,1,{n},{0.02 + 0.002 * n},0.01,0.01" for n in (1, 2, 4)]
    lines += [f"128,128,2,{n},{0.03 + 0.002 * n},," for n in (1, 2, 4)]
    profile.write_text("\n".join(lines) + "\n")
    options = ["--model", str(model), "--sizes", "128x128", "--cache-dir", str(folder / "cache")]
    with LocalCluster(
        folder, 2, policy="tetriserve", options=options, scheduler_options=["--profile", str(profile)]
    ) as cluster:
        cluster.wait_ready(timeout=150)
        yield cluster


@pytest.mark.timeout(300)
def test_requests_share_steps_and_draw_what_they_draw_alone(cluster: LocalCluster) -> None:
    with Client(cluster.target) as client:

        def submit(number: int, tag: str) -> str:
            # Of different lengths, so that they are at different steps.
            steps, guidance = 12 + 5 * number, 1.0 + number
            request = client.submit(
                PROMPTS[number], "128x128", steps=steps, seed=number, guidance=guidance, id=f"{tag}-{number}"
            )
            return request.id

        together = [submit(number, "together") for number in range(len(PROMPTS))]
        pictures = [np.asarray(client.result(id, timeout=100)).astype(int) for id in together]
        spans = [span for id in together for span in client.get(id).spans]
        assert max(span.batch for span in spans) >= 2
        assert all(span.batch == 1 for span in spans if span.stage is not Stage.DENOISING)
        for id in together:
            status = client.get(id)
            steps = [s for span in status.spans for s in range(span.first_step, span.first_step + span.steps)]
            assert sorted(steps) == list(range(status.request.image.steps))
        client.set_policy("fixed:1")
        for number, picture in enumerate(pictures):
            id = submit(number, "alone")
            alone = np.asarray(client.result(id, timeout=100)).astype(int)
            assert {span.batch for span in client.get(id).spans} == {1}
            assert np.abs(picture - alone).max() <= 1


@pytest.mark.timeout(120)
def test_one_of_a_batch_can_be_cancelled(cluster: LocalCluster, tmp_path: Path) -> None:
    from tetriserve.timeline import courses, draw

    with Client(cluster.target) as client:
        client.set_policy("tetriserve")
        ids = [client.submit(prompt, "128x128", steps=60, seed=5).id for prompt in PROMPTS]
        # Wait until one runs in a batch, and cancel that.
        victim = None
        while victim is None:
            open_ids = [id for id in ids if not client.get(id).ended]
            assert open_ids, "no batch was made"
            victim = next((id for id in open_ids if any(s.batch > 1 for s in client.get(id).spans)), None)
        assert client.cancel(victim).stage is Stage.CANCELLED
        others = [client.wait(id, timeout=60) for id in ids if id != victim]
        assert {status.stage for status in others} == {Stage.DONE}
        draw(courses([client.get(id) for id in ids]), tmp_path / "batches.png")
        assert client.cluster().outstanding == 0
