"""The report on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kvload.analysis.report import words
from kvload.analysis.report.model import PERCENTILES, Metric, Report
from kvload.analysis.server_side import Agreement, Gauge
from kvload.analysis.stats import Estimate


def render(report: Report, console: Console) -> None:
    """Print a report."""
    _heading(console, "What ran")
    _pairs(console, words.what_ran(report.manifest))
    _heading(console, "Requests")
    _counts(report, console)
    _heading(console, "Latency of answered requests")
    console.print(_latency_table(report))
    _heading(console, "Throughput")
    _pairs(console, _throughput(report))
    if report.attainment:
        _heading(console, "Service levels, out of all requests sent")
        _attainment(report, console)
    _heading(console, "Client")
    _client(report, console)
    _heading(console, "Server")
    _server(report, console)
    if report.notes:
        _heading(console, "Notes")
        for note in report.notes:
            console.print(f"  · {escape(note)}", highlight=False)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _pairs(console: Console, rows: list[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(f"  {name}", escape(value))
    console.print(table)


def _counts(report: Report, console: Console) -> None:
    counts = report.counts
    parts = [f"{counts.completed:,} done"]
    parts += [f"{counts.by_status[name]:,} {name}" for name in ("failed", "timeout", "refused", "censored")]
    console.print(f"  {counts.sent:,} sent = {' + '.join(parts)}", highlight=False)
    if counts.planned != counts.sent:
        rest = f"{counts.unsent:,} never sent + {counts.lost:,} without a record"
        rest += f" ({counts.torn} of them cut short)" if counts.torn else ""
        console.print(f"  {counts.planned:,} planned = {counts.sent:,} sent + {rest}", highlight=False)
    for status, cause, number in counts.causes:
        console.print(f"    [red]{number:,} {status}[/red]: {escape(cause or 'no cause given')}", highlight=False)
    if counts.retried:
        console.print(f"  {counts.retried:,} were sent more than once", highlight=False)


def _latency_table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("")
    table.add_column("n", justify="right", no_wrap=True)
    for title in ("mean", *(f"p{percent:g}" for percent in PERCENTILES), "max"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in ("ttft", "tpot", "itl", "e2e"):
        _metric_rows(table, report.metrics[name])
    for name in ("ttft", "e2e"):
        if _differs(report, name):
            _metric_rows(table, report.metrics[f"{name}_sched"])
    level = words.level_of(report.metrics["ttft"].mean)
    methods = dict.fromkeys(
        value.method
        for name in ("ttft", "itl")
        for value in (report.metrics[name].mean, *report.metrics[name].percentiles.values())
        if value.estimate is not None
    )
    table.caption = f"  below each figure its {level} interval ({', '.join(methods)})" if methods else None
    table.caption_justify = "left"
    return table


def _differs(report: Report, name: str) -> bool:
    """Counting from the schedule is shown where it makes a difference a reader would see."""
    plain = report.metrics[name].percentiles[99.0].estimate
    scheduled = report.metrics[f"{name}_sched"].percentiles[99.0].estimate
    return plain is not None and scheduled is not None and scheduled > 1.02 * plain


def _metric_rows(table: Table, metric: Metric) -> None:
    values = [metric.mean, *metric.percentiles.values()]
    unit, factor = words.unit_for(metric.percentiles[50.0].estimate)
    cells = [value.scaled(factor) for value in values]
    table.add_row(
        f"  {words.METRIC_NAMES[metric.name]}, {unit}",
        f"{metric.n:,}",
        *(words.number(value.estimate) for value in cells),
        words.number(None if metric.max_s is None else metric.max_s * factor),
    )
    if metric.n:
        table.add_row("", "", *(Text(words.interval(value), style="dim") for value in cells), "")


def _throughput(report: Report) -> list[tuple[str, str]]:
    rates, lengths = report.throughput, report.lengths
    rows = [
        ("duration", words.seconds(rates.duration_s)),
        ("requests", f"{words.number(rates.request_rps)} a second"),
        (
            "tokens",
            f"{words.number(rates.output_tokens_per_s)} out, {words.number(rates.total_tokens_per_s)} in all, a second",
        ),
        ("in and out", f"{rates.total_input_tokens:,} and {rates.total_output_tokens:,} tokens"),
        ("in flight", f"{rates.max_in_flight:,} at most"),
        (
            "answers",
            f"{words.number(lengths.mean.estimate)} tokens on average, {words.number(lengths.median.estimate)} in the "
            f"middle, {words.share(lengths.cap_hits.estimate)} cut off at max_tokens",
        ),
    ]
    if report.attainment is None:
        rows.append(("goodput", "no limits were given (--slo ttft=500ms,tpot=50ms)"))
    return rows


def _attainment(report: Report, console: Console) -> None:
    met = report.attainment
    if met is None:
        return
    rows = [("all limits", f"{_share_of(met.share)}: {met.met:,} of {met.sent:,} sent")]
    rows += [
        (f"{words.METRIC_NAMES[name]} ≤ {words.seconds(met.limits_s[name])}", _share_of(value))
        for name, value in met.by_metric.items()
    ]
    rows += [
        (
            f"{limit.name.replace('_', ' ')} ≤ {words.seconds(limit.limit_s)}",
            f"{'met' if limit.met else 'missed'}: {words.seconds(limit.measured_s)} over answered requests",
        )
        for limit in met.percentiles
    ]
    rows.append(
        (
            "goodput",
            f"{words.number(met.goodput_rps)} requests and "
            f"{words.number(met.goodput_tokens_per_s)} output tokens a second",
        )
    )
    _pairs(console, rows)


def _share_of(value: Estimate) -> str:
    if value.estimate is None:
        return words.ABSENT
    low, high = words.share(value.low), words.share(value.high)
    return f"{words.share(value.estimate)} ({words.level_of(value)} {value.method} {low} to {high})"


def _client(report: Report, console: Console) -> None:
    trust, rates = report.trust, report.throughput
    rows = [
        (
            "schedule lag",
            f"p50 {words.seconds(trust.lag_p50_s)}, p99 {words.seconds(trust.lag_p99_s)}, "
            f"max {words.seconds(trust.lag_max_s)}",
        ),
        ("rate", f"{words.number(rates.intended_rps)} intended, {words.number(rates.achieved_rps)} achieved, a second"),
    ]
    if trust.cpu:
        busiest = max(trust.cpu.values())
        rows.append(
            ("CPU", f"{words.share(busiest, 0)} of a core in the busiest of {words.plural(len(trust.cpu), 'worker')}")
        )
    if trust.clocks:
        rows.append(("clock", ", ".join(f"{name} ({number:,} requests)" for name, number in trust.clocks.items())))
    rows.append(("own error", _calibration(report)))
    _pairs(console, rows)
    if trust.client_bound is None:
        console.print("  [yellow]nothing was sent, so the client cannot be judged[/yellow]")
    elif trust.client_bound:
        console.print("  [bold red]client-bound: these figures are partly the client's own[/bold red]")
        for reason in trust.reasons:
            console.print(f"    {escape(reason)}", highlight=False)
    else:
        console.print("  [green]not client-bound[/green]")


def _calibration(report: Report) -> str:
    found = report.trust.calibration
    if not found:
        return "not measured (kvload calibrate)"
    return ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {words.seconds(float(value)) if name.endswith('_s') else value}"
        for name, value in found.items()
        if isinstance(value, int | float) or (isinstance(value, str) and not name.endswith("_s"))
    )


def _server(report: Report, console: Console) -> None:
    server = report.server
    if not server.samples:
        console.print("  [dim]its metrics were not scraped[/dim]")
        return
    rows = []
    if server.cache_usage:
        rows.append(
            ("cache usage", f"{words.share(server.cache_usage.mean)} mean, {words.share(server.cache_usage.max)} max")
        )
    rows += [
        (name, _gauge(value)) for name, value in (("running", server.running), ("waiting", server.waiting)) if value
    ]
    pairs = [
        ("pool", f"{server.pool_tokens:,} tokens" if server.pool_tokens is not None else None),
        ("preemptions", None if server.preemptions is None else f"{server.preemptions:,}"),
        ("prefix hits", None if server.prefix_hit_rate is None else words.share(server.prefix_hit_rate)),
        ("queue", None if server.queue_mean_s is None else f"{words.seconds(server.queue_mean_s)} a request"),
        ("prefill", None if server.prefill_mean_s is None else f"{words.seconds(server.prefill_mean_s)} a request"),
    ]
    rows += [(name, text) for name, text in pairs if text is not None]
    rows += [(agreement.name, _agreement(agreement)) for agreement in server.agreement]
    if server.failed_scrapes:
        rows.append(("scrapes", f"{server.failed_scrapes} of {server.samples} failed"))
    _pairs(console, rows)


def _gauge(value: Gauge) -> str:
    return f"{words.number(value.mean)} mean, {words.number(value.max)} max"


def _agreement(found: Agreement) -> str:
    if found.equal is None:
        return f"client {words.whole(found.client)}, server {words.whole(found.server)}: cannot be compared"
    if found.equal:
        return f"client and server agree: {words.whole(found.client)}"
    text = f"client {words.whole(found.client)}, server {words.whole(found.server)}: they differ"
    return f"{text} ({found.uncounted:,} requests ended without a full count)" if found.uncounted else text
