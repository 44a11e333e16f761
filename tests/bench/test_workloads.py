"""Workloads are what they claim to be: shares, rates, deadlines, weights, and pairs by seed."""

import itertools
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from bench.workloads import BURST_RATE, Workload, base_deadline, mix

LONG = Workload(mix("uniform"), rate=60, duration=20_000)


def shares(workload: Workload) -> dict[int, float]:
    counts = Counter(arrival.submission.width for arrival in workload.arrivals())
    return {side: count / counts.total() for side, count in counts.items()}


def test_shares_of_the_mixes():
    assert shares(LONG) == pytest.approx(dict.fromkeys((256, 512, 1024, 2048), 0.25), abs=0.01)
    paper = {256: 0.167, 512: 0.175, 1024: 0.211, 2048: 0.447}
    assert shares(replace(LONG, kinds=mix("skewed"))) == pytest.approx(paper, abs=0.01)
    small = shares(replace(LONG, kinds=mix("small-heavy")))
    assert small[256] + small[512] == pytest.approx(0.7, abs=0.01)
    assert shares(replace(LONG, kinds=mix("only:512x256"))) == {512: 1.0}


@pytest.mark.parametrize("process", ["poisson", "burst"])
def test_mean_rate(process):
    arrivals = replace(LONG, process=process).arrivals()
    assert len(arrivals) == pytest.approx(20_000, rel=0.1)
    assert all(0 <= a.at <= b.at < 20_000 for a, b in itertools.pairwise(arrivals))


def test_bursts_are_burstier_than_poisson():
    def dispersion(process: str) -> float:
        counts = Counter(int(a.at / 10) for a in replace(LONG, process=process).arrivals())
        by_bin = [counts[i] for i in range(2000)]
        return statistics.variance(by_bin) / statistics.mean(by_bin)

    assert dispersion("poisson") == pytest.approx(1.0, abs=0.15)
    assert dispersion("burst") > BURST_RATE


def test_deadlines_follow_size_and_scale():
    for scale in (1.0, 1.5):
        for arrival in replace(LONG, duration=100, slo_scale=scale).arrivals():
            s = arrival.submission
            assert s.deadline_s == {256: 1.5, 512: 2.0, 1024: 3.0, 2048: 5.0}[s.width] * scale
    assert base_deadline(768, 512) == 3.0
    assert base_deadline(4096, 4096) == 5.0


def test_unrelated_deadlines_do_not_follow_size():
    arrivals = replace(LONG, deadlines="unrelated").arrivals()
    assert all(5.0 <= a.submission.deadline_s <= 20.0 for a in arrivals)
    means = [
        statistics.mean(a.submission.deadline_s for a in arrivals if a.submission.width == side)
        for side in (256, 2048)
    ]
    assert means[0] == pytest.approx(means[1], rel=0.05)


def test_tiers_of_weights():
    arrivals = replace(LONG, weights="tiers").arrivals()
    counts = Counter(a.submission.weight for a in arrivals)
    assert {w: n / counts.total() for w, n in counts.items()} == pytest.approx(
        {1.0: 0.6, 3.0: 0.3, 10.0: 0.1}, abs=0.02
    )
    assert {a.label for a in arrivals} == {"weight 1", "weight 3", "weight 10"}


def test_the_same_seed_differs_only_in_what_was_changed():
    one, other = (replace(LONG, duration=500, slo_scale=scale).arrivals() for scale in (1.0, 1.3))
    assert [(a.at, a.submission.width) for a in one] == [(a.at, a.submission.width) for a in other]
    assert replace(LONG, duration=500).arrivals() == replace(LONG, duration=500).arrivals()
    assert replace(LONG, duration=500, seed=1).arrivals() != replace(LONG, duration=500).arrivals()


def test_a_number_of_requests_and_given_instants():
    assert len(replace(LONG, requests=300, duration=1).arrivals()) == 300
    assert [a.at for a in replace(LONG, times=(3.0, 1.0)).arrivals()] == [1.0, 3.0]


def test_a_mix_from_a_file(tmp_path):
    path = tmp_path / "mix.csv"
    path.write_text("width,height,share,steps,deadline_s,weight,class\n64,32,3,7,9.5,2,gold\n16,16,0,,,,\n")
    (arrival, *_) = Workload(mix(str(path)), slo_scale=2.0).arrivals()
    s = arrival.submission
    assert (s.width, s.height, s.steps, s.deadline_s, s.weight, arrival.label) == (
        64,
        32,
        7,
        19.0,
        2.0,
        "gold",
    )


def test_a_byte_order_mark_is_no_part_of_a_mix(tmp_path):
    path = tmp_path / "mix.csv"
    path.write_text("width,height,share\n64,32,1\n", encoding="utf-8-sig")
    assert [(kind.width, kind.height) for kind in mix(str(path))] == [(64, 32)]


def test_a_weight_of_nothing_in_a_mix_is_a_weight(tmp_path):
    path = tmp_path / "mix.csv"
    path.write_text("width,height,share,weight\n64,64,1,0\n")
    arrivals = Workload(mix(str(path)), weights="tiers", duration=100).arrivals()
    assert {arrival.submission.weight for arrival in arrivals} == {0.0}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("only:²x²", "not of the form"), (f"only:1{'0' * 400}x256", "at most"), ("only:0x256", "positive")],
)
def test_a_size_that_is_none(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        mix(name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("width,height\n1,1\n", "line 1: no column share"),
        ("width,height,share\n1,x,1\n", "line 2: height is a number, not 'x'"),
        ("width,height,share\n1,1.5,1\n", "line 2: height is a whole number, not '1.5'"),
        ("width,height,share\n0,1,1\n", "line 2: width is at least 1"),
        ("width,height,share\n1,1,inf\n", "line 2: share is at least 0 and finite"),
        *(
            (f"width,height,share,{column}\n1,1,1,\n1,1,1,{text}\n", f"line 3: {column} is at least")
            for column, texts in {
                "steps": ("0", "-5", "nan"),
                "deadline_s": ("-5", "nan", "inf"),
                "weight": ("-2", "nan", "inf"),
            }.items()
            for text in texts
        ),
        ("width,height,share\n1,1e300,1\n", "line 2: height is at most"),
        ("width,height,share\n1,1\n", "line 2: share is missing"),
        ("width,height,share\n1,1,1,9\n", "line 2: there are more values than columns"),
        ("width,height,share\n1,1,-1\n", "line 2: share is at least 0"),
        ("width,height,share\n1,1,0\n", "add up to nothing"),
    ],
)
def test_a_wrong_mix_says_where(tmp_path, text, complaint):
    path = tmp_path / "mix.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        mix(str(path))
    with pytest.raises(ValueError, match="no mix and no file"):
        mix("nothing")
    with pytest.raises(ValueError, match="only:WIDTHxHEIGHT"):
        mix("only:12")
