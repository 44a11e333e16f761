"""The commands of `python -m bench`, as a user calls them."""

import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench import trials
from bench.cli import main
from bench.compare import cells, lines
from bench.intervals import estimate, paired
from bench.runs import SERVER_CONFIG, bundled_profiles, profile
from bench.simulator import Arrival
from bench.traces import save
from scheduler import command
from scheduler.config import Config
from scheduler.tracking import Submission

DERIVED = ["flux1-dev-8xh100", "sd3-medium-4xa40"]
SHORT = ["--duration", "60", "--seed", "1"]
EXAMPLE = Path(__file__).parents[2] / "docs" / "three.csv"


def call(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


def figures(*words: object) -> dict:
    return json.loads(call(*words, "--json"))


def test_simulate_tells_what_was_asked_for():
    found = figures("simulate", "--policy", "edf", *SHORT, "--mix", "skewed", "--rate", 30)
    assert found["requests"] > 15
    assert found["on_time"] == round(found["sar"] * found["requests"])
    assert set(found["sar_by_size"]) == {"256x256", "512x512", "1024x1024", "2048x2048"}
    assert 0 < found["latency_s"]["p50"] <= found["latency_s"]["p95"] <= found["latency_s"]["p99"]
    assert 0 < found["gpu_utilisation"] <= 1
    assert found["gpu_seconds"] > 0
    assert found["switches"] > 0
    assert found["decisions"] > found["requests"]
    assert set(found["decision_ms"]) == {"p50", "p99", "max"}
    assert found["fallbacks"] == 0
    assert isinstance(found["solver_statuses"], dict)


def test_the_same_seed_gives_the_same_bytes():
    words = [
        "simulate",
        "--policy",
        "edf",
        *SHORT,
        "--step-cv",
        0.05,
        "--switch-ms",
        10,
        "--failure-rate",
        300,
    ]
    one, other = figures(*words), figures(*words)
    for found in (one, other):
        assert found.pop("decision_ms")
    assert json.dumps(one) == json.dumps(other)
    assert one["executors_lost"] > 0
    third = figures(*words, "--failure-seed", 9)
    assert third["executors_lost"] > 0
    assert third["latency_s"] != one["latency_s"]


def test_knobs_matter():
    base = ["simulate", "--policy", "edf", *SHORT, "--rate", 24]
    plain = figures(*base)
    assert figures(*base, "--slo-scale", 3)["sar"] > plain["sar"]
    costly = figures(*base, "--switch-ms", 400)
    assert costly["gpu_seconds_per_on_time"] > plain["gpu_seconds_per_on_time"]
    assert costly["switches"] < plain["switches"]
    assert figures(*base, "--charge-decisions", 0.2)["latency_s"]["p50"] > plain["latency_s"]["p50"]
    assert figures(*base, "--late", "drop")["ended"]["dropped"] > 0
    assert figures(*base, "--gpus", 2)["sar"] < plain["sar"]


def test_a_trace_in_place_of_a_workload(tmp_path):
    trace = tmp_path / "requests.jsonl"
    call("workload", *SHORT, "-o", trace)
    drawn = figures("simulate", "--policy", "edf", *SHORT)
    taken = figures("simulate", "--policy", "edf", "--trace", trace, "--seed", 1)
    for found in (drawn, taken):
        del found["decision_ms"]
    assert drawn == taken
    times = figures("simulate", "--policy", "edf", "--arrivals", f"trace:{trace}", "--mix", "only:256x256")
    assert times["requests"] == drawn["requests"]
    assert set(times["sar_by_size"]) == {"256x256"}


def test_a_plain_profile(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text(
        "width,height,degree,seconds_per_step,text_encode_s,vae_decode_s\n"
        "256,256,1,0.02,0.01,0.05\n256,256,2,0.012,0.01,0.05\n1024,1024,1,0.2,0.01,0.1\n"
    )
    found = figures("simulate", "--policy", "edf", *SHORT, "--profile", path, "--gpus", 2)
    assert found["ended"] == {"done": found["requests"]}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--policy", "nonsense"], "unknown policy 'nonsense'"),
        (["--policy", "edf", "--mix", "nonsense"], "no mix and no file 'nonsense'"),
        (["--policy", "edf", "--profile", "nonsense"], "no profile and no file 'nonsense'"),
        (["--policy", "edf", "--arrivals", "nonsense"], "none of poisson, burst and trace:FILE"),
        (["--policy", "edf", "--arrivals", "trace:nonsense"], "nonsense: No such file or directory"),
        (["--policy", "edf", "--charge-decisions", "often"], "'often' is neither measured nor a time"),
        (["--policy", "edf", "--charge-decisions", "nan"], "'nan' is neither measured nor a time"),
        (["--policy", "edf", "--charge-decisions", "1e308"], "'1e308' is neither measured nor a time"),
        (["--policy", "edf", "--round", "1e308"], "1e308 is too large, at most 1e+12 is allowed"),
        (["--policy", "edf", "--switch-ms", "1e308"], "1e308 is too large"),
        (["--policy", "edf", "--rate", "0"], "0.0 is not in the range"),
        (["--policy", "edf", "--margin", "nan"], "nan is no finite number"),
        (["--policy", "edf", "--slo-scale", "inf"], "inf is no finite number"),
        (["--policy", "edf", "--scale-up", "nan"], "nan is no finite number"),
        (["--policy", "edf", "--duration", "0.001"], "no request arrives"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words, complaint):
    output = call("simulate", *words, status=1 if "--duration" in words else 2)
    assert complaint in output.replace("\n", " ")


def test_what_is_no_text_is_named(tmp_path):
    picture = tmp_path / "picture"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    for option, what in (("--trace", "text"), ("--mix", "CSV"), ("--profile", "CSV")):
        words = ["simulate", "--policy", "edf", option, picture]
        output = call(*words, status=1 if option == "--trace" else 2).replace("\n", " ")
        assert f"{picture}: a {option[2:]} is a {what} file, this is none" in output


def test_a_folder_that_is_not_there_is_named(tmp_path):
    output = call("workload", *SHORT, "-o", tmp_path / "none" / "requests.jsonl", status=1)
    assert f"Error: {tmp_path}/none/requests.jsonl: No such file or directory" in output.replace("\n", " ")
    assert call("workload", *SHORT, "-o", "/dev/full", status=1) == "Error: No space left on device\n"


def test_a_class_is_shown_as_it_is(tmp_path):
    trace = tmp_path / "trace.csv"
    head = "arrival_s,width,height,steps,deadline_s,class\n"
    trace.write_text(head + "0,256,256,5,9,[/gold]\n0,256,256,5,9,[red]\n")
    output = call("simulate", "--policy", "edf", "--trace", trace)
    assert "[red] 100.0%, [/gold] 100.0%" in output


def test_a_broken_trace_names_the_line(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,width,height,steps,deadline_s\n0,a,256,10,5\n")
    output = call("simulate", "--policy", "edf", "--trace", trace, status=1)
    assert "line 2: width is a number" in output.replace("\n", " ")


def test_the_bound_is_above_what_is_reached():
    limit = figures("bound", *SHORT, "--mix", "skewed", "--rate", 24)
    reached = figures("simulate", "--policy", "edf", *SHORT, "--mix", "skewed", "--rate", 24)
    assert limit["proven"]
    assert limit["total"] == reached["requests"]
    assert reached["sar"] <= limit["sar_bound"] <= 1


def test_what_the_solver_prints_is_no_part_of_the_json(tmp_path):
    # With these HiGHS 1.12 mends a solution and says so, on standard output.
    requests = [
        (1.3, 256, 47, 7.92, 1e6),
        (2.3, 256, 48, 7.9, 1.0),
        (3.21, 256, 41, 8.0, 1e6),
        (3.4249944679965285, 2048, 29, 26.4, 0.001),
        (3.592496636400277, 2048, 42, 26.4, 0.001),
        (4.0, 512, 44, 10.6, 1.0),
        (5.0, 512, 3, 11.0, 1e6),
    ]
    save([Arrival(at, Submission("", side, side, *rest)) for at, side, *rest in requests], tmp_path / "trace")
    command = [sys.executable, "-m", "bench", "bound", "--gpus", "2", "--json", "--trace", tmp_path / "trace"]
    found = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(found.stdout)["largest_period"] == 7


def test_gpus_that_do_not_make_equal_nodes_are_refused_by_all(tmp_path):
    for words in (["simulate", "--policy", "edf"], ["bound"], ["workload", "-o", tmp_path / "trace"]):
        for odd in (["--nodes", 3], ["--nodes", 2, "--islands", 3]):
            output = call(*words, *SHORT, *odd, status=1)
            assert output.startswith(f"Error: 8 GPUs do not make {odd[1]} equal nodes")
    even = figures("bound", *SHORT, "--nodes", 2, "--islands", 2)
    assert even["weight"] == figures("bound", *SHORT)["weight"]


def test_a_profile_is_refused_whose_widest_degree_is_no_power_of_two(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("width,height,degree,seconds_per_step\n256,256,1,0.02\n256,256,3,0.01\n")
    output = " ".join(call("bound", "--profile", path, status=2).split())
    assert f"'--profile': {path}: the widest degree is a power of two, not 3" in output


def test_misses_are_what_the_bound_has_and_the_policy_has_not():
    words = ["--policy", "fixed:8", *SHORT, "--mix", "skewed", "--rate", 24, "--slo-scale", 1.5]
    found = figures("misses", *words)
    limit = figures("bound", *words[2:])
    reached = figures("simulate", *words)
    assert len(found) >= limit["weight"] - reached["on_time"] > 0
    assert {miss["id"] for miss in found} <= set(limit["chosen"])
    assert all(miss["took"] > miss["allowed"] for miss in found)
    assert "missed that could have been on time" in call("misses", *words)
    easy = ["--policy", "edf", *SHORT, "--mix", "only:256x256", "--slo-scale", 9]
    assert call("misses", *easy) == "0 missed that could have been on time\n"


def test_compare_shows_policies_side_by_side():
    records = json.loads(
        call("compare", "--policies", "edf,fixed:8", *SHORT, "--seeds", 2, "--jobs", 1, "--json")
    )
    edf, fixed, limit = lines(records)
    assert (edf.policy, fixed.policy, limit.policy) == ("edf", "fixed:8", "bound")
    assert edf.gain is None
    assert fixed.gain.mean == pytest.approx(fixed.sar.mean - edf.sar.mean)
    assert limit.sar.mean >= edf.sar.mean
    assert "±" in call("compare", "--policies", "edf", *SHORT, "--seeds", 2, "--jobs", 1)
    assert "name each policy once" in call("compare", "--policies", "edf,edf", status=2)


def test_a_process_that_is_killed_is_said_in_a_line(monkeypatch):
    def killed(_trial: trials.Trial) -> trials.Record:
        raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(trials, "perform", killed)
    output = call("compare", "--policies", "edf", "--jobs", 1, *SHORT, status=1)
    assert "Error: a process was killed in the middle of a run" in output


def test_without_deadlines_latencies_are_compared(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,width,height,steps,deadline_s\n0,512,512,9,\n1,256,256,9,\n")
    output = call("compare", "--policies", "edf,srtf", "--trace", trace, "--seeds", 2, "--jobs", 1)
    (srtf,) = [line for line in output.splitlines() if "srtf" in line]
    assert [cell.strip() for cell in srtf.split("│")][1:5] == ["srtf", "-", "-", "-"]
    assert "nan" not in output


def test_runs_that_would_only_repeat_are_made_once(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,width,height,steps,deadline_s\n0,512,512,9,3\n1,256,256,9,3\n")
    words = ["compare", "--policies", "edf", "--no-bound", "--trace", trace, "--seeds", 3, "--jobs", 1]
    output = call(*words)
    assert "One run each in place of 3: with --trace the seed draws nothing." in output
    assert "Means over 1 seed," in output
    for drawn in (["--step-cv", 0.1], ["--failure-rate", 1], ["--charge-decisions", "measured"]):
        output = call(*words, *drawn)
        assert "One run" not in output
        assert "Means over 3 seeds," in output
    assert "One run each" in call(*words, "--failure-rate", 1, "--failure-seed", 1)


def test_there_is_no_bound_where_things_may_be_faster_than_the_profile():
    words = ["compare", "--policies", "edf", *SHORT, "--seeds", 1]
    for faster in (["--node-paces", 0.5], ["--node-paces", "1,0.5"], ["--step-cv", 0.1]):
        output = call(*words, *faster)
        assert output.startswith("Left out: the bound does not hold with --step-cv, or where --node-paces")
        assert "│ bound" not in output
        output = call("misses", "--policy", "edf", *SHORT, *faster, status=2)
        assert "the bound does not hold with --step-cv" in " ".join(output.split())
    assert "│ bound" in call(*words, "--node-paces", 2)


def test_bounds_that_are_not_proven_are_marked():
    bounds = [
        {"policy": "bound", "seed": seed, "sar_weighted": 0.9, "proven": seed == 0} for seed in range(3)
    ]
    (line,) = lines(bounds)
    assert cells(line)[1] == "90.0 ±0.0, 2 open"
    (line,) = lines(bounds[:1])
    assert cells(line)[1] == "90.0"


def test_paper_writes_everything_and_resumes(tmp_path):
    words = ["paper", "--quick", "--policies", "edf", "--jobs", 1, "--out", tmp_path, "--groups", "bursts"]
    assert str(tmp_path / "bursts.md") in call(*words)
    recorded = (tmp_path / "records.jsonl").read_text()
    assert len(recorded.splitlines()) == 4
    # Half a line is left by a run that was killed; one record is done again.
    (tmp_path / "records.jsonl").write_bytes(b"\xff\x00\n{}\n9\n" + recorded[:-40].encode())
    call(*words)
    again = (tmp_path / "records.jsonl").read_bytes().splitlines()
    assert len(again) == 3 + 5
    assert "bursts skewed 1.2x 12/min" in (tmp_path / "bursts.md").read_text()


def test_records_of_an_older_format_are_not_taken_for_new_ones(tmp_path, monkeypatch):
    words = ["paper", "--quick", "--policies", "edf", "--jobs", 1, "--bound-limit", 0, "--out", tmp_path]
    words += ["--groups", "bursts", "--seeds", 1, "--duration", 20]
    with monkeypatch.context() as older:
        older.setattr(trials, "FORMAT", trials.FORMAT - 1)
        call(*words)
    path = tmp_path / "records.jsonl"
    record = json.loads(path.read_text())
    del record["gpu_seconds_per_on_time_weighted"]
    path.write_text(json.dumps(record) + "\n")
    call(*words)
    assert len(path.read_text().splitlines()) == 2


def test_quick_gives_other_defaults_and_says_which_groups_it_has(tmp_path):
    words = ["paper", "--quick", "--policies", "edf", "--jobs", 1, "--bound-limit", 0, "--out", tmp_path]
    call(*words, "--groups", "bursts", "--seeds", 1, "--duration", 20)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1
    assert "20 s of arrivals" in (tmp_path / "bursts.md").read_text()
    output = call(*words, "--groups", "sd3", "--groups", "bursts", status=1)
    assert output.endswith("Error: --quick has only the --groups flux, bursts, not sd3\n")


def test_intervals():
    assert estimate([1.0, 3.0]).mean == 2.0
    assert estimate([1.0, 3.0]).half_width == pytest.approx(12.706, abs=1e-3)
    assert estimate([5.0]).half_width == float("inf")
    difference = paired([1.0, 2.0, 4.0], [0.0, 1.0, 3.0])
    assert (difference.mean, difference.half_width, difference.clear) == (1.0, 0.0, True)


def test_the_simulator_runs_with_the_servers_own_defaults(tmp_path, monkeypatch):
    found = []

    def keep(config: Config) -> None:
        found.append(config)
        raise click.Abort

    monkeypatch.setattr(command, "Rounds", keep)
    CliRunner().invoke(command.main, ["--data-dir", str(tmp_path)])
    assert found == [SERVER_CONFIG]


def test_every_bundled_row_says_where_it_is_from():
    assert bundled_profiles() == ["builtin-2xcpu", *DERIVED]
    for name in bundled_profiles():
        for entry in profile(name).entries:
            assert entry.basis in (("published", "derived") if name in DERIVED else ("measured",))
            assert entry.source


def test_the_measured_profile_can_be_planned_with():
    found = figures("simulate", "--profile", "builtin-2xcpu", "--policy", "edf", "--gpus", 2, *SHORT)
    assert found["requests"] > 0


def test_bundled_profiles_are_what_the_script_makes(tmp_path, monkeypatch):
    from bench import build_profiles

    committed = {name: (build_profiles.FOLDER / f"{name}.csv").read_text() for name in DERIVED}
    (tmp_path / "sources").symlink_to(build_profiles.FOLDER / "sources")
    monkeypatch.setattr(build_profiles, "FOLDER", Path(tmp_path))
    build_profiles.main()
    for name, text in committed.items():
        assert (tmp_path / f"{name}.csv").read_text() == text


def test_exchange_draws_the_knobs(tmp_path):
    done = call("exchange", "--duration", 20, "--seeds", 1, "--jobs", 1, "--others", "edf", "--out", tmp_path)
    assert (tmp_path / "exchange.png").stat().st_size > 10_000
    rows = (tmp_path / "exchange.md").read_text().splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:4]] == ["cp-sat", "cp-sat, scale-up 0"]
    assert str(tmp_path / "exchange.md") in done


@pytest.mark.parametrize(("policy", "on_time"), [("cp-sat", 3), ("search", 2), ("edf", 2), ("tetriserve", 2)])
def test_the_example_of_the_documents_is_as_they_say(policy, on_time, tmp_path):
    picture = tmp_path / "timeline.png"
    found = figures("simulate", "--policy", policy, "--trace", EXAMPLE, "--timeline", picture)
    assert found["on_time"] == on_time
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_timeline_that_cannot_be_drawn_is_refused_at_once(tmp_path):
    words = ["simulate", "--policy", "edf", "--timeline"]
    for path, complaint in (
        (tmp_path / "x.gif", "does not end in .png, .pdf, .svg"),
        (tmp_path / "none" / "x.png", "the folder of"),
    ):
        assert complaint in call(*words, path, status=2).replace("\n", " ")


def test_options_that_a_trace_takes_the_place_of_are_named():
    words = ["simulate", "--policy", "edf", "--trace", str(EXAMPLE), "--json"]
    ended = CliRunner().invoke(main, [*words, "--mix", "skewed", "--rate", "6"])
    assert "No heed is taken of --mix, --rate with --trace" in ended.stderr
    plain = CliRunner().invoke(main, words)
    assert plain.stderr == ""
    one, other = json.loads(ended.stdout), json.loads(plain.stdout)
    for found in (one, other):
        del found["decision_ms"]
    assert one == other
