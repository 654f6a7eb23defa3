"""No figure of a report is cut, whatever the terminal's width: every number printed wide is printed narrow as well."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from kvload.analysis.comparison.compare import compare
from kvload.analysis.report import compare_terminal, rich_layout, terminal
from kvload.analysis.report.tables import Row, TableData
from kvload.analysis.run.summary import summarise
from tests.analysis.comparison.test_compare import arms_of
from tests.analysis.synthetic import mixed

NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")


def numbers(render: Callable[[Console], None], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    render(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    return sorted(NUMBER.findall(text))


def missing(render: Callable[[Console], None], width: int) -> list[str]:
    """Figures that a wide terminal shows more often: headers stand once in a table and once a row in blocks."""
    narrow, wide = numbers(render, width), numbers(render, 240)
    return [number for number in set(wide) if narrow.count(number) < wide.count(number)]


@pytest.mark.parametrize("width", [60, 80, 100, 132, 160])
def test_a_report_keeps_every_figure(width: int, tmp_path: Path) -> None:
    report = summarise(mixed(tmp_path / "run"))
    assert missing(lambda console: terminal.render(report, console), width) == []


@pytest.mark.parametrize("width", [60, 80, 100, 132, 160])
def test_a_comparison_keeps_every_figure(width: int, tmp_path: Path) -> None:
    found = compare(arms_of(tmp_path, others=1, count=40, repeats=1, text="an answer"))
    assert missing(lambda console: compare_terminal.render(found, console, details=True), width) == []


def test_a_table_that_fits_is_a_table_and_one_that_does_not_is_blocks() -> None:
    data = TableData(
        title="t",
        columns=("arm", "TTFT p50, ms", "p99"),
        rows=[Row(cells=("none", "1,234", "5,678"), details=("", "1,200 to 1,300", "5,000 to 6,000"))],
    )
    wide, narrow = Console(file=io.StringIO(), width=80), Console(file=io.StringIO(), width=30)
    rich_layout.table(wide, data)
    rich_layout.table(narrow, data)
    assert wide.file.getvalue().splitlines()[0].split() == ["arm", "TTFT", "p50,", "ms", "p99"]  # type: ignore[attr-defined]
    blocks = narrow.file.getvalue()  # type: ignore[attr-defined]
    assert "TTFT p99, ms 5,678" in " ".join(blocks.split())
    assert "(5,000 to 6,000)" in " ".join(blocks.split())
