"""A comparison on a terminal: verdicts first, then what they rest on."""

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvload.analysis.comparison.model import Comparison
from kvload.analysis.report import first_screen
from kvload.analysis.report.compare_tables import course_of, notes_of, tables_of, what_was_compared
from kvload.analysis.report.rich_layout import facts, foreign, heading, lines, table
from kvload.terminal import plain

_STYLES = {
    "better": "green",
    "worse": "red",
    "same": "cyan",
    "differs": "magenta",
    "undecided": "yellow",
    "unmeasured": "dim",
}


_ADVICE_STYLES = {
    "use it": "bold green",
    "do not": "bold red",
    "a trade": "bold magenta",
    "no difference": "bold cyan",
    "cannot tell": "bold yellow",
}


def render(comparison: Comparison, console: Console, *, details: bool = True) -> None:
    """Print a comparison: one screen, and with ``details`` all that it rests on."""
    _first_screen(comparison, console)
    if not details:
        return
    heading(console, "What was compared")
    lines(console, what_was_compared(comparison))
    if comparison.verdicts:
        heading(console, "Verdicts")
        _verdicts(comparison, console)
    for data in tables_of(comparison):
        heading(console, data.title)
        table(console, data)
    if not any(change.lengths for change in comparison.comparisons):
        heading(console, "Answer lengths")
        lines(console, ["refused: lengths were forced, so they say nothing about the model"])
    if course := course_of(comparison):
        heading(console, "How the runs were made")
        lines(console, course, "· ")
    if notes := notes_of(comparison):
        heading(console, "Notes")
        lines(console, notes, "· ")


def _first_screen(comparison: Comparison, console: Console) -> None:
    console.print()
    console.print(foreign(f"{first_screen.subject(comparison)} · {first_screen.identity(comparison)}", "dim"))
    for line in first_screen.left_out(comparison):
        console.print(foreign(line, "bold red"))
    for line in first_screen.limits(comparison):
        console.print(foreign(line, "dim"))
    if comparison.resolution is not None and comparison.resolution.drifts:
        console.print()
        console.print(Text(f"This machine drifts: {comparison.resolution.sentence()}", style="bold yellow"))
    console.print()
    table(console, first_screen.summary_table(comparison))
    console.print()
    sentences = first_screen.sentences(comparison)
    names_above = any(cell_len(plain(said.arm)) > console.width // 3 for said in sentences)
    for said in sentences:
        name = foreign(f"  {said.arm}:", _ADVICE_STYLES[said.advice])
        if names_above:
            console.print(name)
            console.print(Padding(foreign(said.text), (0, 0, 0, 4), expand=False))
            continue
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(name, foreign(said.text))
        console.print(grid)
    trust, steps = first_screen.trust(comparison), first_screen.next_steps(comparison)
    more = [("Trust", trust)] if trust else []
    more += [("Runs", made) for made in first_screen.course(comparison)]
    more += [("Next", step) for step in steps[:2]]
    if more:
        console.print()
        facts(console, more)


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
