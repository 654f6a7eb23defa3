"""Plain rows of text laid out on a terminal. No figure is ever cut: a table too wide for it becomes one block a row."""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvload.analysis.report.tables import Facts, Row, TableData
from kvload.terminal import plain

_INDENT = 2
_GAP = 2
_NARROW = 72
"""Below this width names stand above what is said about them."""


def foreign(text: str, style: str = "") -> Text:
    """Text that may come from elsewhere, as wide as it will be on the terminal."""
    return Text(plain(text), style=style, overflow="fold")


def heading(console: Console, text: str) -> None:
    """A section's title."""
    console.print()
    console.print(Text(text, style="bold"))


def lines(console: Console, texts: list[str], mark: str = "") -> None:
    """Lines of text, indented; where one is wrapped, what follows stands below its first word."""
    for text in texts:
        grid = Table.grid()
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(f"  {mark}", foreign(text))
        console.print(grid)


def facts(console: Console, pairs: Facts) -> None:
    """Names on the left, what is said about them on the right; below each other on a narrow terminal."""
    if console.width < _NARROW:
        for name, value in pairs:
            console.print(Padding(foreign(name, "dim"), (0, 0, 0, _INDENT), expand=False))
            console.print(Padding(foreign(value), (0, 0, 0, 2 * _INDENT), expand=False))
        return
    grid = Table.grid(padding=(0, _GAP))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(foreign(f"{' ' * _INDENT}{name}"), foreign(value))
    console.print(grid)


def table(console: Console, data: TableData) -> None:
    """A table with details below its figures, or one block a row where it would not fit."""
    if natural_width(data) <= console.width:
        _columns(console, data)
    else:
        _blocks(console, data)
    if data.caption:
        console.print(Padding(foreign(data.caption, "dim"), (0, 0, 0, _INDENT), expand=False))


def natural_width(data: TableData) -> int:
    """Columns of the terminal that the table needs so that nothing is cut."""
    return _INDENT + sum(_widths(data)) + _GAP * (len(data.columns) - 1)


def _widths(data: TableData) -> list[int]:
    texts = [data.columns, *(part for row in data.rows for part in (row.cells, row.details) if part)]
    return [max(cell_len(plain(text[column])) for text in texts) for column in range(len(data.columns))]


def _columns(console: Console, data: TableData) -> None:
    widths = _widths(data)

    def line(cells: list[Text]) -> Text:
        laid = Text(" " * _INDENT)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            cell.align("left" if place == 0 else "right", width)
            laid.append(" " * _GAP if place else "").append_text(cell)
        laid.rstrip()
        return laid

    console.print(line([foreign(column, "dim") for column in data.columns]), no_wrap=True)
    for row in data.rows:
        console.print(line([foreign(cell) for cell in row.cells]), no_wrap=True)
        if any(row.details):
            console.print(line([foreign(detail, "dim") for detail in row.details]), no_wrap=True)


def _blocks(console: Console, data: TableData) -> None:
    for row in data.rows:
        console.print(
            Padding(foreign(row.cells[0].strip() or data.columns[0], "bold"), (0, 0, 0, _INDENT), expand=False)
        )
        current = Text(" " * 2 * _INDENT)
        for part in _parts(data, row):
            if current.cell_len > 2 * _INDENT and current.cell_len + _GAP + part.cell_len > console.width:
                console.print(current)
                current = Text(" " * 2 * _INDENT)
            elif current.cell_len > 2 * _INDENT:
                current.append(" " * _GAP)
            current.append_text(part)
        console.print(current)


def _parts(data: TableData, row: Row) -> Iterator[Text]:
    """``TTFT p50, ms 84 (80 to 91)`` for each figure."""
    details = row.details or [""] * len(row.cells)
    metric = ""
    for column, cell, detail in list(zip(data.columns, row.cells, details, strict=True))[1:]:
        metric, name = _full_name(metric, column)
        if not cell:
            continue
        part = foreign(f"{name} ", "dim")
        part.append(cell, style="not dim")
        if detail:
            part.append(f" ({detail})")
        yield part


def _full_name(before: str, column: str) -> tuple[str, str]:
    """A column's metric, and its name in full: ``p99`` after ``TTFT p50, ms`` is ``TTFT p99, ms``."""
    first, _, rest = column.partition(" p")
    if rest and rest[0].isdigit():
        unit = rest.partition(", ")[2]
        return f"{first}|{unit}", column
    if column[:1] == "p" and column[1:].isdigit() and before:
        first, _, unit = before.partition("|")
        return before, f"{first} {column}" + (f", {unit}" if unit else "")
    return "", column
