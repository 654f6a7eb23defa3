"""Service-level objectives: which requests meet them, out of all that were sent.

A failed, timed-out, refused or cut request misses, and so does one whose metric was not measured: without a first token
there is no TTFT within any limit. A limit on TPOT is met by an answer that truly has one token, by proof.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.table import Bools, Floats, RecordTable, count_true
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from kvload.records import RunManifest
from kvload.units import percentile_of, request_limits


@dataclass(frozen=True, kw_only=True)
class PercentileLimit:
    """A limit on a percentile of a whole run: what was measured over the requests sent, and whether it held.

    ``measured_s`` is None where more of them than the percentile leaves were not answered, and so have no such latency.
    """

    name: str
    limit_s: float
    measured_s: float | None
    met: bool


@dataclass(frozen=True, kw_only=True)
class Attainment:
    """How far a run met its limits.

    Attributes:
        limits_s: the limits of every request, by metric.
        sent: requests sent, the denominator.
        met: requests that meet all limits.
        share: ``met / sent`` with Wilson's interval.
        by_metric: the same for each limit alone.
        goodput_rps: requests per second of the arrival window that meet all limits.
        goodput_tokens_per_s: output tokens per second in those requests.
        percentiles: limits on the run's percentiles, judged apart.
    """

    limits_s: dict[str, float]
    sent: int
    met: int
    share: Estimate
    by_metric: dict[str, Estimate]
    goodput_rps: float | None
    goodput_tokens_per_s: float | None
    percentiles: list[PercentileLimit]


def meets(table: RecordTable, metric: str, limit_s: float) -> Bools:
    """Which requests meet one limit."""
    ok = table.ok
    within: Bools = ok & (latency.METRICS[metric](table) <= limit_s)
    return within | (ok & _cannot_have(table, metric))


def meets_all(table: RecordTable, limits_s: Mapping[str, float]) -> Bools:
    """Which requests meet all limits; with no limits, those that were answered."""
    met = table.ok
    for metric, limit_s in limits_s.items():
        met = met & meets(table, metric, limit_s)
    return met


def _cannot_have(table: RecordTable, metric: str) -> Bools:
    """Answered requests that have no such metric, as opposed to those for which it was not measured.

    That is the TPOT of one token, where the server counts one or no more were asked for.
    """
    return one_token(table) if metric == "tpot" else np.zeros(len(table), np.bool_)


def one_token(table: RecordTable) -> Bools:
    """Answers that have one token by proof: :attr:`kvload.records.RequestRecord.has_one_token` of all at once."""
    one = (table.output_tokens == 1) | (table.output_tokens - table.end_tokens == 1)
    known = table.output_tokens_source.equals("usage") | table.output_tokens_source.equals("token_ids")
    found: Bools = one & (known | (table.max_tokens == 1)) & ~np.isnan(table.t_first_s)
    return found


def attainment(
    table: RecordTable, limits_s: Mapping[str, float], window_s: float | None, *, level: float = estimates.LEVEL
) -> Attainment:
    """Judge a run by limits.

    Args:
        table: the run's records.
        limits_s: limits in seconds by name, as :func:`kvload.units.parse_limits` returns them.
        window_s: what goodput is counted over, as :func:`goodput_window_s` gives it.
        level: confidence level.
    """
    each = request_limits(limits_s)
    sent = count_true(table.sent)
    good = meets_all(table, each)
    met = count_true(good)
    tokens = float(np.nansum(table.output_tokens[good]))
    return Attainment(
        limits_s=each,
        sent=sent,
        met=met,
        share=estimates.wilson(met, sent, level=level),
        by_metric={
            name: estimates.wilson(count_true(meets(table, name, limit)), sent, level=level)
            for name, limit in each.items()
        },
        goodput_rps=met / window_s if window_s else None,
        goodput_tokens_per_s=tokens / window_s if window_s else None,
        percentiles=percentile_limits(table, limits_s),
    )


def percentile_limits(table: RecordTable, limits_s: Mapping[str, float]) -> list[PercentileLimit]:
    """What became of the limits on percentiles of a whole run (``p99_ttft``); those on single requests are no part."""
    each = request_limits(limits_s)
    return [_percentile_limit(table, name, limit) for name, limit in limits_s.items() if name not in each]


def _percentile_limit(table: RecordTable, name: str, limit_s: float) -> PercentileLimit:
    """A request that was sent and not answered, or has no such latency, took longer than any limit."""
    found = percentile_of(name)
    if found is None:
        raise ValueError(f"'{name}' is no limit")
    percent, metric = found
    values = np.where(table.ok, latency.METRICS[metric](table), np.nan)[table.sent & ~_cannot_have(table, metric)]
    ordered = np.sort(np.nan_to_num(values, nan=np.inf))
    measured = None
    if len(ordered):
        place = (len(ordered) - 1) * percent / 100
        known = np.isfinite(ordered[int(np.ceil(place))])
        measured = float(np.interp(place, np.arange(len(ordered)), ordered)) if known else None
    return PercentileLimit(
        name=name, limit_s=limit_s, measured_s=measured, met=measured is not None and measured <= limit_s
    )


def finite(values: Floats) -> Floats:
    """The values that are not missing."""
    return values[~np.isnan(values)]


def run_duration_s(table: RecordTable, manifest: RunManifest) -> float | None:
    """From the run's zero to the end of its last request."""
    if manifest.duration_s is not None:
        return manifest.duration_s
    ends = finite(table.t_end_s)
    return float(ends.max()) if len(ends) else None


def is_closed_loop(manifest: RunManifest) -> bool:
    """Whether requests wait for others to end, so that the server sets the pace and not the schedule."""
    return manifest.max_concurrency is not None or bool(manifest.arrivals.get("concurrency"))


def goodput_window_s(table: RecordTable, manifest: RunManifest) -> float | None:
    """The time that good requests are counted over: the arrival window, so that the last answers' drain has no part.

    From the first to the last scheduled arrival, and one mean gap more, as n arrivals take n gaps. In a closed loop,
    whose pace the server sets, the run's duration.
    """
    scheduled = table.t_sched_s[table.sent]
    if is_closed_loop(manifest) or len(scheduled) < 2 or scheduled.max() <= scheduled.min():
        return run_duration_s(table, manifest)
    return float(scheduled.max() - scheduled.min()) * len(scheduled) / (len(scheduled) - 1)


def attainment_over_scale(
    table: RecordTable, limits_s: Mapping[str, float], scales: Iterable[float]
) -> list[tuple[float, float | None]]:
    """Attainment where all limits are multiplied by each of ``scales``."""
    each = request_limits(limits_s)
    sent = count_true(table.sent)
    if not sent:
        return [(scale, None) for scale in scales]
    needed = np.where(table.ok, 0.0, np.inf)
    for metric, limit in each.items():
        ratio = np.where(_cannot_have(table, metric), 0.0, latency.METRICS[metric](table) / limit)
        # What was not measured is missed at every scale.
        needed = np.maximum(needed, np.nan_to_num(ratio, nan=np.inf))
    ordered = np.sort(needed)
    return [(scale, int(np.searchsorted(ordered, scale, side="right")) / sent) for scale in scales]
