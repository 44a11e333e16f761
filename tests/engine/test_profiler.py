"""Measured profiles, and their cache on disk."""

import dataclasses
import json
import math
import threading
from collections.abc import Iterator

import pytest
import torch

from bench.crew import Failed, Worker
from executor.group import Group
from executor.groups import Groups, Member
from executor.image import ImageSpec
from executor.pipelines import Pipeline, load
from executor.profile_cache import Key, ProfileCache
from executor.profiler import (
    Effort,
    Link,
    Measurement,
    measure_decoding,
    measure_encoding,
    measure_shares,
    measure_steps,
)

QUICK = Effort(0.0, warm_up=1, fewest=3, most=3)
SIZES = [(64, 64), (112, 144)]
ROW = Measurement("step", 256, 256, 2, 1, 0.125, 0.01)
KEY = Key("model", "cpu", "torch.float32", 1, ("torch 2.13.0",))


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    groups = Groups()
    yield groups
    groups.close()


@pytest.fixture(scope="module")
def group(groups) -> Group:
    return groups.get(1, [Member(0, groups.store_address)], "alone")


@pytest.fixture(scope="module")
def pipeline(models) -> Pipeline:
    return load(models["4 heads"])


def shapes(rows: list[Measurement]) -> list[tuple]:
    return [(r.kind, r.width, r.height, r.degree, r.batch) for r in rows]


def test_every_stage_is_measured(pipeline, group):
    rows = measure_steps(pipeline, group, SIZES, [1, 3], QUICK)
    rows += [measure_encoding(pipeline, QUICK), *measure_decoding(pipeline, SIZES, QUICK)]
    assert shapes(rows) == [
        ("step", 64, 64, 1, 1),
        ("step", 64, 64, 1, 3),
        ("step", 112, 144, 1, 1),
        ("step", 112, 144, 1, 3),
        ("encode", 0, 0, 1, 1),
        ("decode", 64, 64, 1, 1),
        ("decode", 112, 144, 1, 1),
    ]
    assert all(row.seconds > 0 and row.cv >= 0 and row.repeats == 3 for row in rows)
    assert not any(row.derivation for row in rows)


def test_work_is_repeated_as_the_budget_allows():
    effort = Effort(budget_s=1.0, fewest=3, most=20)
    assert [effort.repeats(s) for s in (10.0, 0.2, 0.001)] == [3, 5, 20]


def profile(worker: Worker, folder: str, slots: list[int], meeting: str, sizes) -> list[Measurement]:
    return measure_steps(worker.pipeline(folder), worker.group(1, slots, meeting), sizes, effort=QUICK)


def test_the_members_of_a_group_measure_together(crew, models):
    for slots in ([0, 1], [3, 1, 0, 2]):
        for rows in crew.all(slots, profile, models["6 heads"], slots, "profile", SIZES):
            assert shapes(rows) == [("step", w, h, len(slots), 1) for w, h in SIZES]


def test_a_size_that_cannot_be_drawn_is_refused_by_all(crew, models):
    for answer in crew.all([0, 1], profile, models["6 heads"], [0, 1], "bad", [(100, 64)], check=False):
        assert isinstance(answer, Failed)
        assert "width must be a multiple of 16" in answer.text


def test_a_profile_comes_back_from_disk(tmp_path):
    cache = ProfileCache(tmp_path / "new" / "folder", KEY)
    assert cache.load() == []
    cache.add([ROW])
    other = dataclasses.replace(ROW, degree=4)
    cache.add([other, dataclasses.replace(ROW, seconds=0.25)])
    assert ProfileCache(tmp_path / "new" / "folder", KEY).load() == [
        dataclasses.replace(ROW, seconds=0.25),
        other,
    ]
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert json.loads(file.read_text())["key"]["device"] == "cpu"


@pytest.mark.parametrize("field", ["model", "device", "dtype", "threads", "versions", "attention"])
def test_another_key_is_another_profile(tmp_path, field):
    ProfileCache(tmp_path, KEY).add([ROW])
    changed = {"threads": 2, "versions": ("torch 2.14.0",)}.get(field, "other")
    assert ProfileCache(tmp_path, dataclasses.replace(KEY, **{field: changed})).load() == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff\xff", b'{"measurements": [{"kind": "step"}]}']
)
def test_a_corrupt_cache_is_measured_anew(tmp_path, content):
    cache = ProfileCache(tmp_path, KEY)
    cache.add([ROW])
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert cache.load() == []
    cache.add([ROW])
    assert cache.load() == [ROW]


def test_nobody_sees_half_a_file(tmp_path):
    cache = ProfileCache(tmp_path, KEY)
    cache.add([ROW])

    def write_often() -> None:
        for i in range(200):
            ProfileCache(tmp_path, KEY).add([dataclasses.replace(ROW, seconds=float(i))])

    writer = threading.Thread(target=write_often)
    writer.start()
    while writer.is_alive():
        assert len(cache.load()) == 1
    writer.join()
    assert cache.load()[0].seconds == 199
    assert len(list(tmp_path.iterdir())) == 1


def test_the_key_of_a_pipeline_names_what_matters(pipeline):
    key = Key.of(pipeline)
    assert key.model == pipeline.fingerprint
    assert (key.dtype, key.threads) == ("torch.float32", 1)
    assert key.device
    assert [v.split()[0] for v in key.versions] == ["torch", "diffusers", "xfuser"]
    assert key.digest == Key.of(pipeline).digest


@pytest.mark.parametrize("name", ["4 heads", "6 heads", "5 heads"])
@pytest.mark.parametrize("degree", [2, 4])
def test_a_stand_in_takes_part_in_as_many_collectives_as_a_member(crew, models, groups, name, degree):
    """Its tensors have the shapes of a member's: the picture's token count would not come out otherwise."""
    slots = list(range(degree))
    (size,) = SIZES[1:]
    real = crew.all(slots, count_collectives, models[name], slots, f"count {name} {degree}", size)
    pipeline = load(models[name])
    image = ImageSpec("a red house", *size, 4, seed=0)
    state = pipeline.start(image, pipeline.encode(image))
    for rank in slots:
        share = groups.stand_in(degree, rank)
        (after,) = pipeline.step([state], share)
        share.close()
        assert (share.traffic.collectives, share.traffic.nbytes) == real[rank]
        assert after.latent.shape == state.latent.shape


def count_collectives(
    worker: Worker, folder: str, slots: list[int], meeting: str, size: tuple[int, int]
) -> tuple[int, int]:
    """Collectives of a real step, and the bytes that this member sends in them."""
    pipeline, group = worker.pipeline(folder), worker.group(1, slots, meeting)
    image = ImageSpec("a red house", *size, 4, seed=0)
    state = pipeline.start(image, pipeline.encode(image))
    pipeline.step([state], group)
    with torch.profiler.profile(record_shapes=True) as seen:
        pipeline.step([state], group)
    split, degree, sent = group.split(pipeline.heads), group.degree, []
    for event in seen.events():
        size = 4 * math.prod(event.input_shapes[0]) if event.input_shapes else 0
        if event.name == "gloo:all_to_all":
            sent.append(size * (split.ulysses - 1) // split.ulysses)
        elif event.name == "gloo:all_gather":
            # The last one is that of the whole group's velocities, those before it go round the ring.
            last = event.input_shapes[0][-1] == state.latent.shape[-1]
            sent.append(size * ((degree if last else split.ring) - 1))
    return len(sent), sum(sent)


def test_a_share_is_derived_and_says_how(pipeline, groups):
    slow, fast = Link("a slow link", 1e6, 0.5), Link("no link", 1e15, 0.0)
    slow_rows = measure_shares(pipeline, groups, 4, SIZES, [1, 2], slow, QUICK)
    fast_rows = measure_shares(pipeline, groups, 4, SIZES, [1, 2], fast, QUICK)
    assert shapes(slow_rows) == [("step", w, h, 4, batch) for w, h in SIZES for batch in (1, 2)]
    for a, b in zip(slow_rows, fast_rows, strict=True):
        # 9 collectives: 2 in each of 4 blocks, and the gather at the end.
        assert a.seconds - b.seconds > 9 * 0.5
        assert "slowest of 4" in a.derivation
        assert "9 collectives x 500000 us" in a.derivation
