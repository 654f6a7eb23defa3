"""A sweep on a terminal: what each method carries first, then every load."""

from rich.console import Console
from rich.text import Text

from kvload.analysis.report import sweep_tables
from kvload.analysis.report.rich_layout import facts, heading, lines, table
from kvload.analysis.sweep.model import Sweep


def render(sweep: Sweep, console: Console) -> None:
    """Print a sweep."""
    console.print()
    console.print(Text(sweep_tables.identity(sweep), style="dim"))
    summary = sweep_tables.summary_table(sweep)
    heading(console, summary.title)
    table(console, summary)
    console.print()
    for sentence in sweep_tables.headline(sweep):
        console.print(Text(f"  {sentence}", style="bold"))
    levels = sweep_tables.levels_table(sweep)
    heading(console, levels.title)
    table(console, levels)
    heading(console, "What was asked")
    facts(console, sweep_tables.facts(sweep))
    if said := sweep_tables.notes(sweep):
        heading(console, "Notes")
        lines(console, said, "· ")
