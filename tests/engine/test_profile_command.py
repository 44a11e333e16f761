"""`python -m executor profile` as a user runs it, and who reads what it writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.runs import profile as read
from executor.calibration import Wish
from executor.command import main
from executor.pipelines import load as load_model
from executor.profile_command import LINKS
from executor.profiler import Effort
from executor.survey import Failed, Gone, Members, Setup, Skipped, survey, wishes
from scheduler.profile import load

QUICK = Effort(0.0, warm_up=1, fewest=2, most=2)


def run(*words: object, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "executor", "profile", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_degrees_are_measured_by_as_many_processes_and_the_scheduler_can_read_it(models, tmp_path: Path):
    file = tmp_path / "profile.csv"
    done = run(
        *("--model", models["4 heads"], "--sizes", "64x64,112x144", "--degrees", "1,2", "--batches", "1,2"),
        *("--repeats", 3, "--warm-up", 1, "-o", file),
    )
    assert done.returncode == 0, done.stderr
    assert "12 rows" in done.stderr
    found = load(file)
    assert {(e.kind, e.width, e.height, e.degree, e.batch) for e in found.entries} == {
        ("encode", 0, 0, 1, 1),
        *(("decode", w, h, 1, 1) for w, h in [(64, 64), (112, 144)]),
        *(("step", w, h, d, b) for w, h in [(64, 64), (112, 144)] for d in (1, 2) for b in (1, 2)),
        ("layer", 64, 64, 1, 1),
    }
    assert found.layers == pytest.approx(load_model(models["4 heads"]).layers, rel=1e-4)
    assert found.max_degree == 2
    for entry in found.entries:
        assert entry.basis == ("derived" if entry.kind == "layer" else "measured")
        for word in ("4 heads", "float32", "1 thread", "torch 2", "diffusers", "xfuser", "load", "20"):
            assert word in entry.source
    assert read(str(file)).step(64, 64, 2) == found.step(64, 64, 2)
    lines = file.read_text().splitlines()
    assert lines[0].endswith(",source,repeats,peak_mib")
    assert all(line.endswith(",3,") for line in lines[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["profile.csv"]


def test_shares_are_derived_by_a_link(models, tmp_path: Path):
    words = ["--model", models["6 heads"], "--sizes", "112x144", "--degrees", "1,4", "--repeats", 2]
    done = run(*words, "--share", "--link", "pcie", "--no-stages")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "profile.csv"
    file.write_text(done.stdout)
    alone, share, _ = load(file).entries
    assert (alone.basis, share.basis) == ("measured", "derived")
    assert (share.degree, share.batch) == (4, 1)
    assert "by the model of pcie" in share.source
    # 4 blocks with 3 collectives each (Ulysses 2 x ring 2), and the gather.
    assert share.seconds > 13 * LINKS["pcie"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--degrees", "2,4"], "1 must be among them"),
        (["--degrees", "1,3"], "--degrees: powers of two are allowed, not 3"),
        (["--degrees", "one"], "'one' is no list of positive numbers such as 1,2,4"),
        (["--batches", "1,0"], "is no list of positive numbers"),
        (["--sizes", "64"], "'64' is no list of sizes such as 256x256,512x512"),
        (["--sizes", "100x64"], "width must be a multiple of 16"),
        (["--link", "wire"], "'wire' is none of nvlink, pcie"),
        (["--link", "-1"], "is none of nvlink, pcie"),
        (["--device", "tpu"], "--device: expected cpu or cuda:N, not 'tpu'"),
        (["--device", "cuda:99"], "--device: there is no cuda:99"),
        (["--model", "/no/such/folder"], "--model: /no/such/folder is no folder"),
        (["-o", "/no/such/folder/x.csv"], "--output: there is no folder"),
        (["--repeats", "1"], "--repeats"),
    ],
)
def test_bad_words_are_named(words: list[str], message: str):
    result = CliRunner().invoke(main, ["profile", *words])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def test_options_of_the_executor_are_not_taken_for_the_profilers():
    result = CliRunner().invoke(main, ["--device", "cuda:0", "profile"])
    assert result.exit_code == 2
    assert "--device comes after profile" in result.output


def test_an_interruption_keeps_what_was_measured(models, tmp_path: Path):
    file = tmp_path / "profile.csv"
    words = ["--model", models["4 heads"], "--degrees", "1,2", "--sizes", "64x64", "--repeats", 100000]
    process = subprocess.Popen(
        [sys.executable, "-m", "executor", "profile", *map(str, words), "--no-stages", "-o", str(file)],
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    # The member and multiprocessing's tracker.
    while len(started := children.read_text().split()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 130
    assert "Traceback" not in process.stderr.read()
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in started) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in started)


@pytest.fixture
def members(models):
    setup = Setup(Path(models["4 heads"]), "cpu", "float32")
    # Groups of this process are in use by nobody else: a process has one world.
    with Members(setup, setup.load(), 2) as members:
        yield members


def test_what_fails_is_skipped_and_the_rest_is_measured(members):
    wanted = [*wishes([(64, 64)], [1, 2], [1]), Wish("step", 100, 64, 2, 1), Wish("step", 64, 64, 2, 2)]
    rows = list(survey(members, wanted, QUICK))
    (skipped,) = [row for row in rows if isinstance(row, Skipped)]
    assert skipped.wish.width == 100
    assert "width must be a multiple of 16" in skipped.why
    assert len(rows) == len(wanted)


def test_a_dead_member_is_named(members):
    members._processes[0].kill()
    members._processes[0].join()
    with pytest.raises((Gone, Failed), match="member 1"):
        members.measure(Wish("step", 64, 64, 2, 1), QUICK)
    assert members.measure(Wish("step", 64, 64, 1, 1), QUICK).seconds > 0


def test_members_take_one_gpu_after_another():
    setup = Setup(Path("m"), "cuda:2", "bfloat16")
    assert [setup.of_member(rank).device for rank in range(3)] == ["cuda:2", "cuda:3", "cuda:4"]
    assert Setup(Path("m"), "cpu", "float32").of_member(3).device == "cpu"
