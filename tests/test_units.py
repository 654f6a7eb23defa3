"""Durations, sizes, rates, token counts and limits as people write them."""

import contextlib
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload import units
from kvload.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1.5s", 1.5), ("2min", 120.0), ("2m", 120.0), ("1h", 3600.0), (" .5 S ", 0.5), ("20us", 2e-5),
     ("1e3ms", 1.0), ("0", 0.0), ("0ms", 0.0)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text, where="--x") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "1 2", "1d", "inf", "nan", "1e999s", "7", "0.5"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_duration(text, where="--x")
    assert caught.value.where == "--x"


def test_a_bare_number_is_refused_with_both_readings() -> None:
    with pytest.raises(UsageError, match="no unit") as caught:
        units.parse_limits("ttft=500", where="--slo")
    assert caught.value.hint == "write 500ms or 500s"
    assert units.parse_limits("ttft:500", where="--goodput", bare_unit="ms") == {"ttft": 0.5}
    with pytest.raises(UsageError, match="no unit"):
        units.parse_bytes("512", where="--kv-memory")


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 2**29), ("1.5GiB", 3 * 2**29), ("2GB", 2 * 10**9), ("4g", 2**32), ("77B", 77)]
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1 2", "1e3", "5 parsecs", "0.0001B", "1e30TiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_bytes(text)


def test_sizes_in_words() -> None:
    assert units.format_bytes(2**29) == "512 MiB"
    assert units.format_bytes(1023 * 2**20) == "1023 MiB"
    assert units.format_bytes(1.5 * 2**40) == "1.5 TiB"


@pytest.mark.parametrize(("text", "rate"), [("4", 4.0), ("0.5/s", 0.5), ("240/min", 4.0), ("inf", math.inf)])
def test_rates(text: str, rate: float) -> None:
    assert units.parse_rate(text, where="--rate") == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "0", "-1", "fast", "4 s", "4/parsec", "nan"])
def test_no_rates(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_rate(text, where="--rate")


def test_token_counts() -> None:
    assert [units.parse_tokens(text, where="--context") for text in ("512", "2k", " 64")] == [512, 2048, 64]
    for text in ("", "0", "-1", "2.5k", "k", "x", "²"):
        with pytest.raises(UsageError):
            units.parse_tokens(text, where="--context")


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("ttft=500ms, tpot=50ms,e2e=2s", {"ttft": 0.5, "tpot": 0.05, "e2e": 2.0}),
        ("ttft=500ms tpot = 50ms", {"ttft": 0.5, "tpot": 0.05}),
        ("TTFT:2min,e2el:1h", {"ttft": 120.0, "e2e": 3600.0}),
        ("p99_ttft=1s", {"p99_ttft": 1.0}),
        ("p99_9_e2el=1s,ttft=1s", {"p99_9_e2e": 1.0, "ttft": 1.0}),
        ("", {}),
    ],
)
def test_limits(text: str, limits: dict[str, float]) -> None:
    assert units.parse_limits(text, where="--slo") == pytest.approx(limits)


@pytest.mark.parametrize(
    "text", ["ttft", "ttft=", "speed=3s", "ttft=1s,ttft=2s", "ttft=0", "ttft=x", "itl=5ms", "p99=1s", "ttft=-1s"]
)
def test_no_limits(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_limits(text, where="--slo")
    assert caught.value.where == "--slo"


def test_limits_on_requests_and_on_percentiles_are_told_apart() -> None:
    limits = units.parse_limits("p99_ttft=1s,tpot=50ms,p99_9_e2e=9s", where="--slo")
    assert units.request_limits(limits) == {"tpot": 0.05}
    assert [units.percentile_of(name) for name in limits] == [(99.0, "ttft"), None, (99.9, "e2e")]


READERS: list[Callable[[str], object]] = [
    lambda text: units.parse_duration(text, where="--x"),
    units.parse_bytes,
    lambda text: units.parse_rate(text, where="--x"),
    lambda text: units.parse_tokens(text, where="--x"),
    lambda text: units.parse_limits(text, where="--x"),
]


@given(st.text(max_size=20) | st.from_regex(r"[0-9.e+-]{1,9}[a-zµ/]{0,4}", fullmatch=True))
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    for read in READERS:
        with contextlib.suppress(UsageError):
            read(text)


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_duration_that_is_written_is_read_again(value_s: float) -> None:
    assert units.parse_duration(units.format_duration(value_s), where="--x") == pytest.approx(
        value_s, rel=1e-9, abs=1e-12
    )


def test_durations_and_limits_in_words() -> None:
    assert [units.format_duration(value) for value in (0.2, 1.5, 90.0, 120.0, 7200.0, 2e-5, 0.0)] == [
        "200ms", "1.5s", "90s", "2min", "2h", "20us", "0s",
    ]  # fmt: skip
    assert units.format_limits({"ttft": 0.5, "p99_e2e": 20.0}) == "ttft=500ms,p99_e2e=20s"
