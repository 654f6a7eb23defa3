"""Quality for the terminal: one row an arm, one row a task, and on request everything."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from kvload.analysis import words
from kvload.analysis.quality.assess import Quality, TaskChange
from kvload.analysis.quality.negatives import NegativeCount
from kvload.analysis.report.rich_layout import heading, lines, table
from kvload.analysis.report.tables import Row, TableData
from kvload.analysis.statistics.estimates import Estimate

_FOUND = 0.05
_LONG_NAME = 24


def print_quality(found: Quality, console: Console, *, details: bool = False) -> None:
    """Print :class:`kvload.analysis.quality.assess.Quality`.

    Args:
        found: what is printed.
        console: where to.
        details: every arm, task and theta, instead of the net per task.
    """
    shown = [arms_table(found), tasks_table(found), sets_table(found)]
    if details:
        shown = [arms_table(found), scores_table(found), counts_table(found)]
    for data in shown:
        if data is not None and data.rows:
            heading(console, data.title)
            table(console, data)
    if found.notes:
        heading(console, "Notes")
        lines(console, found.notes, "· ")
    if not details and any(count.task is not None for count in found.negatives):
        console.print(Text("  every arm, task and theta: --details", style="dim"))


def _gate(found: Quality) -> str:
    return f"its {found.gate}" if found.gate in {"median", "mean"} else found.gate


def _thetas(found: Quality) -> list[float]:
    return sorted({count.theta for count in found.negatives})


def _single(found: Quality, arm: str, theta: float, task: str | None) -> NegativeCount | None:
    return next(
        (c for c in found.negatives if c.methods == (arm,) and c.theta == theta and c.task == task),
        None,
    )


def arms_table(found: Quality) -> TableData:
    """Every arm over all tasks: its mean score and its negative samples, net of those that rose."""
    thetas = _thetas(found)
    rows = []
    for change in found.changes:
        if change.task is not None:
            continue
        counts = [_single(found, change.arm, theta, None) for theta in thetas]
        primary = counts[0] if counts else None
        rows.append(
            Row(
                cells=(
                    change.arm + (" · A/A" if change.arm == found.floor_name else ""),
                    f"{change.n:,}",
                    words.score(change.base_mean),
                    words.score(change.arm_mean),
                    _signed(change.difference.estimate),
                    *(_fell_rose(count) for count in counts),
                    _net(primary),
                    _p(primary.adjusted_p if primary else None),
                ),
                details=(
                    *("", "", "", ""),
                    _ends(change.difference, "+.3f"),
                    *("" for _ in counts),
                    _ends(primary.net, "+.0f") if primary else "",
                    "",
                ),
            )
        )
    first = f" at {thetas[0]:.0%}" if thetas else ""
    eligible = next((c.eligible for c in found.negatives if c.task is None and len(c.methods) == 1), 0)
    return TableData(
        title=f"Scores against {found.base_name}, all tasks",
        columns=(
            *("arm", "n", "base", "arm", "change"),
            *(f"fell, rose {theta:.0%}" for theta in thetas),
            *(f"net{first}", "adjusted p"),
        ),
        rows=rows,
        caption=f"fell: negative samples, out of about {eligible:,} whose baseline reaches {_gate(found)} of the"
        " task; rose: the mirror, the same rule with the roles exchanged; net: the one less the other, with its 95 %"
        " interval; p: McNemar's, adjusted over the arms (Holm)",
    )


def tasks_table(found: Quality) -> TableData | None:
    """The net of every task and arm at the primary theta."""
    tasks = list(dict.fromkeys(change.task for change in found.changes if change.task is not None))
    thetas = _thetas(found)
    if not tasks or not thetas:
        return None
    arms = [change.arm for change in found.changes if change.task is None and change.arm != found.floor_name]
    short, common = shortened(arms)
    rows = []
    for task in tasks:
        counts = [_single(found, arm, thetas[0], task) for arm in arms]
        eligible = max((count.eligible for count in counts if count), default=0)
        rows.append(Row(cells=(task, f"{eligible:,}", *(_starred(count) for count in counts))))
    return TableData(
        title=f"Net negative samples at {thetas[0]:.0%}, by task",
        columns=("task", "eligible", *short),
        rows=rows,
        caption=f"*: p < {_FOUND:g} after Holm's correction over all {len(tasks) * len(arms)} figures"
        + (f"; all arms: {common}" if common else ""),
    )


def shortened(names: Sequence[str]) -> tuple[list[str], str]:
    """Long names without the words that all of them have, and these words.

    >>> shortened(["h2o_llama-3-8b-instruct_w32", "h2o_llama-3-8b-instruct_w64"])
    (['w32', 'w64'], 'h2o_llama-3-8b-instruct')
    """
    words_of = [name.split("_") for name in names]
    if len(names) < 2 or max(map(len, names)) < _LONG_NAME:
        return list(names), ""
    common = [word for word in words_of[0] if all(word in each for each in words_of)]
    short = ["_".join(word for word in each if word not in common) for each in words_of]
    return (short, "_".join(common)) if all(short) and len(set(short)) == len(short) else (list(names), "")


def sets_table(found: Quality) -> TableData | None:
    """Samples that are negative under several arms at once."""
    sets = list(dict.fromkeys(count.methods for count in found.negatives if len(count.methods) > 1))
    thetas = _thetas(found)
    rows = []
    for methods in sets:
        counts = [
            next(c for c in found.negatives if c.methods == methods and c.theta == theta and c.task is None)
            for theta in thetas
        ]
        rows.append(Row(cells=(_set_name(found, methods), *(_fell_rose(count) for count in counts))))
    return TableData(
        title="Negative under all arms of a set at once",
        columns=("set", *(f"fell, rose {theta:.0%}" for theta in thetas)),
        rows=rows,
    )


def _set_name(found: Quality, methods: tuple[str, ...]) -> str:
    arms = {change.arm for change in found.changes if change.arm != found.floor_name}
    return f"all {len(methods)} arms" if set(methods) == arms else " and ".join(methods)


def scores_table(found: Quality) -> TableData:
    """Mean scores of every arm and task."""
    return TableData(
        title=f"Scores against {found.base_name}",
        columns=("arm, task", "n", "base", "arm", "change"),
        rows=[_score_row(change) for change in found.changes],
    )


def _score_row(change: TaskChange) -> Row:
    return Row(
        cells=(
            change.arm if change.task is None else f"  {change.task}",
            f"{change.n:,}",
            words.score(change.base_mean),
            words.score(change.arm_mean),
            _signed(change.difference.estimate),
        ),
        details=("", "", "", "", _ends(change.difference, "+.3f")),
    )


def counts_table(found: Quality) -> TableData:
    """Negative samples of every arm, task and theta."""
    has_floor = found.floor_name is not None
    rows = []
    for count in found.negatives:
        if len(count.methods) > 1 and count.task is not None:
            continue
        name = _set_name(found, count.methods) if len(count.methods) > 1 else count.methods[0]
        again = [words.whole(count.floor_negative), words.whole(count.floor_mirror)] if has_floor else []
        rows.append(
            Row(
                cells=(
                    name if count.task is None else f"  {name}, {count.task}",
                    f"{count.theta:.0%}",
                    f"{count.eligible:,}",
                    f"{count.negative:,}",
                    f"{count.mirror:,}",
                    f"{count.negative - count.mirror:+,}",
                    _ends(count.net, "+.0f"),
                    _p(count.against_mirror.p_value),
                    _p(count.adjusted_p),
                    *again,
                )
            )
        )
    return TableData(
        title="Negative samples",
        columns=(
            *("arm, task", "theta", "eligible", "fell", "rose", "net", "95 %", "p", "adjusted p"),
            *(("A/A fell", "A/A rose") if has_floor else ()),
        ),
        rows=rows,
        caption="p: McNemar's test of fell against rose; adjusted at the least theta alone (Holm)",
    )


def _fell_rose(count: NegativeCount | None) -> str:
    return words.ABSENT if count is None else f"{count.negative:,}, {count.mirror:,}"


def _net(count: NegativeCount | None) -> str:
    return words.ABSENT if count is None else f"{count.negative - count.mirror:+,}"


def _starred(count: NegativeCount | None) -> str:
    found = count is not None and count.adjusted_p is not None and count.adjusted_p < _FOUND
    return _net(count) + ("*" if found else "")


def _ends(value: Estimate, form: str) -> str:
    return "" if value.low is None or value.high is None else f"{value.low:{form}} to {value.high:{form}}"


def _signed(value: float | None) -> str:
    return words.ABSENT if value is None else f"{value:+.3f}"


def _p(value: float | None) -> str:
    return words.p_text(value).removeprefix("= ")
