"""Interpolation keeps to what was measured, and wider degrees are offered only where they are faster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.profile import Curve, Profile, StepTime, load, save

ENTRIES = [
    StepTime("encode", 0, 0, 1, 1, 0.02),
    StepTime("decode", 512, 512, 1, 1, 0.1),
    StepTime("decode", 1024, 1024, 1, 1, 0.4),
    *(StepTime("step", 256, 256, k, 1, 0.03) for k in (1, 2)),
    StepTime("step", 1024, 1024, 1, 1, 0.4),
    StepTime("step", 1024, 1024, 2, 1, 0.25),
    StepTime("step", 1024, 1024, 8, 1, 0.1),
    StepTime("step", 1024, 1024, 1, 4, 1.2),
]
PROFILE = Profile(ENTRIES)


def test_what_was_measured_is_given_back():
    for e in ENTRIES:
        if e.kind == "step":
            assert PROFILE.step(e.width, e.height, e.degree, e.batch) == pytest.approx(e.seconds)
    assert PROFILE.encode() == 0.02
    assert PROFILE.decode(512, 512) == pytest.approx(0.1)


def test_only_faster_degrees_are_worth_using():
    assert PROFILE.degrees(256, 256) == (1, 4, 8)
    assert PROFILE.degrees(1024, 1024) == (1, 2, 4, 8)
    assert Profile(ENTRIES[:5]).degrees(256, 256) == (1,)
    assert PROFILE.limited(2).degrees(1024, 1024) == (1, 2)


def test_a_degree_between_two_measured_ones_lies_between_them():
    assert PROFILE.step(1024, 1024, 8) < PROFILE.step(1024, 1024, 4) < PROFILE.step(1024, 1024, 2)
    with pytest.raises(ValueError, match="outside the profile"):
        PROFILE.step(1024, 1024, 16)


def test_batches_never_measured_lie_on_a_line_between_those_that_were():
    assert PROFILE.step(1024, 1024, 1, 2) == pytest.approx(0.4 + (1.2 - 0.4) / 3)
    assert PROFILE.step(1024, 1024, 1, 8) == pytest.approx(2 * 1.2)
    # At other degrees they gain as much as at degree 1.
    assert PROFILE.step(1024, 1024, 2, 4) == pytest.approx(0.25 * 3)
    alone = Profile([StepTime("step", 256, 256, k, 1, 0.03) for k in (1, 2)])
    assert alone.step(256, 256, 2, 3) == pytest.approx(0.09)


def test_no_batch_is_larger_than_those_that_were_timed_at_that_size_or_a_larger_one():
    assert PROFILE.max_batch(256, 256) == PROFILE.max_batch(1024, 1024) == 4
    assert PROFILE.max_batch(1040, 1024) == 1
    more = Profile([*ENTRIES, StepTime("step", 512, 512, 1, 8, 0.9)])
    assert [more.max_batch(side, side) for side in (256, 512, 1024)] == [8, 8, 4]


@given(st.integers(4, 128), st.integers(4, 128), st.sampled_from([1, 2, 4, 8]))
def test_larger_pictures_never_take_less_time(across, down, degree):
    smaller = PROFILE.step(16 * across, 16 * down, degree)
    assert smaller <= PROFILE.step(16 * (across + 1), 16 * down, degree) * (1 + 1e-9)
    assert smaller == PROFILE.step(16 * down, 16 * across, degree)


def test_factors_scale_steps_by_degree():
    scaled = PROFILE.scaled({2: 3.0}, decode=2.0)
    assert scaled.step(1024, 1024, 2) == pytest.approx(0.75)
    assert scaled.step(1024, 1024, 1) == pytest.approx(0.4)
    assert scaled.decode(512, 512) == pytest.approx(0.2)


def test_of_shapes_with_as_many_tokens_the_slower_counts():
    profile = Profile([StepTime("step", 256, 1024, 1, 1, 0.2), StepTime("step", 512, 512, 1, 1, 0.1)])
    assert profile.step(512, 512) == pytest.approx(0.2)


def test_a_single_point_grows_with_the_picture():
    assert Curve([(256, 1.0)])(1024) == pytest.approx(4.0)


def test_a_file_gives_back_what_was_saved(tmp_path):
    save(PROFILE, tmp_path / "profile.csv")
    assert load(tmp_path / "profile.csv").entries == PROFILE.entries


def test_a_plain_file_is_read_too(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text(
        "width,height,degree,seconds_per_step,text_encode_s,vae_decode_s\n"
        "1024,1024,1,0.4,0.05,0.3\n1024,1024,2,0.25,,\n"
    )
    profile = load(path)
    assert profile.step(1024, 1024, 2) == pytest.approx(0.25)
    assert (profile.encode(), profile.decode(1024, 1024)) == (0.05, pytest.approx(0.3))
    assert {e.basis for e in profile.entries} == {"published"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"1024,1024,1,fast\n", ", line 2: seconds_per_step is a number, not 'fast'"),
        (b"1024,1024,1,-1\n", ", line 2: step: seconds are positive and finite, not -1"),
        (b"1024,1024,1,0.5\n1024,0,1,1\n", ", line 3: height is at least 1, not 0"),
        (b"1" + b"0" * 400 + b",1024,1,1\n", ", line 2: width is at most 4294967295"),
        (
            b"1024,1024,1" + b"0" * 5000 + b",1\n",
            f", line 2: degree is a whole number, not '1{'0' * 11}...{'0' * 13}'",
        ),
        (b"1024,1024,1.5,1\n", ", line 2: degree is a whole number, not '1.5'"),
        (b"1024,1024\n", ", line 2: degree is missing"),
        (b"1024,1024,1,0,5\n", ", line 2: there are more values than columns"),
        (b"1024,1024,2,1\n", ": a profile needs the time of a step at degree 1 and batch 1"),
        (b"", ": a profile needs the time of a step at degree 1 and batch 1"),
        (b"\x89PNG\r\n\x1a\n", ": a profile is a CSV file, this is none"),
        (b"1024,1024,1," + b"1" * 200_000, ": a profile is a CSV file, this is none"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, text, says):
    path = tmp_path / "wrong.csv"
    path.write_bytes(b"width,height,degree,seconds_per_step\n" + text)
    with pytest.raises(ValueError, match=r"wrong\.csv") as raised:
        load(path)
    assert str(raised.value) == f"{path}{says}"


def test_an_empty_file_and_an_unknown_kind_are_named(tmp_path):
    path = tmp_path / "wrong.csv"
    path.touch()
    with pytest.raises(ValueError, match=r"wrong.csv: a profile needs"):
        load(path)
    path.write_text("kind,width,height,degree,batch,seconds\nguess,1,1,1,1,1\n")
    with pytest.raises(
        ValueError, match=r"wrong.csv, line 2: kind is one of step, encode, decode, switch, layer, not"
    ):
        load(path)


def test_columns_that_are_missing_are_named(tmp_path):
    path = tmp_path / "wrong.csv"
    for header, missing in (
        ("width,height,degree", "seconds_per_step"),
        ("width,degree,seconds", "height, seconds_per_step"),
        ("width,height,seconds_per_step", "degree"),
        ("kind,width,height,degree,seconds", "batch"),
    ):
        path.write_text(f"{header}\n1,1,1,1,1\n")
        with pytest.raises(ValueError, match=r"wrong.csv, line 1: no column") as raised:
            load(path)
        assert str(raised.value).endswith(f"no column {missing}")


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("width,height,degree,seconds_per_step\n1024,1024,1,0.4\n", encoding="utf-8-sig")
    assert load(path).step(1024, 1024) == pytest.approx(0.4)
