"""One arm of a comparison by itself: all its repeats together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.outcome import cap_hit, too_long, too_short
from kvload.analysis.records.pairs import LoadedArm, LoadedRun
from kvload.analysis.records.table import Floats, Ints, count_true
from kvload.analysis.run import server_side, slo, trust
from kvload.analysis.run.model import PERCENTILES, Metric, Throughput, Timeline
from kvload.analysis.run.series import Series, series_of
from kvload.analysis.run.server_side import ServerSide
from kvload.analysis.run.streams import Streams, streams_of
from kvload.analysis.run.summary import SLO_SCALES, ecdf_of, gap_metric, throughput_of, timeline_of
from kvload.analysis.run.trust import Trust
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from kvload.records import FailureKind, ServerInfo


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One repeat of an arm; ``started_at`` in Unix seconds, ``eviction`` as in its manifest."""

    repeat: int
    path: str
    partial: bool
    throughput: Throughput
    trust: Trust
    server: ServerSide
    started_at: float | None = None
    eviction: dict[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """An arm over all its repeats; intervals take the repeats of a request together.

    Attributes:
        name, baseline, floor: which arm.
        info: the server of the first repeat.
        runs: what differs from repeat to repeat.
        planned, sent, answered: requests over all repeats.
        statuses: requests by status.
        metrics: latencies over answered requests.
        output_tokens: mean length of an answer.
        cap_hits: share of answers cut off at ``max_tokens``.
        too_short, too_long: answers of fewer tokens than ``min_tokens``, and of more than ``max_tokens``.
        attainment, attainment_by_metric: shares of sent requests; None without limits.
        goodput_rps: requests per second that meet the limits, over the summed arrival windows.
        attainment_over_scale: for plots.
        timeline, series, streams: of the first repeat.
        failures: of all repeats, with the server's words.
    """

    name: str
    baseline: bool
    floor: bool
    info: ServerInfo
    runs: list[RunSummary]
    planned: int
    sent: int
    answered: int
    statuses: dict[str, int]
    metrics: dict[str, Metric]
    output_tokens: Estimate
    cap_hits: Estimate
    too_short: int
    too_long: int
    request_rps: float | None
    output_tokens_per_s: float | None
    attainment: Estimate | None
    attainment_by_metric: dict[str, Estimate]
    goodput_rps: float | None
    attainment_over_scale: list[tuple[float, float | None]] = field(repr=False)
    timeline: Timeline = field(repr=False)
    streams: Streams = field(repr=False)
    series: Series = field(repr=False)
    failures: list[FailureKind]

    @property
    def duration_s(self) -> float | None:
        """The summed durations of all repeats."""
        durations = [run.throughput.duration_s for run in self.runs]
        return sum(d for d in durations if d is not None) if durations and None not in durations else None

    @property
    def pool_tokens(self) -> int | None:
        """The size of the cache in tokens, as scraped or as the server was found."""
        scraped = self.runs[0].server.pool_tokens
        return self.info.pool_tokens if scraped is None else scraped

    @property
    def hit_share(self) -> float | None:
        """Share of prompt tokens that came from the prefix cache, on average over the repeats; None where unknown."""
        shares = [run.server.hit_share for run in self.runs]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known and len(known) == len(shares) else None


def summarise(
    arm: LoadedArm, limits_s: Mapping[str, float], *, rng: np.random.Generator, level: float = estimates.LEVEL
) -> ArmSummary:
    """Sum up an arm.

    Args:
        arm: its runs.
        limits_s: limits in seconds by metric; may be empty.
        rng: source of the bootstrap, by request.
        level: confidence level.
    """
    table = arm.table
    ok, sent = table.ok, table.sent
    runs = [
        RunSummary(
            repeat=repeat,
            path=str(run.path),
            partial=run.manifest.partial,
            throughput=throughput_of(run.table, run.manifest),
            trust=trust.judge(run.table, run.manifest),
            server=server_side.summarise(run.samples, run.table, run.manifest.servers),
            started_at=run.manifest.started_at,
            eviction=run.manifest.eviction,
        )
        for repeat, run in arm.runs.items()
    ]
    metrics = {
        name: metric_of(name, values(table)[ok], table.index[ok], rng=rng, level=level)
        for name, values in latency.METRICS.items()
        if name != "lag"
    }
    metrics["itl"] = gap_metric(latency.token_gaps(table, np.flatnonzero(ok)), rng, level)
    good = slo.meets_all(table, limits_s)
    durations = [run.throughput.duration_s for run in runs]
    duration_s = sum(d for d in durations if d) if None not in durations else None
    windows = [slo.goodput_window_s(run.table, run.manifest) for run in arm.runs.values()]
    window_s = sum(w for w in windows if w) if None not in windows else None
    tokens = table.output_tokens[ok]
    counted = ~np.isnan(tokens)
    return ArmSummary(
        name=arm.name,
        baseline=arm.baseline,
        floor=arm.floor,
        info=arm.first.manifest.server,
        runs=runs,
        planned=sum(run.manifest.planned for run in arm.runs.values()),
        sent=count_true(sent),
        answered=count_true(ok),
        statuses={
            name: count_true(table.has_status(name)) for name in ("failed", "timeout", "refused", "censored", "unsent")
        },
        metrics=metrics,
        output_tokens=estimates.clustered_mean(tokens[counted], table.index[ok][counted], rng=rng, level=level),
        cap_hits=estimates.clustered_share(cap_hit(table)[ok], table.index[ok], level=level),
        too_short=count_true(too_short(table)),
        too_long=count_true(too_long(table)),
        request_rps=count_true(ok) / duration_s if duration_s else None,
        output_tokens_per_s=float(tokens[counted].sum()) / duration_s if duration_s else None,
        attainment=estimates.clustered_share(good[sent], table.index[sent], level=level) if limits_s else None,
        attainment_by_metric={
            name: estimates.clustered_share(slo.meets(table, name, limit)[sent], table.index[sent], level=level)
            for name, limit in limits_s.items()
        },
        goodput_rps=count_true(good) / window_s if window_s and limits_s else None,
        attainment_over_scale=slo.attainment_over_scale(table, limits_s, SLO_SCALES) if limits_s else [],
        timeline=timeline_of(arm.first.table, arm.first.samples),
        series=series_of(arm.first.table),
        streams=streams_of(arm.first.table, arm.first.samples, arm.first.manifest),
        failures=[kind for run in arm.runs.values() for kind in (*run.manifest.failures, *_no_answers(run))],
    )


def metric_of(
    name: str, values: Floats, request: Ints, *, rng: np.random.Generator, level: float = estimates.LEVEL
) -> Metric:
    """A latency over answered requests that may have been repeated."""
    known = ~np.isnan(values)
    values, request = values[known], request[known]
    ordered = np.sort(values)
    n = len(ordered)
    return Metric(
        name=name,
        n=n,
        mean=estimates.clustered_mean(values, request, rng=rng, level=level),
        std_s=float(values.std()) if n else None,
        min_s=float(ordered[0]) if n else None,
        max_s=float(ordered[-1]) if n else None,
        percentiles={p: _quantile(ordered, values, request, p / 100, level) for p in PERCENTILES},
        ecdf_s=ecdf_of(ordered),
    )


def _quantile(ordered: Floats, values: Floats, request: Ints, q: float, level: float) -> Estimate:
    names, which = np.unique(request, return_inverse=True)
    if len(names) == len(values):
        return estimates.quantile(ordered, q, level=level)
    return estimates.clustered_quantile(
        values, which, q, quantile_of=lambda share: float(np.quantile(ordered, share)), level=level
    )


def _no_answers(run: LoadedRun) -> list[FailureKind]:
    """Answers that the run takes for good and a comparison cannot: see :func:`kvload.analysis.records.table.proven`."""
    failed = run.table.has_status("failed")
    doubted = failed & run.table.cause.equals("impossible_count")
    why = next(iter(run.table.count_doubt.counts(doubted)), None)
    known = sum(kind.count for kind in run.manifest.failures if kind.cause == "empty")
    empty = count_true(failed & run.table.cause.equals("empty")) - known
    kinds = [
        FailureKind(status="failed", cause="impossible_count", count=count_true(doubted), first=why),
        FailureKind(status="failed", cause="empty", count=empty, first="an answer with nothing in it"),
    ]
    return [kind for kind in kinds if kind.count > 0]
