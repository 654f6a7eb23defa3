"""Arms against the baseline, request by request, with the baseline's second run as the noise floor."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvload.analysis import words
from kvload.analysis.comparison import arms as arms_module
from kvload.analysis.comparison import figures, thinking
from kvload.analysis.comparison.answers import Answers, AnswerScorer
from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.comparison.counts import held_against, unlike_prompts
from kvload.analysis.comparison.decision import MARGIN, attainment_margin, quality_margin
from kvload.analysis.comparison.decompose import decompose
from kvload.analysis.comparison.lengths import compare_lengths
from kvload.analysis.comparison.model import ArmComparison, Comparison, LatencyChange, Resolution, RunLimit, SloChange
from kvload.analysis.comparison.room import cache_room
from kvload.analysis.comparison.samples import worst_samples
from kvload.analysis.comparison.verdict import judge
from kvload.analysis.quality.negatives import DEFAULT_THETAS, Gate
from kvload.analysis.records import latency
from kvload.analysis.records.pairs import ArmRuns, LoadedArm, Pairs, check_arms, load_arm, pair
from kvload.analysis.records.table import count_true
from kvload.analysis.run import slo, streams
from kvload.analysis.statistics import estimates, layout, run_figures, significance
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.statistics.layout import Effect
from kvload.analysis.statistics.run_figures import RunFigures
from kvload.errors import PairingError
from kvload.units import request_limits

TELLS = 0.05
"""A machine on which a change of latency of this size cannot be told is called drifting."""

CORRELATED = 0.2
"""Above this correlation of neighbouring requests' TTFT, they say less about other traffic than their number does."""

UNLIKE_HITS = 0.02
"""Arms whose shares of prompt tokens from the prefix cache lie further apart did not compute the same prompts."""

_LONGEST_LAUNCH_S = 600.0


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


@dataclass(frozen=True)
class _Arm:
    """What is kept of one arm until all are there."""

    loaded: LoadedArm
    summary: ArmSummary
    pairs: Pairs
    figures: dict[str, RunFigures]
    rng: np.random.Generator


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
    base_summary = arms_module.summarise(base, limits, rng=np.random.default_rng([seed, 0]), level=level)
    others: list[_Arm] = []
    floor: str | None = None
    scorer = AnswerScorer(base)
    for number, given_arm in enumerate(coming, 1):
        if given_arm.floor and floor is not None:
            raise PairingError(f"two arms are marked as the floor; the second is '{given_arm.name}'")
        floor = given_arm.name if given_arm.floor else floor
        rng = np.random.default_rng([seed, number])
        loaded = held_against(base, given_arm)
        summary = arms_module.summarise(loaded, limits, rng=rng, level=level)
        pairs = pair(base, loaded, allow_sampling=allow_sampling)
        scorer.add(loaded, pairs)
        others.append(_Arm(loaded, summary, pairs, _figures(base, loaded, pairs, limits), rng))
    answers = scorer.result(
        floor=floor, rng=np.random.default_rng([seed, len(others) + 1]), gate=gate, thetas=thetas, level=level
    )
    effects = _effects(base_summary, others, floor, answers, base, level)
    comparisons = [_compare_arm(base, base_summary, arm, effects, limits, level) for arm in others]
    summaries = [base_summary, *(arm.summary for arm in others)]
    found = Comparison(
        trace=base.first.manifest.trace,
        mode=base.first.manifest.mode,
        repeats=len(base.runs),
        level=level,
        closed_loop=slo.is_closed_loop(base.first.manifest),
        limits_s=limits,
        run_limits=[
            limit
            for arm in (base, *(arm.loaded for arm in others))
            if not arm.floor
            for limit in _run_limits(arm, given)
        ],
        arms=summaries,
        comparisons=comparisons,
        verdicts={},
        resolution=_resolution(effects.get("latency", {}), floor, [base, *(arm.loaded for arm in others)]),
        answers=answers,
        notes=[*_notes(summaries, floor), *_traffic_note(base)],
        pairs={arm.loaded.name: arm.pairs for arm in others},
    )
    for arm in others:
        if not (arm.loaded.floor or arm.loaded.perturbed):
            found.verdicts[arm.loaded.name] = judge(found, arm.loaded.name)
    return found


def _run_limits(arm: LoadedArm, limits_s: Mapping[str, float]) -> list[RunLimit]:
    by_run = [slo.percentile_limits(run.table, limits_s) for run in arm.runs.values()]
    found = []
    for same in zip(*by_run, strict=True):
        measured = [limit.measured_s for limit in same if limit.measured_s is not None]
        found.append(
            RunLimit(
                arm=arm.name,
                name=same[0].name,
                limit_s=same[0].limit_s,
                runs=len(same),
                met=sum(limit.met for limit in same),
                worst_s=max(measured) if len(measured) == len(same) else None,
            )
        )
    return found


def _figures(base: LoadedArm, other: LoadedArm, pairs: Pairs, limits: Mapping[str, float]) -> dict[str, RunFigures]:
    found = figures.latency_figures(pairs)
    if limits:
        found |= figures.service_figures(base, other, pairs, limits)
    if pairs.mode == "free":
        found["lengths"] = figures.length_figures(pairs)
    return found


def _effects(
    base_summary: ArmSummary,
    others: Sequence[_Arm],
    floor: str | None,
    answers: Answers | None,
    base: LoadedArm,
    level: float,
) -> dict[str, dict[str, Effect]]:
    """Every question's effects by arm, in the units that are shown."""
    log_margin = float(np.log1p(MARGIN))
    found: dict[str, dict[str, Effect]] = {}
    judged = [arm for arm in others if not arm.loaded.perturbed]

    def add(question: str, margin: float, *, need_floor: bool, is_log: bool = False) -> None:
        measured = {arm.loaded.name: arm.figures[question] for arm in judged if question in arm.figures}
        made = layout.effects(measured, floor=floor, margin=margin, need_floor=need_floor, level=level)
        found[question] = {name: layout.as_relative(effect) if is_log else effect for name, effect in made.items()}

    for question in ("latency", *figures.LATENCIES):
        add(question, log_margin, need_floor=True, is_log=True)
    add("lengths", log_margin, need_floor=False, is_log=True)
    share = base_summary.attainment.estimate if base_summary.attainment else None
    add("attainment", attainment_margin(share), need_floor=True)
    add("goodput", MARGIN, need_floor=True)
    if floor in found["goodput"]:
        # The figures are relative to the baseline's first runs; what is judged is the change against both.
        again = next(arm.figures["goodput"].by_repeat for arm in others if arm.loaded.name == floor)
        whole = 1 + float(np.mean(list(again.values()))) / 2
        found["goodput"] = {name: layout.rescaled(effect, 1 / whole) for name, effect in found["goodput"].items()}
    # In an open loop good requests are counted over a window that the schedule sets: the share says it all.
    found["service"] = found["goodput" if slo.is_closed_loop(base.first.manifest) else "attainment"]
    if answers is not None:
        names = {arm.loaded.name for arm in judged}
        scores = {name: arm.figures for name, arm in answers.arms.items() if name in names}
        base_score = next((arm.overall.base_mean for arm in answers.arms.values()), None)
        found["quality"] = layout.effects(scores, floor=floor, margin=quality_margin(base_score), level=level)
        # What the others are held against here (A/A, or another dtype) is no arm of this layout.
        found["answers"] = layout.effects(answers.other_texts, floor=None, margin=MARGIN, level=level)
    return found


def _compare_arm(
    base: LoadedArm,
    base_summary: ArmSummary,
    arm: _Arm,
    effects: Mapping[str, Mapping[str, Effect]],
    limits: Mapping[str, float],
    level: float,
) -> ArmComparison:
    name, pairs = arm.loaded.name, arm.pairs
    mine = {question: found[name] for question, found in effects.items() if name in found}
    lengths = compare_lengths(pairs, rng=arm.rng, level=level)
    return ArmComparison(
        name=name,
        floor=arm.loaded.floor,
        perturbed=arm.loaded.perturbed,
        population=pairs.population,
        unlike_prompts=unlike_prompts(pairs),
        effects=mine,
        latency={metric: _latency_change(metric, pairs, mine, arm.rng, level) for metric in figures.LATENCIES},
        lengths=lengths,
        decomposition=decompose(pairs, rng=arm.rng, level=level),
        slo=_slo_change(pairs, mine, limits, level) if limits else None,
        room=cache_room(base_summary, arm.summary, base, arm.loaded),
        worst=worst_samples(pairs, base, arm.loaded) if lengths else [],
        notes=[*pairs.notes, *_prompt_note(pairs), *thinking.notes(pairs)],
    )


def _prompt_note(pairs: Pairs) -> list[str]:
    number = unlike_prompts(pairs)
    if not number:
        return []
    return [
        f"{number:,} of {pairs.population.answered:,} prompts have another length by the two servers' counts: one of"
        " them cut prompts, or made others of them"
    ]


def _change(effects: Mapping[str, Effect], question: str, level: float) -> Estimate:
    return effects[question].change if question in effects else estimates.undefined("none", level=level)


def _latency_change(
    metric: str, pairs: Pairs, effects: Mapping[str, Effect], rng: np.random.Generator, level: float
) -> LatencyChange:
    before, after, rows = figures.known_latency(metric, pairs)
    request = pairs.request[rows]
    return LatencyChange(
        n=len(rows),
        difference_s=estimates.clustered_mean(after - before, request, rng=rng, level=level),
        relative=_change(effects, metric, level),
        test=significance.wilcoxon(after - before, request),
    )


def _slo_change(pairs: Pairs, effects: Mapping[str, Effect], limits: Mapping[str, float], level: float) -> SloChange:
    before, after, rows = figures.met_limits(pairs, limits)
    return SloChange(
        n=len(rows),
        base_share=float(before.mean()) if len(rows) else None,
        share=float(after.mean()) if len(rows) else None,
        difference=_change(effects, "attainment", level),
        test=significance.mcnemar(before, after, pairs.request[rows]),
        lost=count_true(before & ~after),
        won=count_true(after & ~before),
        goodput=_at_least_nothing(_change(effects, "goodput", level)),
    )


def _at_least_nothing(change: Estimate) -> Estimate:
    """A relative change of a rate, which cannot fall below none at all."""
    return change if change.low is None else replace(change, low=max(change.low, -1.0))


def _resolution(effects: Mapping[str, Effect], floor: str | None, arms: Sequence[LoadedArm]) -> Resolution | None:
    """What the A/A pair says about this machine."""
    judged = [effect for name, effect in effects.items() if name != floor and effect.run_half is not None]
    if not judged and floor is not None and set(effects) == {floor}:
        judged = [layout.imagined(effects[floor])]
    if not judged:
        return None
    widest = max(judged, key=lambda effect: effect.run_half or 0.0)
    smallest = float(np.expm1(widest.run_half or 0.0))
    repeats = layout.repeats_to_tell(float(np.log1p(TELLS)), widest, groups=1 + len(judged))
    once_s = _experiment_s(arms) / widest.repeats
    return Resolution(
        noise=widest.noise or 0.0,
        smallest=smallest,
        wanted=TELLS,
        repeats=repeats,
        time_s=once_s * repeats if repeats and once_s else None,
        drifts=smallest > TELLS,
    )


def _experiment_s(arms: Sequence[LoadedArm]) -> float:
    """About how long all runs took, with the launches between them; those side by side count once."""
    spans = sorted(
        (run.manifest.started_at, slo.run_duration_s(run.table, run.manifest) or 0.0)
        for arm in arms
        for run in arm.runs.values()
        if run.manifest.started_at is not None
    )
    total, end = 0.0, None
    for start, length in spans:
        since = start if end is None else end
        total += min(max(start - since, 0.0), _LONGEST_LAUNCH_S) + max(start + length - max(start, since), 0.0)
        end = max(start + length, since)
    return total


def _traffic_note(base: LoadedArm) -> list[str]:
    """Where requests queue, neighbours resemble each other: this trace was measured, not traffic of its kind."""
    table = base.first.table
    ttft = latency.ttft_s(table)[np.argsort(table.t_sched_s, kind="stable")]
    known = ttft[~np.isnan(ttft)]
    if len(known) < run_figures.FEWEST_PAIRS or known.std() == 0:
        return []
    lag_1 = float(np.corrcoef(known[:-1], known[1:])[0, 1])
    if lag_1 <= CORRELATED:
        return []
    return [
        f"requests queue (the TTFT of neighbours correlates by {lag_1:.2f}): intervals hold for this trace on this"
        " machine and do not speak for other hours of traffic"
    ]


def _evictions(summary: ArmSummary) -> list[str]:
    """Whether an arm's method acted while it was measured, by its server's own count."""
    counted = [run.eviction for run in summary.runs if run.eviction is not None]
    if not counted:
        return []
    freed, requests = (sum(one.get(name, 0) for one in counted) for name in ("freed_blocks", "requests"))
    if not freed:
        return [f"{summary.name}: nothing was evicted during the runs, so that they show nothing of the method"]
    return [f"{summary.name}: {freed:,} blocks were freed of {requests:,} requests while they ran"]


def _prefix_hits(summaries: Sequence[ArmSummary]) -> list[str]:
    """What each arm took from its prefix cache, and whether that alone sets them apart."""
    shares = {summary.name: summary.hit_share for summary in summaries}
    known = {name: share for name, share in shares.items() if share is not None}
    if not any(known.values()):
        return []
    text = "prompt tokens from the prefix cache: " + ", ".join(
        f"{name} {'unknown' if share is None else words.share(share)}" for name, share in shares.items()
    )
    if max(known.values()) - min(known.values()) > UNLIKE_HITS:
        text += "; the arms did not compute the same prompts, and part of what sets their latency apart is that"
    return [text]


def _notes(summaries: Sequence[ArmSummary], floor: str | None) -> list[str]:
    notes = []
    if floor is None:
        notes.append("no noise floor was measured: the baseline ran once, so nothing shows how much equal arms differ")
    for summary in summaries:
        for run in summary.runs:
            if run.partial:
                notes.append(f"{summary.name}: repeat {run.repeat} is partial")
            if run.trust.client_bound:
                notes.append(f"{summary.name}: repeat {run.repeat} is client-bound: {run.trust.reasons[0]}")
        notes += _evictions(summary)
        notes += [
            f"{summary.name}: {number:,} of {summary.answered:,} answers are {how} than was asked for ({name})"
            for number, how, name in (
                (summary.too_short, "shorter", "min_tokens"),
                (summary.too_long, "longer", "max_tokens"),
            )
            if number
        ]
        beyond = streams.note(summary.streams, summary.info.engine)
        if beyond is not None:
            notes.append(f"{summary.name}: {beyond}")
    prefix = {summary.name: summary.info.prefix_cache for summary in summaries}
    if "on" in prefix.values():
        shared = [name for name, state in prefix.items() if state == "on"]
        notes.append(f"the prefix cache was on and not emptied before the run: {', '.join(shared)}")
    notes += _prefix_hits(summaries)
    for what in ("model", "engine", "engine_version", "device"):
        values = {getattr(summary.info, what) for summary in summaries}
        if len(values) > 1:
            notes.append(f"the arms differ in {what.replace('_', ' ')}: {', '.join(sorted(map(str, values)))}")
    return notes
