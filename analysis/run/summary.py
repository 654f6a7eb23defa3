"""From a run folder to its report."""

from collections.abc import Mapping, Sequence

import numpy as np

from kvload.analysis import words
from kvload.analysis.records import latency
from kvload.analysis.records.loading import load
from kvload.analysis.records.outcome import cap_hit, too_long, too_short
from kvload.analysis.records.table import STATUSES, Floats, RecordTable, count_true
from kvload.analysis.run import server_side, slo, streams, trust
from kvload.analysis.run.model import PERCENTILES, Counts, Lengths, Metric, Report, Throughput, Timeline
from kvload.analysis.run.section import Measured
from kvload.analysis.run.sections import measure_all
from kvload.analysis.run.series import series_of, steady_rates
from kvload.analysis.statistics import estimates
from kvload.records import RunManifest, ServerSample
from kvload.rundir import RunDir

ECDF_POINTS = 201
TIMELINE_POINTS = 600
_UNHEEDED = "the server did not heed it, and its load was another than the trace's"
_BURSTS = "something on the way gathers the chunks, so TPOT and ITL are not the server's"
UNPROVEN_SHARE = 0.05
"""From this share of all tokens on it is said that nothing but the server's count speaks for them."""
SLO_SCALES = tuple(float(scale) for scale in np.round(np.geomspace(0.25, 4.0, 33), 4))


def summarise(run: RunDir, *, slo_limits: Mapping[str, float] | None = None, level: float = estimates.LEVEL) -> Report:
    """Report a run.

    The report depends on nothing but the folder and these arguments: building it again gives the same figures.

    Args:
        run: the run folder.
        slo_limits: limits in seconds that replace the run's own.
        level: confidence level of all intervals.

    Raises:
        RunDirError: the folder cannot be read.
    """
    manifest = run.manifest()
    table = load(run)
    return build_from(manifest, table, run.scrapes(), slo_limits=slo_limits, level=level)


def build_from(
    manifest: RunManifest,
    table: RecordTable,
    samples: Sequence[ServerSample],
    *,
    slo_limits: Mapping[str, float] | None = None,
    level: float = estimates.LEVEL,
) -> Report:
    """Report a run whose records are loaded already."""
    rng = np.random.default_rng(manifest.seed)
    limits = dict(manifest.slo if slo_limits is None else slo_limits)
    gaps = latency.token_gaps(table, np.flatnonzero(table.ok))
    throughput = throughput_of(table, manifest)
    window_s = slo.goodput_window_s(table, manifest)
    found_streams = streams.streams_of(table, samples, manifest)
    metrics = {
        name: _metric(name, slo.finite(values(table)[table.sent if name == "lag" else table.ok]), rng, level)
        for name, values in latency.METRICS.items()
    }
    metrics["itl"] = gap_metric(gaps, rng, level)
    return Report(
        manifest=manifest,
        counts=_counts(table, manifest),
        metrics=metrics,
        throughput=throughput,
        lengths=_lengths(table, gaps, rng, level),
        attainment=slo.attainment(table, limits, window_s, level=level) if limits else None,
        attainment_over_scale=slo.attainment_over_scale(table, limits, SLO_SCALES) if limits else [],
        trust=trust.judge(table, manifest),
        server=server_side.summarise(samples, table, manifest.servers),
        timeline=timeline_of(table, samples),
        series=series_of(table),
        streams=found_streams,
        notes=[*_notes(table, manifest, gaps), *filter(None, [streams.note(found_streams, manifest.server.engine)])],
        sections=measure_all(Measured(table=table, manifest=manifest, level=level, rng=rng)),
    )


def _metric(name: str, values: Floats, rng: np.random.Generator, level: float) -> Metric:
    ordered = np.sort(values)
    n = len(ordered)
    return Metric(
        name=name,
        n=n,
        mean=estimates.mean(values, rng=rng, level=level),
        std_s=float(values.std()) if n else None,
        min_s=float(ordered[0]) if n else None,
        max_s=float(ordered[-1]) if n else None,
        percentiles={percent: estimates.quantile(ordered, percent / 100, level=level) for percent in PERCENTILES},
        ecdf_s=ecdf_of(ordered),
    )


def ecdf_of(ordered: Floats) -> list[float]:
    """Quantiles of sorted values at equal steps of probability, by linear interpolation; empty where there are none."""
    places = np.linspace(0, len(ordered) - 1, ECDF_POINTS)
    return np.interp(places, np.arange(len(ordered)), ordered).tolist() if len(ordered) else []


def gap_metric(gaps: latency.TokenGaps, rng: np.random.Generator, level: float) -> Metric:
    """ITL: gaps of one answer resemble each other, so intervals count requests, not gaps."""
    n = gaps.n
    sums_s, numbers = gaps.request_sums_us / 1e6, gaps.request_gaps.astype(np.float64)

    def quantile_s(q: float) -> float:
        return float(gaps.quantile_us(q)) / 1e6

    mean = estimates.ratio_of_sums(sums_s, numbers, rng=rng, level=level)
    spread = None
    if n:
        centre = float(np.average(gaps.values_us, weights=gaps.counts))
        spread = float(np.sqrt(np.average((gaps.values_us - centre) ** 2, weights=gaps.counts))) / 1e6
    return Metric(
        name="itl",
        n=n,
        mean=mean,
        std_s=spread,
        min_s=quantile_s(0.0) if n else None,
        max_s=quantile_s(1.0) if n else None,
        percentiles={
            percent: estimates.clustered_quantile(
                gaps.sample_us / 1e6,
                gaps.sample_request,
                percent / 100,
                quantile_of=quantile_s,
                population=len(gaps.request_gaps),
                level=level,
            )
            for percent in PERCENTILES
        },
        ecdf_s=(gaps.quantile_us(np.linspace(0, 1, ECDF_POINTS)) / 1e6).tolist() if n else [],
    )


def _counts(table: RecordTable, manifest: RunManifest) -> Counts:
    by_status = np.bincount(table.status, minlength=len(STATUSES))
    causes = []
    for code, status in enumerate(STATUSES):
        if status != "ok":
            causes += [(status, cause, number) for cause, number in table.cause.counts(table.status == code).items()]
    return Counts(
        planned=manifest.planned,
        sent=count_true(table.sent),
        completed=count_true(table.ok),
        unsent=count_true(~table.sent),
        lost=manifest.planned - len(table),
        torn=table.torn,
        by_status={status: int(number) for status, number in zip(STATUSES, by_status, strict=True)},
        causes=causes,
        retried=count_true(table.retries > 0),
    )


def throughput_of(table: RecordTable, manifest: RunManifest) -> Throughput:
    """Rates over a run."""
    duration_s = slo.run_duration_s(table, manifest)
    ok = table.ok
    prompt = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)[ok]
    inputs, outputs = int(np.nansum(prompt)), int(np.nansum(table.output_tokens[ok]))

    def rate(number: int) -> float | None:
        return number / duration_s if duration_s else None

    _, open_requests = latency.in_flight(table)
    steady_rps, steady_tokens = steady_rates(table)
    return Throughput(
        duration_s=duration_s,
        request_rps=rate(count_true(ok)),
        output_tokens_per_s=rate(outputs),
        total_tokens_per_s=rate(inputs + outputs),
        total_input_tokens=inputs,
        total_output_tokens=outputs,
        intended_rps=_event_rate(table.t_sched_s[table.sent]),
        achieved_rps=_event_rate(slo.finite(table.t_send_s)),
        max_in_flight=int(open_requests.max()) if len(open_requests) else 0,
        steady_request_rps=steady_rps,
        steady_output_tokens_per_s=steady_tokens,
    )


def _event_rate(times_s: Floats) -> float | None:
    span_s = float(times_s.max() - times_s.min()) if len(times_s) > 1 else 0.0
    return (len(times_s) - 1) / span_s if span_s > 0 else None


def _lengths(table: RecordTable, gaps: latency.TokenGaps, rng: np.random.Generator, level: float) -> Lengths:
    ok = table.ok
    tokens = np.sort(slo.finite(table.output_tokens[ok]))
    return Lengths(
        mean=estimates.mean(tokens, rng=rng, level=level),
        median=estimates.quantile(tokens, 0.5, level=level),
        cap_hits=estimates.wilson(count_true(cap_hit(table)), count_true(ok), level=level),
        finish_reasons=table.finish_reason.counts(ok),
        tokens_per_chunk=None if np.isnan(gaps.tokens_per_chunk) else gaps.tokens_per_chunk,
    )


def timeline_of(table: RecordTable, samples: Sequence[ServerSample]) -> Timeline:
    """What was going on at each moment of a run."""
    times, number = latency.in_flight(table)
    keep = np.isfinite(times)
    times, number = times[keep], number[keep]
    if len(times) > TIMELINE_POINTS:
        grid = np.linspace(times[0], times[-1], TIMELINE_POINTS)
        number = number[np.searchsorted(times, grid, side="right") - 1]
        times = grid
    step = -(-len(samples) // TIMELINE_POINTS) or 1
    kept = [sample for sample in samples[::step] if sample.error is None]
    return Timeline(
        in_flight=list(zip(times.tolist(), number.tolist(), strict=True)),
        running=[(sample.t_s, sample.running) for sample in kept if sample.running is not None],
        waiting=[(sample.t_s, sample.waiting) for sample in kept if sample.waiting is not None],
        cache_usage=[(sample.t_s, sample.cache_usage) for sample in kept if sample.cache_usage is not None],
    )


def _notes(table: RecordTable, manifest: RunManifest, gaps: latency.TokenGaps) -> list[str]:
    notes = [*manifest.trace.changes, *manifest.notes]
    if manifest.partial:
        notes.insert(0, f"the run is partial: {manifest.ended or 'it did not end in order'}")
    cut = count_true(table.has_status("censored"))
    doubted = table.ok & ~table.count_doubt.equals(None)
    guessed = count_true(table.ok & table.output_tokens_source.equals("chunks") & ~doubted)
    single = count_true(table.ok & (latency.decode_tokens(table) <= 0))
    silent = count_true(table.ok & np.isnan(table.t_first_s))
    clocked = count_true(~np.isnan(table.t_first_s) & table.clock.equals("user"))
    parts = [
        (cut, "request", "cut off by the end of the run: missed, and without latency here"),
        (guessed, "answer", "without usage from the server: tokens counted by chunks"),
        *((number, "answer", f"counted by chunks: {why}") for why, number in table.count_doubt.counts(doubted).items()),
        *(
            (number, "answer", f"whose cached prompt tokens are not known: {why}")
            for why, number in table.cached_doubt.counts(table.ok & ~table.cached_doubt.equals(None)).items()
        ),
        (count_true(too_short(table)), "answer", f"shorter than was asked for (min_tokens): {_UNHEEDED}"),
        (count_true(too_long(table)), "answer", f"longer than was asked for (max_tokens): {_UNHEEDED}"),
        (silent, "answer", "without a first token: empty, and missed"),
        (count_true(table.ok & table.in_bursts), "answer", f"came in bursts: {_BURSTS}"),
        (count_true(table.ok & table.damaged), "answer", "with text that is no UTF-8: its times and counts are true"),
        (single, "answer", "in one chunk, so without TPOT"),
        (clocked, "answer", "timed in user space, not by the kernel"),
        (gaps.backwards, "gap", "between chunks negative as recorded, counted as 0"),
    ]
    notes += [f"{words.plural(number, noun)} {text}" for number, noun, text in parts if number]
    return [*notes, *_unproven(table), *_against_tokenizer(manifest)]


def _against_tokenizer(manifest: RunManifest) -> list[str]:
    """That the server's own tokenizer finds another number of tokens in its answers."""
    check = manifest.token_check
    if check is None or not check.differs:
        return []
    return [
        f"in a sample of {words.plural(check.answers, 'answer')} {check.counted:,} tokens were counted, but the"
        f" server's own tokenizer finds {check.tokenized:,} in their texts: lengths, TPOT and tokens a second are not"
        " of the tokens that users read"
    ]


def _unproven(table: RecordTable) -> list[str]:
    """What rests on the server's own count alone, where that is more than a trifle."""
    told = table.ok & (table.unproven_tokens > 0)
    tokens, unproven = np.nansum(table.output_tokens[table.ok]), int(table.unproven_tokens[told].sum())
    if not unproven or unproven <= UNPROVEN_SHARE * tokens:
        return []
    a_chunk = np.nansum(table.output_tokens[told]) / max(table.chunk_count[told].sum(), 1)
    return [
        f"{unproven:,} of {int(tokens):,} tokens rest on the server's count alone: in"
        f" {words.plural(count_true(told), 'answer')} it counts {a_chunk:.1f} tokens a chunk, and no token ids show"
        " them; lengths, TPOT and tokens a second are as true as it is"
    ]
