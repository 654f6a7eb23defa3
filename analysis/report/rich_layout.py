"""Plain rows of text laid out on a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvload.analysis.report.tables import Facts, TableData
from kvload.terminal import plain


def foreign(text: str, style: str = "") -> Text:
    """Text that may come from elsewhere, as wide as it will be on the terminal."""
    return Text(plain(text), style=style)


def heading(console: Console, text: str) -> None:
    """A section's title."""
    console.print()
    console.print(Text(text, style="bold"))


def lines(console: Console, texts: list[str], mark: str = "") -> None:
    """Lines of text, indented."""
    for text in texts:
        console.print(foreign(f"  {mark}{text}"))


def facts(console: Console, pairs: Facts) -> None:
    """Names on the left, what is said about them on the right."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(foreign(f"  {name}"), foreign(value))
    console.print(grid)


def table(console: Console, data: TableData) -> None:
    """A table with details below its figures."""
    laid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    first, *others = data.columns
    laid.add_column(Text(f"  {first}" if first else ""), no_wrap=True)
    for column in others:
        laid.add_column(foreign(column), justify="right")
    for row in data.rows:
        laid.add_row(foreign(f"  {row.cells[0]}"), *map(foreign, row.cells[1:]))
        if row.details:
            laid.add_row(*(foreign(detail, "dim") for detail in row.details))
    if data.caption:
        laid.caption = foreign(f"  {data.caption}")
        laid.caption_justify = "left"
    console.print(laid)
