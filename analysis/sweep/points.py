"""From the runs of a sweep to its points."""

from collections.abc import Mapping

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.loading import load
from kvload.analysis.records.table import RecordTable, count_true
from kvload.analysis.run import slo
from kvload.analysis.run.model import Metric
from kvload.analysis.run.summary import build_from
from kvload.analysis.statistics import crossing
from kvload.analysis.sweep.model import Point
from kvload.errors import UsageError
from kvload.rundir import RunDir

SHOWN = (50.0, 99.0)
"""Percentiles that the points keep."""


STRETCHES = 10
"""A run is cut into so many, to see how much more its shares vary than by chance."""

WARM_UP_S, WARM_UP_ANSWERS = 30.0, 5.0
"""A server has filled up after the longer of this time and so many median answers."""


def point_of(
    run: RunDir,
    level: float,
    *,
    slo_limits: Mapping[str, float] | None = None,
    warm_up_s: float | None = 0.0,
    first_left_out: int = 0,
    at_least: int = 0,
) -> Point:
    """One run as a point of its arm's curve.

    Args:
        run: a complete run folder.
        level: the load it was made at.
        slo_limits: limits in seconds that replace the run's own.
        warm_up_s: requests due before this time do not count, since they found an emptier server than it is in
            service; where None, the longer of 30 s and five median answers.
        first_left_out: so many requests, the first that were due, do not count for the same reason.
        at_least: so many do, in any case.

    Raises:
        UsageError: there are no limits on single requests.
    """
    whole = load(run)
    filled_s = _warm_up_s(whole) if warm_up_s is None else warm_up_s
    left_out = max(count_true(whole.t_sched_s < filled_s), first_left_out)
    left_out = min(left_out, max(len(whole) - at_least, 0))
    counted = np.ones(len(whole), np.bool_)
    counted[np.argsort(whole.t_sched_s, kind="stable")[:left_out]] = False
    table = whole.take(np.flatnonzero(counted))
    report = build_from(run.manifest(), table, run.scrapes(), slo_limits=slo_limits)
    met = report.attainment
    if met is None or not met.limits_s:
        raise UsageError("a sweep needs limits on single requests", where="--slo", hint="--slo ttft=500ms,tpot=50ms")
    rates, server = report.throughput, report.server
    good = slo.meets_all(table, met.limits_s)
    good_tokens = float(np.nansum(table.output_tokens[good]))
    in_order = np.argsort(table.t_sched_s[table.sent], kind="stable")
    stretches = crossing.batches(good[table.sent][in_order], STRETCHES)
    return Point(
        arm=report.manifest.arm or report.manifest.server.method or run.path.name,
        level=level,
        repeat=report.manifest.repeat or 0,
        run=run.path.name,
        sent=met.sent,
        met=met.met,
        kept_pace=rates.achieved_rps / rates.intended_rps if rates.achieved_rps and rates.intended_rps else None,
        answered_rps=rates.request_rps,
        output_tokens_per_s=rates.output_tokens_per_s,
        good_tokens=good_tokens,
        ttft_s=_percentiles(report.metrics["ttft"]),
        tpot_s=_percentiles(report.metrics["tpot"]),
        e2e_s=_percentiles(report.metrics["e2e"]),
        duration_s=rates.duration_s,
        cache_usage=server.cache_usage.max if server.cache_usage else None,
        preemptions=server.preemptions,
        client_bound=report.trust.client_bound,
        stretches=tuple(zip(*stretches, strict=True)),
        warm_up=len(whole) - len(table),
    )


def _warm_up_s(table: RecordTable) -> float:
    """How long a server takes to fill up: on the run's clock, seconds."""
    answered = latency.e2e_s(table)[table.ok]
    known = answered[~np.isnan(answered)]
    return max(WARM_UP_S, WARM_UP_ANSWERS * float(np.median(known))) if len(known) else WARM_UP_S


def _percentiles(metric: Metric) -> dict[float, float | None]:
    return {percent: metric.percentiles[percent].estimate for percent in SHOWN}
