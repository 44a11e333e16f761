"""The profile follows the machine, by degree, and only where the machine has moved."""

from dataclasses import replace

import pytest

from scheduler.pace import OUTLIER, Pace, Paces
from scheduler.profile import Profile, StepTime

BASE = Profile(
    [StepTime("step", side, side, k, 1, side / 1000 / k) for side in (256, 512) for k in (1, 2)]
    + [StepTime("decode", 512, 512, 1, 1, 0.5), StepTime("encode", 0, 0, 1, 1, 0.1)]
)


def test_a_machine_that_keeps_to_its_profile_changes_nothing():
    pace = Pace(BASE)
    for n in range(200):
        assert not pace.step(512, 512, 1, 1, 0.512 * (1.02 if n % 2 else 0.98))
    assert pace.profile is BASE


def test_a_slower_machine_is_followed_at_every_size_of_that_degree():
    pace = Pace(BASE)
    for _ in range(100):
        pace.step(512, 512, 2, 1, 2 * BASE.step(512, 512, 2))
        pace.decode(512, 512, 1.5)
    assert pace.profile.step(256, 256, 2) == pytest.approx(2 * BASE.step(256, 256, 2), rel=0.06)
    assert pace.profile.step(256, 256, 1) == BASE.step(256, 256, 1)
    assert pace.profile.decode(512, 512) == pytest.approx(1.5, rel=0.06)
    assert pace.profile.encode() == BASE.encode()
    for _ in range(100):
        pace.step(512, 512, 2, 1, BASE.step(512, 512, 2))
    assert pace.profile.step(256, 256, 2) == pytest.approx(BASE.step(256, 256, 2), rel=0.06)


def test_one_hiccup_moves_little():
    pace = Pace(BASE)
    pace.step(512, 512, 1, 1, 1000.0)
    assert pace.profile.step(512, 512, 1) <= BASE.step(512, 512, 1) * OUTLIER**0.1 * 1.001


def test_new_entries_keep_the_pace():
    pace = Pace(BASE)
    for _ in range(100):
        pace.step(512, 512, 1, 1, 2 * BASE.step(512, 512, 1))
    pace.rebase(Profile([*BASE.entries, StepTime("step", 512, 512, 4, 1, 0.2)]))
    assert pace.profile.max_degree == 4
    assert pace.profile.step(512, 512, 1) == pytest.approx(2 * BASE.step(512, 512, 1), rel=0.06)


def test_every_node_has_a_pace_of_its_own():
    paces = Paces(BASE)
    for _ in range(100):
        paces.of("slow").step(512, 512, 1, 1, 2 * BASE.step(512, 512, 1))
        paces.of("usual").step(512, 512, 1, 1, BASE.step(512, 512, 1))
    assert set(paces.profiles) == {"slow"}
    assert paces.profiles["slow"].step(256, 256, 1) == pytest.approx(2 * BASE.step(256, 256, 1), rel=0.06)
    paces.rebase(Profile([*BASE.entries, StepTime("step", 512, 512, 4, 1, 0.2)]))
    assert set(paces.profiles) == {"slow"}


def test_what_a_node_has_measured_is_its_pace_until_it_is_observed():
    paces = Paces(BASE)

    def measured(factor: float) -> list[StepTime]:
        return [replace(entry, seconds=factor * entry.seconds) for entry in BASE.entries]

    # The first tells nothing: the profile may be a given one.
    assert not paces.joins("first", measured(0.5))
    assert not paces.joins("alike", measured(0.51))
    assert paces.joins("slow", measured(1.0))
    assert set(paces.profiles) == {"slow"}
    slow = paces.profiles["slow"]
    for degree in (1, 2):
        assert slow.step(512, 512, degree) == pytest.approx(2 * BASE.step(512, 512, degree))
    assert slow.encode() == pytest.approx(2 * BASE.encode())
    assert slow.decode(512, 512) == pytest.approx(2 * BASE.decode(512, 512))
    # It was measured while throttled, say.
    for _ in range(100):
        paces.of("slow").step(512, 512, 1, 1, BASE.step(512, 512, 1))
    assert paces.profiles["slow"].step(512, 512, 1) == pytest.approx(BASE.step(512, 512, 1), rel=0.06)
    assert not paces.joins("slow", measured(1.5))
