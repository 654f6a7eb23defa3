"""The page of a single run, and the pieces that charts are made of."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.report import html_report
from kvload.analysis.report.svg import Axis, Chart, axis_for
from kvload.analysis.run.summary import summarise
from kvload.records import TraceInfo
from tests.analysis.page_reader import read_page
from tests.analysis.synthetic import arm, mixed, scrapes


def test_the_page_shows_the_report_and_loads_nothing(tmp_path: Path) -> None:
    trace = TraceInfo(path="<b>evil</b>.jsonl", sha256="0", format="kvload", rows=200, used=200)
    run = mixed(tmp_path / "run", trace=trace, samples=scrapes([(t, {"cache_usage": 0.5}) for t in (0, 1)]))
    page = html_report.render(summarise(run))
    found = read_page(page)
    assert found.tags.isdisjoint({"script", "img", "link", "b"})
    for word in ("199 sent = 194 done", "TTFT", "goodput", "Cache usage", "not client-bound", "&lt;b&gt;evil"):
        assert word in page
    assert len(page) < 200_000


def test_a_run_without_answers_has_a_page_too(tmp_path: Path) -> None:
    page = html_report.render(summarise(arm(tmp_path / "run", [])))
    read_page(page)
    assert "nothing was sent" in page


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6), st.booleans())
def test_ticks_are_round_and_inside_the_axis(low: float, factor: float, log: bool) -> None:
    axis = Axis(title="", low=low, high=low * factor, log=log)
    ticks = axis.ticks()
    assert len(ticks) <= 11
    assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in ticks)
    assert ticks == sorted(set(ticks))


@given(
    st.lists(st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=20),
    st.booleans(),
    st.booleans(),
)
def test_any_values_give_an_axis_that_holds_them(values: list[float], log: bool, zero: bool) -> None:
    axis = axis_for(values, "", log=log, text=str, zero=zero)
    assert axis.low < axis.high
    assert all(0 <= axis.place(value) <= 1 for value in values if not math.isnan(value))


def test_points_lie_where_they_should() -> None:
    chart = Chart("t", Axis(title="", low=0, high=10), Axis(title="", low=1, high=100, log=True))
    left, bottom = chart.at(0, 1)
    right, top = chart.at(10, 100)
    assert chart.at(5, 10) == pytest.approx(((left + right) / 2, (top + bottom) / 2))
