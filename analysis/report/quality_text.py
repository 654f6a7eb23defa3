"""Quality for the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvload.analysis.quality.assess import Quality, TaskChange
from kvload.analysis.quality.negatives import NegativeCount


def print_quality(found: Quality, console: Console) -> None:
    """Print the tables of :class:`kvload.analysis.quality.assess.Quality`."""
    console.print(Text(f"Scores against {found.base_name}", style="bold"))
    console.print(_changes(found.changes))
    console.print()
    rule = f"baseline at or above its {found.gate}" if found.gate in {"median", "mean"} else f"baseline >= {found.gate}"
    console.print(Text(f"Negative samples ({rule})", style="bold"))
    console.print(_negatives(found))
    console.print(
        Text("mirror: the same rule with the roles exchanged; p: McNemar's test of the two counts", style="dim")
    )
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _changes(changes: list[TaskChange]) -> Table:
    table = Table(box=None, header_style="cyan", padding=(0, 2, 0, 0))
    for name in ("arm", "task"):
        table.add_column(name)
    for name in ("n", "baseline", "arm", "difference", "interval"):
        table.add_column(name, justify="right")
    for change in changes:
        difference = change.difference
        low, high = (_number(each, sign=True) for each in (difference.low, difference.high))
        table.add_row(
            change.arm,
            "all" if change.task is None else change.task,
            f"{change.n:,}",
            _number(change.base_mean),
            _number(change.arm_mean),
            _number(difference.estimate, sign=True),
            f"{low} .. {high}",
        )
    return table


def _negatives(found: Quality) -> Table:
    table = Table(box=None, header_style="cyan", padding=(0, 2, 0, 0))
    for name in ("methods", "task"):
        table.add_column(name)
    columns = ["theta", "eligible", "negative", "mirror", "p"]
    if found.floor_name is not None:
        columns += ["A/A negative", "A/A mirror"]
    for name in columns:
        table.add_column(name, justify="right")
    for count in found.negatives:
        table.add_row(*_negative(count, found.floor_name is not None))
    return table


def _negative(count: NegativeCount, has_floor: bool) -> list[str]:
    p_value = count.against_mirror.p_value
    row = [
        " and ".join(count.methods),
        "all" if count.task is None else count.task,
        f"{100 * count.theta:g} %",
        f"{count.eligible:,}",
        f"{count.negative:,}",
        f"{count.mirror:,}",
        "-" if p_value is None else ("<0.001" if p_value < 0.001 else f"{p_value:.3f}"),
    ]
    if has_floor:
        row += ["-" if each is None else f"{each:,}" for each in (count.floor_negative, count.floor_mirror)]
    return row


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.4g}" if sign else f"{value:.4g}"
