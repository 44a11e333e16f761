"""The timeline picture: from statuses to courses, and what of them is to be seen."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from tetriserve.timeline import Bar, Course, courses, draw
from tetriserve.types import ImageSpec, Request, RequestStatus, Span, Stage, Verdict

T0 = datetime(2026, 1, 2, tzinfo=UTC)

STATUS = RequestStatus(
    request=Request("a", ImageSpec("x", 768, 512, 12), deadline=4.0),
    stage=Stage.DONE,
    steps_done=12,
    slots=(),
    submitted_at=T0,
    deadline_at=T0 + timedelta(seconds=4),
    finished_at=T0 + timedelta(seconds=3),
    verdict=Verdict.ON_TIME,
    spans=(
        Span(Stage.ENCODING, (1,), 0, 0, T0, T0 + timedelta(seconds=0.5)),
        Span(Stage.DENOISING, (1,), 0, 2, T0 + timedelta(seconds=0.5), T0 + timedelta(seconds=1)),
        Span(Stage.DENOISING, (0, 1), 2, 10, T0 + timedelta(seconds=1), T0 + timedelta(seconds=2)),
        Span(Stage.DECODING, (0,), 0, 0, T0 + timedelta(seconds=2), T0 + timedelta(seconds=3)),
    ),
)


def words(path: Path) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text()))


@pytest.fixture(autouse=True)
def _text_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def test_statuses_become_courses_on_one_clock() -> None:
    later = replace(
        STATUS,
        submitted_at=T0 + timedelta(seconds=1),
        stage=Stage.DENOISING,
        finished_at=None,
        deadline_at=None,
        verdict=Verdict.OPEN,
        spans=(Span(Stage.DENOISING, (2,), 0, 2, T0 + timedelta(seconds=2), None),),
    )
    first, second = courses([later, STATUS])
    assert (first.arrived, first.deadline, first.finished, first.verdict) == (0, 4, 3, Verdict.ON_TIME)
    assert first.label == "768x512, 12 steps"
    assert first.bars[2] == Bar(1.0, 2.0, (0, 1), Stage.DENOISING)
    assert first.degrees == "1>2"
    assert (second.arrived, second.deadline, second.finished) == (1, None, None)
    assert second.bars == (Bar(2.0, 3.0, (2,), Stage.DENOISING),)  # up to the last known moment
    assert courses([]) == []


def test_the_picture_says_degree_deadline_and_outcome(tmp_path: Path) -> None:
    late = replace(
        STATUS,
        finished_at=T0 + timedelta(seconds=5),
        verdict=Verdict.LATE,
        submitted_at=T0 + timedelta(seconds=1),
    )
    path = tmp_path / "timeline.svg"
    draw(courses([STATUS, late]), path)
    seen = words(path)
    assert "2 requests on 2 GPUs, 1 of 2 ended on time" in seen
    assert "GPU 0" in seen
    assert "GPU 2" not in seen
    assert "×2" in seen
    assert "768x512, 12 steps   #1" in seen
    assert "3.0s, degree 1&gt;2, 1.0s early" in seen
    assert "4.0s, degree 1&gt;2, 1.0s late" in seen


def test_a_group_is_as_high_as_it_is_wide(tmp_path: Path) -> None:
    """Measured on the picture: the height of the only bar of degree 1, 2, 4 and of two separate slots."""

    def height(slots: tuple[int, ...]) -> int:
        path = tmp_path / "one.png"
        course = Course("x", 0.0, (Bar(0.0, 10.0, slots, Stage.DENOISING),), finished=10.0)
        draw([course], path, gpus=4)
        picture = Image.open(path).convert("HSV")
        column = [picture.getpixel((picture.width // 3, y)) for y in range(picture.height * 3 // 4)]
        return sum(saturation > 80 for _, saturation, _ in column)  # type: ignore[misc]

    one = height((2,))
    assert one > 20
    assert height((0, 1)) == pytest.approx(2.1 * one, abs=0.2 * one)
    assert height((0, 1, 2, 3)) == pytest.approx(4.3 * one, abs=0.3 * one)
    assert height((0, 3)) == pytest.approx(2.0 * one, abs=0.2 * one)


def test_requests_of_a_batch_lie_in_layers(tmp_path: Path) -> None:
    """Measured on the picture: both colours, one above the other, where two share their steps."""

    def colours(begin: float) -> list[int]:
        path = tmp_path / "two.png"
        bars = ((Bar(0.0, 10.0, (0, 1), Stage.DENOISING),), (Bar(begin, 10.0, (0, 1), Stage.DENOISING),))
        draw([Course(name, 0.0, b, finished=10.0) for name, b in zip("xy", bars, strict=True)], path, gpus=2)
        picture = Image.open(path).convert("HSV")
        # The GPUs' part of it, without words.
        column = [picture.getpixel((picture.width // 3, y)) for y in range(40, picture.height * 11 // 20)]
        hues = [hue for hue, saturation, _ in column if saturation > 80]  # type: ignore[misc]
        return [hues.count(hue) for hue in dict.fromkeys(hues)]

    layers = colours(0.0)
    assert len(layers) == 2
    assert layers[0] == pytest.approx(layers[1], abs=3)
    assert len(colours(6.0)) == 1, "at other times they do not share"


def test_a_window_cuts_out_a_part(tmp_path: Path) -> None:
    many = [
        Course(f"r{i}", float(i), (Bar(i + 0.1, i + 0.9, (i % 8,), Stage.DENOISING),), finished=i + 0.9)
        for i in range(200)
    ]
    path = tmp_path / "timeline.svg"
    draw(many, path)
    assert "r50 " not in words(path)  # 200 rows would be unreadable
    draw(many, path, window=(50, 60), title="ten seconds")
    seen = words(path)
    assert "r50 " in seen
    assert "r49 " not in seen
    assert "r60 " not in seen
    assert "ten seconds" in seen


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no request has run yet"):
        draw([Course("waiting", 0.0, ())], tmp_path / "timeline.png")
    assert not any(tmp_path.iterdir())
