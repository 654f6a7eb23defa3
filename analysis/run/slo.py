"""Service-level objectives: which requests meet them, out of all that were sent.

A failed, timed-out, refused or cut request misses, and so does one whose metric was not measured: without a first token
there is no TTFT within any limit. A limit on TPOT is met by an answer that truly has one token, by proof.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.table import Bools, Floats, RecordTable, count_true
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from kvload.errors import UsageError

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0}
_LIMIT = re.compile(r"\s*(?P<name>[a-z0-9_]+)\s*[=:]\s*(?P<number>[0-9.]+(?:e-?[0-9]+)?)\s*(?P<unit>[a-z]*)\s*")
_PERCENTILE = re.compile(r"p(?P<percent>[0-9]{1,2}(?:_[0-9]+)?)_(?P<metric>[a-z0-9]+)")
_ALIASES = {"e2el": "e2e"}
REQUEST_METRICS = ("ttft", "tpot", "e2e")
"""Metrics that a limit may be set on for every request."""


def parse_slo(text: str) -> dict[str, float]:
    """Limits from ``ttft=500ms,tpot=50ms,e2e=20s``; ``p99_ttft=1s`` limits the run's percentile instead.

    A number without a unit is in seconds.

    Returns:
        limits in seconds by name.

    Raises:
        UsageError: a name or value that is none.
    """
    return _parse(text.split(","), "--slo", _UNITS)


def parse_goodput(pairs: Iterable[str]) -> dict[str, float]:
    """Limits as ``vllm bench serve --goodput`` takes them: ``ttft:200 tpot:50``, in milliseconds.

    Raises:
        UsageError: a name or value that is none.
    """
    return _parse(pairs, "--goodput", {**_UNITS, "": 1e-3})


def _parse(parts: Iterable[str], flag: str, units: Mapping[str, float]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for part in parts:
        found = _LIMIT.fullmatch(part)
        name = found and _ALIASES.get(found["name"], found["name"])
        if not found or not name or found["unit"] not in units or not _is_metric(name):
            raise UsageError(
                f"'{part.strip()}' is no limit",
                where=flag,
                hint=f"a limit is METRIC=TIME with a metric of {', '.join(REQUEST_METRICS)}, or pNN_METRIC: ttft=500ms",
            )
        try:
            limits[name] = float(found["number"]) * units[found["unit"]]
        except ValueError:
            raise UsageError(f"'{found['number']}' is no number", where=flag) from None
        if not 0 < limits[name] < math.inf:
            raise UsageError(f"the limit '{part.strip()}' is not above 0", where=flag)
    return limits


def _is_metric(name: str) -> bool:
    percentile = _PERCENTILE.fullmatch(name)
    return (percentile["metric"] if percentile else name) in REQUEST_METRICS


@dataclass(frozen=True, kw_only=True)
class PercentileLimit:
    """A limit on a percentile of a whole run: what was measured over the answered requests, and whether it held."""

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
        goodput_rps: requests per second that meet all limits.
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
    if metric != "tpot":
        return np.zeros(len(table), np.bool_)
    one = (table.output_tokens == 1) | (table.output_tokens - table.end_tokens == 1)
    known = table.output_tokens_source.equals("usage") | table.output_tokens_source.equals("token_ids")
    found: Bools = one & (known | (table.max_tokens == 1)) & ~np.isnan(table.t_first_s)
    return found


def attainment(
    table: RecordTable, limits_s: Mapping[str, float], duration_s: float | None, *, level: float = estimates.LEVEL
) -> Attainment:
    """Judge a run by limits.

    Args:
        table: the run's records.
        limits_s: limits in seconds by name, as :func:`parse_slo` returns them.
        duration_s: the run's length, for goodput.
        level: confidence level.
    """
    each = {name: limit for name, limit in limits_s.items() if name in REQUEST_METRICS}
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
        goodput_rps=met / duration_s if duration_s else None,
        goodput_tokens_per_s=tokens / duration_s if duration_s else None,
        percentiles=[
            _percentile_limit(table, name, limit) for name, limit in limits_s.items() if name not in REQUEST_METRICS
        ],
    )


def _percentile_limit(table: RecordTable, name: str, limit_s: float) -> PercentileLimit:
    found = _PERCENTILE.fullmatch(name)
    if not found:
        raise UsageError(f"'{name}' is no limit", where="slo")
    values = finite(latency.METRICS[found["metric"]](table)[table.ok])
    measured = float(np.quantile(values, float(found["percent"].replace("_", ".")) / 100)) if len(values) else None
    return PercentileLimit(
        name=name, limit_s=limit_s, measured_s=measured, met=measured is not None and measured <= limit_s
    )


def finite(values: Floats) -> Floats:
    """The values that are not missing."""
    return values[~np.isnan(values)]


def attainment_over_scale(
    table: RecordTable, limits_s: Mapping[str, float], scales: Iterable[float]
) -> list[tuple[float, float | None]]:
    """Attainment where all limits are multiplied by each of ``scales``."""
    each = {name: limit for name, limit in limits_s.items() if name in REQUEST_METRICS}
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
