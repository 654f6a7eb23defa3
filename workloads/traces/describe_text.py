"""A trace's description for the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvload.workloads.traces.describe import Description, Lengths
from kvload.workloads.traces.reader import Format

_LEVELS = " ▁▂▃▄▅▆▇█"
_PICTURE_ROWS = 4
_MINUTE_S, _HOUR_S = 60, 3600


def print_description(name: str, form: Format, found: Description, console: Console, notes: Sequence[str] = ()) -> None:
    """Print what :func:`kvload.workloads.traces.describe.describe` found, and what was noted while it was read."""
    console.print(Text(name, style="bold"), Text(f"{form.title}; {form.assumes}", style="dim"), sep="\n")
    for note in notes:
        console.print(Text(f"· {note}", style="yellow"))
    console.print()
    facts = Table.grid(padding=(0, 2))
    for label, value in _facts(found):
        facts.add_row(Text(label, style="cyan"), Text(value))
    parts: list[RenderableType] = [facts]
    if found.input or found.output or found.text_characters:
        parts += ["", _lengths(found)]
    if len(found.bins) > 1 and found.bin_s:
        parts += ["", *_picture(found)]
    console.print(Padding(Group(*parts), (0, 0, 0, 2), expand=False))


def _facts(found: Description) -> Iterable[tuple[str, str]]:
    yield "requests", f"{found.requests:,}" + (f", {found.failed:,} marked as failed" if found.failed else "")
    if found.span_s is None:
        yield "arrivals", "the trace has no times"
    else:
        longer = f" ({_duration(found.span_s)})" if found.span_s >= _MINUTE_S else ""
        yield "span", f"{found.span_s:,.1f} s{longer}"
        if found.rate is not None:
            yield "rate", f"{found.rate:.2f} requests/s, at most {found.peak_rate:,} in one second"
        if found.gap_cv is not None:
            yield "gaps", f"CV {found.gap_cv:.2f} (1 is Poisson), {found.distinct_arrivals:,} distinct times"
    if found.blocks and found.block_reuse is not None:
        yield "blocks", f"{found.blocks:,}, {100 * found.block_reuse:.1f} % seen before"
    if found.sessions:
        yield "sessions", f"{found.sessions:,}, up to {found.turns_max} turns, {found.followers:,} later turns"
    if found.scored:
        yield "scored", f"{found.scored:,} have an expected answer"
    if found.tasks:
        yield "tasks", ", ".join(f"{task} {count:,}" for task, count in found.tasks.items())


def _lengths(found: Description) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
    table.add_column("length")
    for name in ("count", "mean", "min", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    _add(table, "input tokens", found.input)
    _add(table, "output tokens", found.output)
    _add(table, "text characters", found.text_characters)
    return table


def _add(table: Table, label: str, lengths: Lengths | None) -> None:
    if lengths:
        percentiles = [f"{value:,.0f}" for value in lengths.percentiles.values()]
        table.add_row(
            label,
            f"{lengths.count:,}",
            f"{lengths.mean:,.1f}",
            f"{lengths.minimum:,}",
            *percentiles,
            f"{lengths.maximum:,}",
        )


def _picture(found: Description) -> Iterable[Text]:
    """Arrivals over time as columns of blocks, the rate of the highest bin beside them."""
    highest = max(found.bins)
    steps = len(_LEVELS) - 1
    heights = [count * _PICTURE_ROWS * steps / highest for count in found.bins]
    # a bin with any arrival stays visible
    heights = [max(height, 1.0) if count else 0.0 for height, count in zip(heights, found.bins, strict=True)]
    for row in reversed(range(_PICTURE_ROWS)):
        line = "".join(_LEVELS[round(min(max(height - row * steps, 0), steps))] for height in heights)
        label = f" {highest / (found.bin_s or 1):.3g}/s" if row == _PICTURE_ROWS - 1 else ""
        yield Text(line, style="green", no_wrap=True).append(label, style="dim")
    end = _duration(found.span_s or 0.0)
    yield Text("0" + end.rjust(max(len(found.bins) - 1, len(end) + 1)), style="dim", no_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.1f}s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.1f}min"
    return f"{seconds / _HOUR_S:.1f}h"
