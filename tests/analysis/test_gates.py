"""Conditions for continuous integration."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis import gates
from kvload.analysis.comparison.compare import compare
from kvload.analysis.records.pairs import ArmRuns
from kvload.analysis.run.summary import summarise
from kvload.errors import GateFailedError, UsageError
from tests.analysis.synthetic import mixed

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


def test_every_figure_is_known_before_it_is_measured(tmp_path: Path) -> None:
    report = summarise(mixed(tmp_path / "run", count=40))
    assert set(gates.run_values(report)) <= gates.run_figures()
    runs = [ArmRuns(name, (mixed(tmp_path / name, count=40),), baseline=name == "a") for name in ("a", "b")]
    (values,) = gates.comparison_values(compare(runs)).values()
    assert set(values) <= gates.comparison_figures()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("atainment<0.99", "did you mean attainment"),
        ("ttft.p98>1s", "did you mean ttft.p9"),
        ("x:ttft.p99>1s", "no arm 'x'"),
        ("attainment<0.99", "no attainment without limits"),
        ("goodput<1", "without limits"),
    ],
)
def test_a_gate_that_cannot_be_met_is_refused_before_anything_runs(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        gates.check_names([gates.parse(text)], gates.run_figures(), arms=["run"], limited=False)
    assert words in f"{caught.value} {caught.value.hint}"
    gates.check_names([gates.parse("run:ttft.p99>1s")], gates.run_figures(), arms=["run"], limited=False)
