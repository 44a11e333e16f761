"""Measured profiles, and their cache on disk."""

import dataclasses
import json
import threading
from collections.abc import Iterator

import pytest

from bench.crew import Failed, Worker
from executor.group import Group
from executor.groups import Groups, Member
from executor.pipelines import Pipeline, load
from executor.profile_cache import Key, ProfileCache
from executor.profiler import Measurement, measure_decoding, measure_encoding, measure_steps

SIZES = [(64, 64), (112, 144)]
ROW = Measurement("step", 256, 256, 2, 1, 0.125, 0.01)
KEY = Key("model", "cpu", "torch.float32", 1, ("torch 2.13.0",))


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    groups = Groups()
    yield groups.get(1, [Member(0, groups.store_address)], "alone")
    groups.close()


@pytest.fixture(scope="module")
def pipeline(models) -> Pipeline:
    return load(models["4 heads"])


def shapes(rows: list[Measurement]) -> list[tuple]:
    return [(r.kind, r.width, r.height, r.degree, r.batch) for r in rows]


def test_every_stage_is_measured(pipeline, group):
    rows = measure_steps(pipeline, group, SIZES, batches=[1, 3], budget_s=0.05)
    rows += [measure_encoding(pipeline, 0.05), *measure_decoding(pipeline, SIZES, 0.05)]
    assert shapes(rows) == [
        ("step", 64, 64, 1, 1),
        ("step", 64, 64, 1, 3),
        ("step", 112, 144, 1, 1),
        ("step", 112, 144, 1, 3),
        ("encode", 0, 0, 1, 1),
        ("decode", 64, 64, 1, 1),
        ("decode", 112, 144, 1, 1),
    ]
    assert all(row.seconds > 0 and row.cv >= 0 for row in rows)


def profile(worker: Worker, folder: str, slots: list[int], meeting: str, sizes) -> list[Measurement]:
    return measure_steps(worker.pipeline(folder), worker.group(1, slots, meeting), sizes, budget_s=0.1)


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


@pytest.mark.parametrize("field", ["model", "device", "dtype", "threads", "versions"])
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
