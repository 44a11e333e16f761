"""The plot of what the knobs trade shows every setting."""

import pytest

from bench import exchange
from bench.compare import Line
from bench.intervals import estimate
from bench.runs import SERVER_CONFIG


@pytest.mark.parametrize("others", [6, 20])
def test_all_policies_are_drawn(tmp_path, monkeypatch, others):
    names = [f"fixed:{n}" for n in range(others)]
    figures = []
    monkeypatch.setattr(exchange, "save", lambda figure, path: figures.append(figure) or path)
    one = estimate([1.0])
    found = [
        (knob, Line(knob.policy, 1, one, None, one, one, one, one, one, 1.0))
        for knob in exchange.knobs("edf", names, SERVER_CONFIG)
    ]
    exchange._plot(found, tmp_path / "exchange.png")
    for axes in figures[0].axes:
        assert axes.get_legend_handles_labels()[1] == [knob.name for knob, _ in found]
