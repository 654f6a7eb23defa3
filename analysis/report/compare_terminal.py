"""A comparison on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kvload.analysis.arms import ArmSummary
from kvload.analysis.comparison import ArmComparison, Comparison
from kvload.analysis.report import words
from kvload.analysis.stats import Estimate
from kvload.analysis.verdict import p_text, signed_seconds

_STYLES = {"better": "green", "worse": "red", "same": "cyan", "undecided": "yellow", "unmeasured": "dim"}


def render(comparison: Comparison, console: Console) -> None:
    """Print a comparison: verdicts first, then what they rest on."""
    _heading(console, "What was compared")
    for line in what_was_compared(comparison):
        console.print(f"  {escape(line)}", highlight=False)
    _heading(console, "Verdicts")
    _verdicts(comparison, console)
    _heading(console, "Every arm by itself")
    console.print(_arms_table(comparison))
    _heading(console, f"Change of the mean against {comparison.baseline.name}, request by request")
    console.print(_latency_table(comparison))
    _heading(console, "Where the change of E2E comes from (mean per request; the parts add up)")
    console.print(_decomposition_table(comparison))
    _heading(console, "Answer lengths, request by request")
    _lengths(comparison, console)
    if comparison.limits_s:
        _heading(console, "Service levels, request by request")
        console.print(_slo_table(comparison))
    notes = notes_of(comparison)
    if notes:
        _heading(console, "Notes")
        for note in notes:
            console.print(f"  · {escape(note)}", highlight=False)


def what_was_compared(comparison: Comparison) -> list[str]:
    """Trace, mode, repeats, limits and floor in a few lines."""
    trace = comparison.trace
    mode = {"free": "free-running", "forced": "forced-length"}[comparison.mode]
    lines = [
        f"{trace.path} ({trace.format}, {trace.used:,} of {trace.rows:,} rows), {mode}, "
        f"{words.plural(comparison.repeats, 'repeat')} of each arm",
        f"baseline: {comparison.baseline.name}"
        + (f"; noise floor: {comparison.floor.name}" if comparison.floor else "; no noise floor was measured"),
    ]
    if comparison.limits_s:
        limits = ", ".join(f"{words.METRIC_NAMES[m]} ≤ {words.seconds(v)}" for m, v in comparison.limits_s.items())
        lines.append(f"limits: {limits}")
    return lines


def notes_of(comparison: Comparison) -> list[str]:
    """Notes of the whole and of each arm."""
    return [*comparison.notes, *(f"{c.name}: {note}" for c in comparison.comparisons for note in c.notes)]


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("  arm", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _verdicts(comparison: Comparison, console: Console) -> None:
    for verdict in comparison.verdicts.values():
        console.print(f"  [bold]{escape(verdict.arm)}[/bold]: {escape(verdict.headline)}", highlight=False)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for finding in verdict.findings:
            outcome = Text(finding.outcome, style=_STYLES[finding.outcome])
            grid.add_row(f"    {finding.topic}", outcome, escape(finding.text))
        console.print(grid)


def _name(comparison: Comparison, name: str) -> str:
    floor = comparison.floor
    return f"  {escape(name)}" + (" [dim](A/A)[/dim]" if floor and floor.name == name else "")


def _arms_table(comparison: Comparison) -> Table:
    table = _table("sent", "done", "TTFT p50", "TTFT p99", "TPOT p50", "E2E p50", "tokens", "attained", "goodput")
    for arm in comparison.arms:
        table.add_row(
            _name(comparison, arm.name),
            f"{arm.sent:,}",
            f"{arm.answered:,}",
            _percentile(arm, "ttft", 50.0),
            _percentile(arm, "ttft", 99.0),
            _percentile(arm, "tpot", 50.0),
            _percentile(arm, "e2e", 50.0),
            words.number(arm.output_tokens.estimate),
            words.share(arm.attainment.estimate if arm.attainment else None),
            f"{words.number(arm.goodput_rps)}/s" if arm.goodput_rps is not None else words.ABSENT,
        )
    return table


def _percentile(arm: ArmSummary, metric: str, percent: float) -> str:
    return words.seconds(arm.metrics[metric].percentiles[percent].estimate)


def _change_cells(value: Estimate) -> tuple[str, Text]:
    low, high = words.signed_share(value.low), words.signed_share(value.high)
    text = f"{low} … {high}" if value.low is not None or value.high is not None else ""
    return words.signed_share(value.estimate), Text(text, style="dim")


def _latency_table(comparison: Comparison) -> Table:
    table = _table("pairs", "TTFT", "TPOT", "E2E", "E2E beyond A/A")
    for change in comparison.comparisons:
        found = [change.latency[name].relative for name in ("ttft", "tpot", "e2e")]
        beyond = change.latency["e2e"].beyond_floor
        cells = [_change_cells(value) for value in found]
        beyond_cells = _change_cells(beyond) if beyond else (words.ABSENT, Text(""))
        table.add_row(
            _name(comparison, change.name),
            f"{change.latency['e2e'].n:,}",
            *(first for first, _ in cells),
            beyond_cells[0],
        )
        table.add_row("", "", *(second for _, second in cells), beyond_cells[1])
    level, method = _level_and_method(comparison)
    table.caption = f"  below each figure its {level} interval ({method}, whole requests resampled)"
    table.caption_justify = "left"
    return table


def _level_and_method(comparison: Comparison) -> tuple[str, str]:
    value = comparison.comparisons[0].latency["e2e"].relative
    return words.level_of(value), value.method


def _decomposition_table(comparison: Comparison) -> Table:
    table = _table("E2E", "queueing", "prefill", "speed", "length", "of speed-up eaten")
    for change in comparison.comparisons:
        parts = change.decomposition.parts
        eaten = change.decomposition.eaten
        table.add_row(
            _name(comparison, change.name),
            signed_seconds(change.decomposition.total.estimate),
            *(signed_seconds(parts[p].estimate) if p in parts else words.ABSENT for p in ("queueing", "prefill")),
            *(signed_seconds(parts[p].estimate) for p in ("speed", "length")),
            _eaten(eaten),
        )
    if any("queueing" not in change.decomposition.parts for change in comparison.comparisons):
        table.caption = "  where the server does not tell queueing times, prefill holds the whole change of TTFT"
        table.caption_justify = "left"
    return table


def _eaten(value: Estimate | None) -> str:
    if value is None or value.estimate is None:
        return words.ABSENT
    return f"{words.share(value.estimate, 0)} ({words.share(value.low, 0)} to {words.share(value.high, 0)})"


def _lengths(comparison: Comparison, console: Console) -> None:
    measured = [change for change in comparison.comparisons if change.lengths]
    if not measured:
        console.print("  refused: lengths were forced, so they say nothing about the model", highlight=False)
        return
    table = _table("pairs", "mean ratio", "median D", "D ≤ -50 %", "D ≥ +50 %", "cut off", "Wilcoxon p")
    for change in measured:
        _length_rows(table, comparison, change)
    table.caption = "  D = (base - arm) / base tokens: negative, the answer grew. Cut off: share of pairs, base and arm"
    table.caption_justify = "left"
    console.print(table)
    for change in measured:
        if change.lengths and change.lengths.capped.estimate:
            base, other = change.lengths.curve_base, change.lengths.curve_other
            console.print(
                f"  {escape(change.name)}: median length with cut answers as censored (Kaplan-Meier) "
                f"{_median(base.median)} to {_median(other.median)} tokens; naive "
                f"{_median(change.lengths.naive_base.median)} to {_median(change.lengths.naive_other.median)}",
                highlight=False,
            )


def _median(value: float | None) -> str:
    return "beyond the cap" if value is None else words.number(value)


def _length_rows(table: Table, comparison: Comparison, change: ArmComparison) -> None:
    lengths = change.lengths
    if lengths is None:
        return
    ratio = lengths.ratio_mean
    table.add_row(
        _name(comparison, change.name),
        f"{lengths.n:,}",
        words.ratio(ratio.estimate),
        words.signed_share(lengths.difference_median.estimate),
        words.share(lengths.grown.estimate),
        words.share(lengths.shrunk.estimate),
        f"{words.share(lengths.cap_base.estimate)}, {words.share(lengths.cap_other.estimate)}",
        p_text(lengths.test.p_value).removeprefix("= "),
    )
    median = lengths.difference_median
    table.add_row(
        "",
        "",
        Text(f"{words.ratio(ratio.low)} … {words.ratio(ratio.high)}", style="dim"),
        Text(f"{words.signed_share(median.low)} … {words.signed_share(median.high)}", style="dim"),
        *(Text(f"{words.share(s.low)} … {words.share(s.high)}", style="dim") for s in (lengths.grown, lengths.shrunk)),
        "",
        "",
    )


def _slo_table(comparison: Comparison) -> Table:
    table = _table("attainment", "change", "lost", "won", "McNemar p", "goodput")
    for arm in comparison.arms:
        change = next((c for c in comparison.comparisons if c.name == arm.name), None)
        met = change.slo if change else None
        share = arm.attainment
        table.add_row(
            _name(comparison, arm.name),
            f"{words.share(share.estimate)} ({words.share(share.low)} … {words.share(share.high)})" if share else "",
            f"{met.difference.estimate * 100:+.1f} pt" if met and met.difference.estimate is not None else "",
            f"{met.lost:,}" if met else "",
            f"{met.won:,}" if met else "",
            p_text(met.test.p_value).removeprefix("= ") if met else "",
            words.signed_share(met.goodput.estimate) if met else f"{words.number(arm.goodput_rps)}/s",
        )
    return table
