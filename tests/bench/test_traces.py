"""Traces in all three formats, and what is said of broken ones."""

import pytest

from bench.simulator import Arrival
from bench.traces import BadTrace, load, save
from scheduler.tracking import Submission

CALLS = """\
# vLLM-Omni and Hetu-DiT
Request(request_id=7, timestamp=2.5, height=256, width=512, num_frames=1, prompt='a \\'red\\', (cat)', \
num_inference_steps=28, slo_ms=5000)

Request(request_id=3, timestamp=0.0, height=1024, width=1024, prompt="b", num_inference_steps=4)
"""
CSV = """\
arrival_s,width,height,steps,deadline_s,weight,class,colour
1.5,512,256,20,3.5,2,gold,red
0,256,256,10,,,,
"""
OURS = """\
{"format": "tetriserve-trace", "version": 1}
{"arrival_s": 0.5, "width": 256, "height": 512, "steps": 9, "deadline_s": 1.5, "weight": 3, "class": "x"}

{"arrival_s": 0.25, "width": 64, "height": 64}
"""


def read(tmp_path, text: str) -> list[Arrival]:
    path = tmp_path / "trace"
    path.write_text(text)
    return load(path)


def test_request_lines(tmp_path):
    assert read(tmp_path, CALLS) == [
        Arrival(0.0, Submission("r0", 1024, 1024, 4, None)),
        Arrival(2.5, Submission("r1", 512, 256, 28, 5.0)),
    ]


def test_csv(tmp_path):
    assert read(tmp_path, CSV) == [
        Arrival(0.0, Submission("r0", 256, 256, 10, None)),
        Arrival(1.5, Submission("r1", 512, 256, 20, 3.5, 2.0), "gold"),
    ]


def test_our_own(tmp_path):
    assert read(tmp_path, OURS) == [
        Arrival(0.25, Submission("r0", 64, 64, 50)),
        Arrival(0.5, Submission("r1", 256, 512, 9, 1.5, 3.0), "x"),
    ]


@pytest.mark.parametrize("text", [CALLS, CSV, OURS])
def test_comments_and_empty_lines_may_come_first(tmp_path, text):
    assert read(tmp_path, f"# from the log of Monday\n\n{text}") == read(tmp_path, text)


@pytest.mark.parametrize("text", [CALLS, CSV, OURS])
def test_a_byte_order_mark_is_skipped(tmp_path, text):
    path = tmp_path / "marked"
    path.write_text(text, encoding="utf-8-sig")
    assert load(path) == read(tmp_path, text)


def test_null_is_as_if_left_out(tmp_path):
    nulls = '"steps": null, "deadline_s": null, "weight": null, "class": null'
    ours = OURS.replace('"height": 64', f'"height": 64, {nulls}')
    assert read(tmp_path, ours) == read(tmp_path, OURS)
    call = "Request(timestamp=0, width=64, height=64, num_inference_steps=None, slo_ms=None)\n"
    assert read(tmp_path, call) == [Arrival(0.0, Submission("r0", 64, 64, 50))]


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_the_end_of_a_line_ends_it(tmp_path, odd):
    red, gold = f"a {odd} red", f"go{odd}ld"
    assert read(tmp_path, CALLS.replace("'a \\'red\\'", f"'{red}")) == read(tmp_path, CALLS)
    for text, label in ((CSV.replace("gold", gold), gold), (OURS.replace('"x"', f'"{red}"'), red)):
        if odd >= " " or text.startswith("arrival"):  # JSON has no control characters in strings
            assert label in {arrival.label for arrival in read(tmp_path, text)}


def test_what_is_saved_is_read_again(tmp_path):
    arrivals = read(tmp_path, CSV)
    save(arrivals, tmp_path / "saved")
    assert load(tmp_path / "saved") == arrivals


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "trace, line 1: neither"),
        ("hello\n", "trace, line 1: neither"),
        ("arrival_s,width,height\n", "line 1: no column deadline_s, steps"),
        (CSV + "2,256,x,10,1\n", "line 4: height is a number, not 'x'"),
        (CSV + "-2,256,256,10,1\n", "line 4: arrival_s is at least 0"),
        (CSV + "2,256,256,1.5,1\n", "line 4: steps is a whole number"),
        (CSV + "2,256\n", "line 4: height is missing"),
        (CSV + "2,5,256,256,10,1,1,gold,red\n", "line 4: there are more values than columns"),
        (CSV + '2,256,256,10,1,1,"gold\n3,256,256,10,1,,,\n', "line 4: not CSV: unexpected end of data"),
        (CSV + f"2,256,256,10,1,1,{'gold' * 40000}\n", "line 4: not CSV: field larger than"),
        ("# a\n\narrival_s,width,height\n", "line 3: no column deadline_s, steps"),
        ("# a\n\n" + CSV + "2,256\n", "line 6: height is missing"),
        ("arrival_s,width,height,steps,deadline_s\n", "no request in it"),
        (OURS + "nonsense\n", "line 5: not JSON"),
        (OURS + '["a"]\n', "line 5: not a JSON object"),
        (OURS.replace(": 1}", ": 2}", 1), "line 1: the header is"),
        (OURS + '{"arrival_s": 1, "width": 1, "height": 1, "deadline_s": NaN}\n', "line 5: deadline_s"),
        (OURS + '{"arrival_s": 1, "width": 1e300, "height": 1}\n', "line 5: width is at most 1e+12"),
        (OURS + f'{{"arrival_s": 1{"0" * 400}, "width": 1, "height": 1}}\n', "line 5: arrival_s is"),
        (CSV + "2,256,256,10,1,1e308\n", "line 4: weight is at most 1e+12, not '1e308'"),
        (f"Request(timestamp=0, width=1, height=1, slo_ms=1{'0' * 400})\n", "line 1: slo_ms is at least 0"),
        (OURS + "[" * 100_000 + "\n", "line 5: not JSON"),
        (OURS + "1" * 5000 + "\n", "line 5: not JSON"),
        (f"Request(timestamp={'-' * 100_000}1)\n", "line 1: not Request(name=value"),
        (OURS + '{"arrival_s": 1, "width": null, "height": 1}\n', "line 5: width is missing"),
        ("Request(timestamp=0)\n", "line 1: width is missing"),
        ("Request(timestamp=0, width=1, height=1, slo_ms='a')\n", "line 1: slo_ms is a number"),
        ("Request(timestamp=0, width=1, height=1, num_frames=9)\n", "line 1: num_frames is 1, not 9"),
        ("Request(__import__('os'))\n", "line 1: not Request(name=value"),
        ("Request(timestamp=__import__('os').getpid())\n", "line 1: not Request(name=value"),
        ("Request(timestamp=0\n", "line 1: not Request(name=value"),
        ("Request(**{})\n", "line 1: not Request(name=value"),
        ("Request(timestamp=0).x\n", "line 1: not Request(name=value"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, complaint):
    with pytest.raises(BadTrace) as raised:
        read(tmp_path, text)
    assert complaint in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(BadTrace, match="No such file"):
        load(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadTrace, match="binary"):
        load(tmp_path / "binary")
