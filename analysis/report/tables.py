"""What reports show, as plain rows of text: every renderer only lays it out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvload.analysis import words
from kvload.analysis.run.model import PERCENTILES, Metric, Report
from kvload.analysis.run.section import Section, Unit
from kvload.analysis.run.server_side import Agreement, Gauge, ServerSide
from kvload.analysis.run.streams import span
from kvload.analysis.run.trust import saturated
from kvload.analysis.statistics.estimates import Estimate
from kvload.records import FailureKind

Facts = list[tuple[str, str]]
"""Names and what is to be said about them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row; ``details`` stand small below the cells (intervals), and may be empty."""

    cells: Sequence[str]
    details: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class TableData:
    """A table; the first column names the row, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    caption: str | None = None


_STATUS_WORDS = {"timeout": "timed out", "censored": "still running at the end"}


def count_lines(report: Report) -> list[str]:
    """What became of all planned requests."""
    counts = report.counts
    other = {name: counts.by_status[name] for name in ("failed", "timeout", "refused", "censored")}
    parts = [f"{counts.completed:,} done"]
    parts += [f"{number:,} {_STATUS_WORDS.get(name, name)}" for name, number in other.items() if number]
    lines = [
        f"{counts.sent:,} sent, all answered"
        if counts.sent and counts.completed == counts.sent
        else f"{counts.sent:,} sent = {' + '.join(parts)}"
    ]
    if counts.planned != counts.sent:
        rest = f"{counts.unsent:,} never sent + {counts.lost:,} without a record"
        rest += f" ({counts.torn} of them cut short)" if counts.torn else ""
        lines.append(f"{counts.planned:,} planned = {counts.sent:,} sent + {rest}")
    said: dict[tuple[str, str | None], str | None] = {
        (kind.status, kind.cause): kind.first for kind in report.manifest.failures
    }
    for status, cause, number in counts.causes:
        told = said.get((status, cause))
        lines.append(f"{number:,} {status}: {cause or 'no cause given'}" + (f' ("{told}")' if told else ""))
    if counts.retried:
        lines.append(f"{counts.retried:,} were sent more than once")
    return lines


def failure_table(kinds: Sequence[FailureKind], arm: str | None = None) -> TableData:
    """Requests that did not end well, with what the first of each kind was told; equal kinds together."""
    together: dict[tuple[str, str | None], list[FailureKind]] = {}
    for kind in kinds:
        if kind.status != "unsent":
            together.setdefault((kind.status, kind.cause), []).append(kind)
    rows = [
        Row(
            cells=(
                f"{f'{arm}: ' if arm else ''}{status}, {cause or 'no cause given'}",
                f"{sum(kind.count for kind in same):,}",
                next((kind.first for kind in same if kind.first), words.ABSENT),
            )
        )
        for (status, cause), same in together.items()
    ]
    columns = ("what happened", "requests", "the first of them was told")
    return TableData(title="Requests that failed", columns=columns, rows=rows)


def latency_table(report: Report) -> TableData:
    """Latencies of answered requests with their intervals."""
    shown = ["ttft", "tpot", "itl", "e2e", *(f"{name}_sched" for name in ("ttft", "e2e") if _differs(report, name))]
    methods = dict.fromkeys(
        value.method
        for name in ("ttft", "itl")
        for value in (report.metrics[name].mean, *report.metrics[name].percentiles.values())
        if value.estimate is not None
    )
    level = words.level_of(report.metrics["ttft"].mean)
    return TableData(
        title="Latency of answered requests",
        columns=("", "n", "mean", *(f"p{percent:g}" for percent in PERCENTILES), "max"),
        rows=[metric_row(report.metrics[name]) for name in shown],
        caption=f"small figures: {level} interval ({', '.join(methods)}); 'or more': too few requests for an upper"
        " bound"
        if methods
        else None,
    )


def _differs(report: Report, name: str) -> bool:
    """Counting from the schedule is shown where it makes a difference a reader would see."""
    plain = report.metrics[name].percentiles[99.0].estimate
    scheduled = report.metrics[f"{name}_sched"].percentiles[99.0].estimate
    return plain is not None and scheduled is not None and scheduled > 1.02 * plain


def metric_row(metric: Metric) -> Row:
    """One latency in the unit that suits its median."""
    unit, factor = words.unit_for(metric.percentiles[50.0].estimate)
    values = [value.scaled(factor) for value in (metric.mean, *metric.percentiles.values())]
    return Row(
        cells=(
            f"{words.METRIC_NAMES[metric.name]}, {unit}",
            f"{metric.n:,}",
            *(words.number(value.estimate) for value in values),
            words.number(None if metric.max_s is None else metric.max_s * factor),
        ),
        details=("", "", *(words.bounds(value) for value in values), "") if metric.n else (),
    )


def throughput_facts(report: Report) -> Facts:
    """Rates, tokens and answers."""
    rates, lengths = report.throughput, report.lengths
    forced = report.manifest.mode == "forced"  # there every answer ends at max_tokens
    out, both = words.number(rates.output_tokens_per_s), words.number(rates.total_tokens_per_s)
    facts = [
        ("duration", words.seconds(rates.duration_s)),
        ("requests", f"{words.number(rates.request_rps)}/s{_steadily(rates.steady_request_rps)}"),
        ("throughput", f"{out} output tok/s{_steadily(rates.steady_output_tokens_per_s)}, {both} total tok/s"),
        ("in and out", f"{rates.total_input_tokens:,} and {rates.total_output_tokens:,} tokens"),
        ("in flight", f"{rates.max_in_flight:,} at most"),
        (
            "answers",
            f"mean {words.number(lengths.mean.estimate)}, median {words.number(lengths.median.estimate)} tokens"
            + ("" if forced else f"; {words.share(lengths.cap_hits.estimate)} cut off at max_tokens"),
        ),
    ]
    facts += energy_facts(report)
    if report.attainment is None:
        facts.append(("goodput", "no limits were given (--slo ttft=500ms,tpot=50ms)"))
    return facts


def energy_facts(report: Report) -> Facts:
    """Energy of the GPUs and what a token took of it; empty where NVML did not tell."""
    known = [gpu for gpu in report.manifest.gpus if gpu.energy_j is not None]
    if not known:
        return []
    energy_j = sum(gpu.energy_j or 0.0 for gpu in known)
    power_w = sum(gpu.power_w or 0.0 for gpu in known)
    tokens = report.throughput.total_output_tokens
    text = f"{words.number(energy_j)} J of {words.plural(len(known), 'GPU')}, {words.number(power_w)} W on average"
    if tokens:
        text += f", {words.number(energy_j / tokens)} J per output token"
    return [("energy", f"{text} (idle draw included)")]


def _steadily(value: float | None) -> str:
    """The same rate without the time that the last answers took to end."""
    return "" if value is None else f" ({words.number(value)} while requests arrived)"


def attainment_facts(report: Report) -> Facts:
    """How far the limits were met; empty without limits."""
    met = report.attainment
    if met is None:
        return []
    facts = [("all limits", f"{share_text(met.share)}: {met.met:,} of {met.sent:,} sent")]
    facts += [
        (f"{words.METRIC_NAMES[name]} ≤ {words.seconds(met.limits_s[name])}", share_text(value))
        for name, value in met.by_metric.items()
    ]
    facts += [
        (
            f"{limit.name.replace('_', ' ')} ≤ {words.seconds(limit.limit_s)}",
            f"{'met' if limit.met else 'missed'}: {words.seconds(limit.measured_s)} over answered requests",
        )
        for limit in met.percentiles
    ]
    good, tokens = words.number(met.goodput_rps), words.number(met.goodput_tokens_per_s)
    facts.append(("goodput", f"{good} requests/s, {tokens} output tok/s"))
    return facts


def share_text(value: Estimate) -> str:
    """A share with its interval."""
    if value.estimate is None:
        return words.ABSENT
    low, high = words.share(value.low), words.share(value.high)
    return f"{words.share(value.estimate)} ({words.level_of(value)} {value.method} {low} to {high})"


_SHOWN: Mapping[Unit, Callable[[float | None], str]] = {
    "s": words.seconds,
    "share": words.share,
    "number": words.number,
}


def section_facts(section: Section) -> Facts:
    """A statistic's figures in words, with their intervals."""
    found = []
    for key, value in section.values.items():
        figure = section.statistic.figures[key]
        show = _SHOWN[figure.unit]
        text = show(value.estimate if isinstance(value, Estimate) else value)
        if isinstance(value, Estimate) and (value.low is not None or value.high is not None):
            low = "" if value.low is None else show(value.low)
            high = "" if value.high is None else show(value.high)
            text += f"  ({low} to {high})"
        found.append((figure.label, text))
    return found


def client_facts(report: Report) -> Facts:
    """How well the client kept its schedule."""
    trust, rates = report.trust, report.throughput
    lags = [words.seconds(value) for value in (trust.lag_p50_s, trust.lag_p99_s, trust.lag_max_s)]
    intended, achieved = words.number(rates.intended_rps), words.number(rates.achieved_rps)
    facts = [
        ("schedule lag", f"p50 {lags[0]}, p99 {lags[1]}, max {lags[2]}"),
        ("rate", f"{intended}/s intended, {achieved}/s achieved"),
    ]
    if trust.cpu:
        workers = words.plural(len(trust.cpu), "worker")
        facts.append(("CPU", f"{words.share(max(trust.cpu.values()), 0)} of a core in the busiest of {workers}"))
    if trust.clocks:
        facts.append(("clock", ", ".join(f"{name} ({number:,} requests)" for name, number in trust.clocks.items())))
    facts.append(("own error", _calibration(report)))
    return facts


def client_verdict(report: Report) -> tuple[str, str]:
    """``good``, ``bad`` or ``unknown``, and the verdict on the client in words."""
    if report.trust.client_bound is None:
        return "unknown", "nothing was sent, so the client cannot be judged"
    if report.trust.client_bound:
        return "bad", "client-bound: these figures are partly the client's own"
    return "good", "not client-bound"


_CALIBRATION_S = {
    "lag_p99_s": "lag p99",
    "ttft_error_p99_s": "TTFT error p99",
    "itl_error_p99_s": "ITL error p99",
}


def _calibration(report: Report) -> str:
    """The client's own error at this load; the manifest holds the rest of the calibration."""
    found = report.trust.calibration
    if not found:
        return "not measured (kvload calibrate)"
    parts = [
        f"{name} {words.seconds(value)}"
        for key, name in _CALIBRATION_S.items()
        if isinstance(value := found.get(key), int | float)
    ]
    if isinstance(cost := found.get("cpu_us_per_chunk"), int | float):
        parts.append(f"CPU {words.number(cost)} µs a chunk")
    limit = saturated(found)
    if limit is not None:
        parts.append(f"but {limit} was at its end: this is not the client's error alone")
    return ", ".join(parts)


def server_facts(report: Report) -> Facts:
    """The server's own account, and whether its counters agree with the client's; empty without scrapes."""
    server = report.server
    if not server.samples:
        return [("prefix hits", _hits(server))] if server.cached_share else []
    if server.failed_scrapes == server.samples:
        return [("metrics", "none: the server answers no /metrics that kvload can read")]
    facts = []
    if server.cache_usage:
        mean, most = words.share(server.cache_usage.mean), words.share(server.cache_usage.max)
        facts.append(("cache usage", f"{mean} mean, {most} max"))
    gauges = (("running", server.running), ("waiting", server.waiting))
    facts += [(name, _gauge(value)) for name, value in gauges if value]
    pairs = [
        ("pool", f"{server.pool_tokens:,} tokens" if server.pool_tokens is not None else None),
        ("preemptions", None if server.preemptions is None else f"{server.preemptions:,}"),
        ("prefix hits", None if server.prefix_hit_rate is None and not server.cached_share else _hits(server)),
        ("queue", None if server.queue_mean_s is None else f"{words.seconds(server.queue_mean_s)} a request"),
        ("prefill", None if server.prefill_mean_s is None else f"{words.seconds(server.prefill_mean_s)} a request"),
    ]
    facts += [(name, text) for name, text in pairs if text is not None]
    facts += [(agreement.name, _agreement(agreement)) for agreement in server.agreement]
    if server.failed_scrapes:
        facts.append(("scrapes", f"{server.failed_scrapes} of {server.samples} failed"))
    return facts


def streams_table(report: Report) -> TableData | None:
    """Gaps between tokens by running requests; None where fewer than two bands are known."""
    found = report.streams
    if len(found.bands) < 2:
        return None
    rows = [
        Row(
            cells=[
                span(band),
                f"{band.gaps:,}",
                words.seconds(band.p50_s),
                words.seconds(band.p90_s),
                *([] if found.covered is None else ["yes" if band.covered else "no"]),
            ]
        )
        for band in found.bands
    ]
    graphs = [] if found.covered is None else ["in a CUDA graph"]
    return TableData(
        title="Gap between tokens by running requests",
        columns=["running at once", "gaps", "p50", "p90", *graphs],
        rows=rows,
        caption=None if found.covered is None else f"CUDA graphs cover up to {found.covered} requests",
    )


def _hits(server: ServerSide) -> str:
    """The share of prompt tokens that came from the prefix cache, and who says so."""
    if server.cached_share is None:
        return f"{words.share(server.prefix_hit_rate)} of prompt tokens by the server's counters"
    text = f"{words.share(server.cached_share)} of answered prompts' tokens by the server's count in each answer"
    if server.prefix_hit_rate is not None:
        text += f", {words.share(server.prefix_hit_rate)} by its counters"
    return text


def _gauge(value: Gauge) -> str:
    return f"{words.number(value.mean)} mean, {words.number(value.max)} max"


def _agreement(found: Agreement) -> str:
    if found.equal is None:
        return f"client {words.whole(found.client)}, server {words.whole(found.server)}: cannot be compared"
    if found.equal:
        return f"client and server agree: {words.whole(found.client)}"
    text = f"client {words.whole(found.client)}, server {words.whole(found.server)}: they differ"
    return f"{text} ({found.uncounted:,} requests ended without a full count)" if found.uncounted else text
