"""Durations and limits as people write them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import UsageError
from kvload.workloads.durations import parse_duration, parse_limits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1.5s", 1.5), ("2min", 120.0), ("2m", 120.0), ("1h", 3600.0), ("7", 7.0), (" .5 S ", 0.5),
     ("20us", 2e-5), ("1e3ms", 1.0)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, flag="--x") == pytest.approx(seconds)


def test_default_unit() -> None:
    assert parse_duration("200", flag="--x", default_unit="ms") == pytest.approx(0.2)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "1 2", "1d", "inf", "nan", "1e999"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text, flag="--x")


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_duration(text, flag="--x") >= 0


def test_limits() -> None:
    assert parse_limits("ttft=500ms, tpot=50ms,e2e=2s", flag="--slo") == {"ttft": 0.5, "tpot": 0.05, "e2e": 2.0}
    assert parse_limits("ttft:200 e2el:9000", flag="--goodput", default_unit="ms") == {"ttft": 0.2, "e2e": 9.0}
    assert parse_limits("", flag="--slo") == {}


@pytest.mark.parametrize("text", ["ttft", "speed=3", "ttft=1s,ttft=2s", "ttft=0", "ttft=x"])
def test_no_limits(text: str) -> None:
    with pytest.raises(UsageError):
        parse_limits(text, flag="--slo")
