"""Arms against the baseline, request by request, with the baseline's second run as the noise floor."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kvload.analysis.comparison import arms as arms_module
from kvload.analysis.comparison.answers import AnswerScorer, ArmQuality
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.decompose import decompose
from kvload.analysis.comparison.lengths import compare_lengths
from kvload.analysis.comparison.model import ArmComparison, Comparison, LatencyChange, SloChange
from kvload.analysis.comparison.samples import worst_samples
from kvload.analysis.comparison.verdict import judge
from kvload.analysis.quality.negatives import DEFAULT_THETAS, Gate
from kvload.analysis.records import latency
from kvload.analysis.records.pairs import ArmRuns, LoadedArm, Pairs, align, check_arms, load_arm, pair
from kvload.analysis.records.table import Floats, count_true
from kvload.analysis.run import slo
from kvload.analysis.run.summary import run_duration_s
from kvload.analysis.statistics import estimates, significance
from kvload.analysis.statistics.estimates import Estimate
from kvload.errors import PairingError
from kvload.units import request_limits

LATENCIES = ("ttft", "tpot", "e2e")


def compare(
    arms: Sequence[ArmRuns],
    *,
    slo_limits: Mapping[str, float] | None = None,
    level: float = estimates.LEVEL,
    allow_sampling: bool = False,
    seed: int = 0,
    gate: Gate | None = None,
    thetas: Iterable[float] = DEFAULT_THETAS,
) -> Comparison:
    """Compare arms.

    Args:
        arms: one baseline, at most one floor, and any number of others.
        slo_limits: limits in seconds; those of the baseline's first run where None.
        level: confidence level of all intervals.
        allow_sampling: accept requests sampled without a pinned seed.
        seed: of the bootstrap.
        gate: baseline scores good enough to lose something; the task's median where None.
        thetas: relative falls of a score that make a negative sample.

    Raises:
        PairingError: the runs cannot be compared.
        RunDirError: a run folder cannot be read.
    """
    check_arms(arms)
    return compare_loaded(
        (load_arm(arm) for arm in _in_order(arms)),
        slo_limits=slo_limits,
        level=level,
        allow_sampling=allow_sampling,
        seed=seed,
        gate=gate,
        thetas=thetas,
    )


def _in_order(arms: Iterable[ArmRuns]) -> list[ArmRuns]:
    """Baseline first, then the floor, which the others are held against."""
    return sorted(arms, key=lambda arm: (not arm.baseline, not arm.floor))


def compare_loaded(
    arms: Iterable[LoadedArm],
    *,
    slo_limits: Mapping[str, float] | None = None,
    level: float = estimates.LEVEL,
    allow_sampling: bool = False,
    seed: int = 0,
    gate: Gate | None = None,
    thetas: Iterable[float] = DEFAULT_THETAS,
) -> Comparison:
    """Compare arms that are read as they are needed: the baseline first, then the floor if there is one."""
    coming = iter(arms)
    base = next(coming)
    given = dict(base.first.manifest.slo if slo_limits is None else slo_limits)
    limits = request_limits(given)
    summaries = [arms_module.summarise(base, limits, rng=np.random.default_rng([seed, 0]), level=level)]
    comparisons: list[ArmComparison] = []
    all_pairs: dict[str, Pairs] = {}
    floor: Pairs | None = None
    scorer = AnswerScorer(base)
    for number, loaded in enumerate(coming, 1):
        rng = np.random.default_rng([seed, number])
        summaries.append(arms_module.summarise(loaded, limits, rng=rng, level=level))
        pairs = pair(base, loaded, allow_sampling=allow_sampling)
        comparisons.append(_compare_pair(base, loaded, pairs, floor, limits, rng, level))
        all_pairs[loaded.name] = pairs
        scorer.add(loaded)
        if loaded.floor:
            if floor is not None:
                raise PairingError(f"two arms are marked as the floor; the second is '{loaded.name}'")
            floor = pairs
    found = Comparison(
        trace=base.first.manifest.trace,
        mode=base.first.manifest.mode,
        repeats=len(base.runs),
        level=level,
        limits_s=limits,
        arms=summaries,
        comparisons=comparisons,
        verdicts={},
        answers=scorer.result(
            floor=floor.other_name if floor else None,
            rng=np.random.default_rng([seed, len(summaries)]),
            gate=gate,
            thetas=thetas,
            level=level,
        ),
        notes=_notes(summaries, floor),
        pairs=all_pairs,
    )
    floors = found.floor
    for summary, comparison in zip(summaries[1:], comparisons, strict=True):
        if not comparison.floor:
            found.verdicts[comparison.name] = judge(
                base=summaries[0],
                arm=summary,
                change=comparison,
                floor=floors,
                mode=found.mode,
                quality=_quality(found, comparison.name),
                noise=_quality(found, floors.name) if floors else None,
            )
    return found


def _quality(comparison: Comparison, arm: str) -> ArmQuality | None:
    return comparison.answers.arms[arm] if comparison.answers else None


def _compare_pair(
    base: LoadedArm,
    other: LoadedArm,
    pairs: Pairs,
    floor: Pairs | None,
    limits: Mapping[str, float],
    rng: np.random.Generator,
    level: float,
) -> ArmComparison:
    lengths = compare_lengths(pairs, floor, rng=rng, level=level)
    return ArmComparison(
        name=other.name,
        floor=other.floor,
        population=pairs.population,
        latency={name: _latency_change(name, pairs, floor, rng, level) for name in LATENCIES},
        lengths=lengths,
        decomposition=decompose(pairs, rng=rng, level=level),
        slo=_slo_change(base, other, pairs, floor, limits, rng, level) if limits else None,
        worst=worst_samples(pairs, base, other) if lengths else [],
        notes=list(pairs.notes),
    )


def _change_s(name: str, pairs: Pairs) -> tuple[Floats, Floats]:
    """The change of a latency and its value under the baseline; NaN where either request lacks it."""
    before, after = latency.METRICS[name](pairs.base), latency.METRICS[name](pairs.other)
    change = np.where(pairs.answered, after - before, np.nan)
    return change, np.where(np.isnan(change), np.nan, before)


def _latency_change(
    name: str, pairs: Pairs, floor: Pairs | None, rng: np.random.Generator, level: float
) -> LatencyChange:
    change, before = _change_s(name, pairs)
    known = ~np.isnan(change)
    request = pairs.request[known]
    return LatencyChange(
        n=count_true(known),
        difference_s=estimates.clustered_mean(change[known], request, rng=rng, level=level),
        relative=estimates.clustered_ratio(change[known], before[known], request, rng=rng, level=level),
        beyond_floor=None if floor is None else _beyond_floor(name, change, before, pairs, floor, rng, level),
        test=significance.wilcoxon(change[known], request),
    )


def _beyond_floor(
    name: str, change: Floats, before: Floats, pairs: Pairs, floor: Pairs, rng: np.random.Generator, level: float
) -> Estimate:
    rows, rows_floor = align(pairs, floor)
    beyond = change[rows] - _change_s(name, floor)[0][rows_floor]
    known = ~np.isnan(beyond)
    return estimates.clustered_ratio(
        beyond[known], before[rows][known], pairs.request[rows][known], rng=rng, level=level
    )


def _slo_change(
    base: LoadedArm,
    other: LoadedArm,
    pairs: Pairs,
    floor: Pairs | None,
    limits: Mapping[str, float],
    rng: np.random.Generator,
    level: float,
) -> SloChange:
    sent = pairs.base.sent & pairs.other.sent
    before, after = slo.meets_all(pairs.base, limits)[sent], slo.meets_all(pairs.other, limits)[sent]
    request = pairs.request[sent]
    good = after.astype(np.float64), before.astype(np.float64)
    durations = [_duration_s(arm, pairs.population.repeats) for arm in (base, other)]
    if durations[0] and durations[1] and before.any():
        ratio = estimates.clustered_ratio(good[0], good[1], request, rng=rng, level=level).scaled(
            durations[0] / durations[1]
        )
        goodput = ratio.shifted(-1.0)
    else:
        goodput = estimates.undefined("BCa bootstrap", n=len(before), level=level)
    return SloChange(
        difference=estimates.paired_difference(good[0], good[1], request, rng=rng, level=level),
        beyond_floor=None if floor is None else _slo_beyond_floor(pairs, floor, limits, rng, level),
        test=significance.mcnemar(before, after, request),
        lost=count_true(before & ~after),
        won=count_true(after & ~before),
        goodput=goodput,
    )


def _slo_beyond_floor(
    pairs: Pairs, floor: Pairs, limits: Mapping[str, float], rng: np.random.Generator, level: float
) -> Estimate:
    rows, rows_floor = align(pairs, floor)
    sent = pairs.other.sent[rows] & floor.other.sent[rows_floor]
    passed = slo.meets_all(pairs.other, limits)[rows][sent], slo.meets_all(floor.other, limits)[rows_floor][sent]
    after, again = (values.astype(np.float64) for values in passed)
    return estimates.paired_difference(after, again, pairs.request[rows][sent], rng=rng, level=level)


def _duration_s(arm: LoadedArm, repeats: Sequence[int]) -> float | None:
    durations = [run_duration_s(run.table, run.manifest) for repeat, run in arm.runs.items() if repeat in repeats]
    known = [duration for duration in durations if duration is not None]
    return sum(known) if len(known) == len(durations) else None


def _notes(summaries: Sequence[ArmSummary], floor: Pairs | None) -> list[str]:
    notes = []
    if floor is None:
        notes.append("no noise floor was measured: the baseline ran once, so nothing shows how much equal arms differ")
    for summary in summaries:
        for run in summary.runs:
            if run.partial:
                notes.append(f"{summary.name}: repeat {run.repeat} is partial")
            if run.trust.client_bound:
                notes.append(f"{summary.name}: repeat {run.repeat} is client-bound: {run.trust.reasons[0]}")
    prefix = {summary.name: summary.info.prefix_cache for summary in summaries}
    if "on" in prefix.values():
        shared = [name for name, state in prefix.items() if state == "on"]
        notes.append(f"the prefix cache was on and not emptied before the run: {', '.join(shared)}")
    for what in ("model", "engine", "engine_version", "device"):
        values = {getattr(summary.info, what) for summary in summaries}
        if len(values) > 1:
            notes.append(f"the arms differ in {what.replace('_', ' ')}: {', '.join(sorted(map(str, values)))}")
    return notes
