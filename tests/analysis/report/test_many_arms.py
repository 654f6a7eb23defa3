"""A comparison of many methods with long and hostile names: what stands first stays short, and every link leads on."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from kvload.analysis import words
from kvload.analysis.comparison.compare import compare
from kvload.analysis.comparison.model import Comparison
from kvload.analysis.records.pairs import ArmRuns
from kvload.analysis.report import compare_terminal, first_screen, html_compare
from kvload.rundir import RunDir
from tests.analysis.comparison.test_compare import arms_of

LONG = "streamingllm:start=4,recent=128,and-a-very-long-option=1234567890"
NAMES = ["größe", "ä", "ö", "日本語", "<script>x</script>", "[red]r[/red]", LONG]


def noisy(folder: Path, repeats: int = 1) -> tuple[ArmRuns, ArmRuns, tuple[RunDir, ...]]:
    base, floor, other = arms_of(folder, others=1, count=40, repeats=repeats, text="an answer")
    return base, floor, other.runs


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    base, floor, runs = noisy(tmp_path_factory.mktemp("many"))
    return compare([base, floor, *(ArmRuns(name, runs) for name in NAMES)])


def test_many_methods_are_counted_and_few_are_named(many: Comparison, tmp_path: Path) -> None:
    assert first_screen.subject(many) == "7 methods against none"
    base, floor, runs = noisy(tmp_path)
    assert first_screen.subject(compare([base, floor])) == "The noise of none"
    assert first_screen.subject(compare([base, floor, ArmRuns("a", runs), ArmRuns("b", runs)])) == "a, b against none"


def test_changes_stand_beside_both_runs_that_they_are_against(many: Comparison) -> None:
    table = first_screen.summary_table(many)
    assert [row.cells[0] for row in table.rows] == ["none", "none (again)", *NAMES]
    assert not any(table.rows[1].details)
    assert "against both runs of none" in (table.caption or "")


def test_every_link_of_the_page_has_one_target(many: Comparison) -> None:
    page = html_compare.render(many)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="#([^"]*)"', page)
    assert len(links) > len(NAMES)
    assert set(links) <= set(ids)
    assert "<script" not in page


def test_a_long_name_leaves_room_for_what_is_said_of_it(many: Comparison) -> None:
    console = Console(file=io.StringIO(), width=80)
    compare_terminal.render(many, console, details=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    place = lines.index(f"  {LONG}:")
    assert len(lines[place + 1].split()) > 5
    assert "  [red]r[/red]:" in lines


def test_what_would_decide_is_said_with_what_it_decides(many: Comparison) -> None:
    steps = first_screen.next_steps(many)
    undecided = {
        finding.advice
        for verdict in many.verdicts.values()
        for finding in verdict.findings
        if finding.outcome == "undecided"
    }
    assert undecided
    assert {step.partition(": ")[2] for step in steps} == undecided
    assert all(re.match(r"[a-z ,]+ of 7 methods: ", step) for step in steps)


def test_names_in_a_row() -> None:
    assert [words.listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize("most", [9, 10, 24])
def test_a_shortened_name_keeps_both_ends(most: int) -> None:
    short = words.shortened(LONG, most)
    assert len(short) == most
    head, tail = short.split("…")
    assert LONG.startswith(head)
    assert LONG.endswith(tail)
    assert words.shortened("kivi-4", most) == "kivi-4"
