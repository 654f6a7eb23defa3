"""Conditions for continuous integration."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis import gates
from kvload.errors import GateFailedError, UsageError

VALUES: dict[str, dict[str, float | None]] = {
    "kivi-4": {"attainment": 0.98, "inflation.mean": 1.2, "goodput": None},
    "int8": {"attainment": 1.0},
}


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("attainment<0.99", ["attainment<0.99: attainment is 0.98 (kivi-4)"]),
        ("attainment < 99 %", ["attainment < 99 %: attainment is 0.98 (kivi-4)"]),
        ("attainment<=1", 2),
        ("int8:attainment<0.99", []),
        ("inflation.mean>1.05", ["inflation.mean>1.05: inflation.mean is 1.2 (kivi-4)"]),
        ("inflation.mean>=1.2e0", 1),
        ("goodput>0", ["goodput>0: goodput was not measured (kivi-4)"]),
    ],
)
def test_conditions(text: str, reasons: list[str] | int) -> None:
    found = gates.evaluate([gates.parse(text)], VALUES)
    assert (len(found) if isinstance(reasons, int) else found) == reasons


@pytest.mark.parametrize("text", ["", "attainment", "attainment<", "<1", "attainment=1", "__import__('os')>1", "a<b"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        gates.parse(text)


@pytest.mark.parametrize("text", ["attainmnt<1", "gear:attainment<1", "int8:inflation.mean>1"])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        gates.evaluate([gates.parse(text)], VALUES)


def test_check_raises_with_all_reasons() -> None:
    with pytest.raises(GateFailedError, match=r"0\.98.*1\.2"):
        gates.check([gates.parse("attainment<0.99"), gates.parse("inflation.mean>1")], VALUES)


@given(st.text(max_size=40))
def test_any_text_is_a_gate_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert gates.parse(text).sign in text
