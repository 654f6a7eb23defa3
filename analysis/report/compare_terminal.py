"""A comparison on a terminal: verdicts first, then what they rest on."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvload.analysis.comparison.model import Comparison
from kvload.analysis.report.compare_tables import notes_of, tables_of, what_was_compared
from kvload.analysis.report.rich_layout import foreign, heading, lines, table
from kvload.terminal import plain

_STYLES = {
    "better": "green",
    "worse": "red",
    "same": "cyan",
    "differs": "magenta",
    "undecided": "yellow",
    "unmeasured": "dim",
}


def render(comparison: Comparison, console: Console) -> None:
    """Print a comparison."""
    heading(console, "What was compared")
    lines(console, what_was_compared(comparison))
    if comparison.resolution is not None and comparison.resolution.drifts:
        console.print()
        console.print(Text(f"  {comparison.resolution.sentence()}", style="bold yellow"))
    heading(console, "Verdicts")
    _verdicts(comparison, console)
    for data in tables_of(comparison):
        heading(console, data.title)
        table(console, data)
    if not any(change.lengths for change in comparison.comparisons):
        heading(console, "Answer lengths")
        lines(console, ["refused: lengths were forced, so they say nothing about the model"])
    if notes := notes_of(comparison):
        heading(console, "Notes")
        lines(console, notes, "· ")


def _verdicts(comparison: Comparison, console: Console) -> None:
    for verdict in comparison.verdicts.values():
        console.print(Text.assemble("  ", (plain(verdict.arm), "bold"), plain(f": {verdict.headline}")))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for finding in verdict.findings:
            outcome = Text(finding.outcome, style=_STYLES[finding.outcome])
            grid.add_row(Text(f"    {finding.topic}"), outcome, foreign(finding.lead))
            for sentence in finding.detail:
                grid.add_row("", "", foreign(sentence, "dim"))
            if finding.advice:
                grid.add_row("", "", foreign(f"→ {finding.advice}"))
        console.print(grid)
