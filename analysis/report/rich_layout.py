"""Plain rows of text laid out on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kvload.analysis.report.tables import Facts, TableData


def heading(console: Console, text: str) -> None:
    """A section's title."""
    console.print()
    console.print(Text(text, style="bold"))


def lines(console: Console, texts: list[str], mark: str = "") -> None:
    """Lines of text, indented."""
    for text in texts:
        console.print(f"  {mark}{escape(text)}", highlight=False)


def facts(console: Console, pairs: Facts) -> None:
    """Names on the left, what is said about them on the right."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(f"  {escape(name)}", escape(value))
    console.print(grid)


def table(console: Console, data: TableData) -> None:
    """A table with details below its figures."""
    laid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    first, *others = data.columns
    laid.add_column(f"  {first}" if first else "", no_wrap=True)
    for column in others:
        laid.add_column(column, justify="right")
    for row in data.rows:
        laid.add_row(f"  {escape(row.cells[0])}", *map(escape, row.cells[1:]))
        if row.details:
            laid.add_row(*(Text(detail, style="dim") for detail in row.details))
    if data.caption:
        laid.caption = f"  {data.caption}"
        laid.caption_justify = "left"
    console.print(laid)
