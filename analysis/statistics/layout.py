"""Changes between arms judged by their runs, not by their requests.

What differs between two servers is the run: a machine drifts by a per cent between equal runs, and that drift is common
to all requests of a run, so that resampling requests cannot see it. Every run gives one figure ``y`` (the log of a
total time, a share, a mean). The arms form a two-way layout with the repeats::

    y[arm, repeat] = mean + effect[arm] + level[repeat] + noise

The baseline and its second measurement (A/A) have one effect between them. The noise is estimated from all arms, with
``(arms - 1)(repeats - 1)`` degrees of freedom and one more where there is an A/A run. An effect against the
baseline has a t interval from it, which is never narrower than the one over requests. Where several arms are held
against one baseline, p-values are adjusted by Holm's step-down method (Holm 1979).

With one run of each arm there is one degree of freedom, the A/A pair: a change is found from ``11.0 = t(0.975, 1) *
sqrt(3/4)`` times the A/A difference on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvload.analysis.records.table import Floats, Ints
from kvload.analysis.statistics.estimates import LEVEL, Estimate

FEWEST_PAIRS = 20
"""Fewer pairs than this have no interval and no verdict."""

POWER = 0.8
MOST_REPEATS = 60
MOST_REQUESTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """One arm's figure in every repeat, less the baseline's in the same repeat.

    Attributes:
        by_repeat: the difference by repeat number, in the unit that is judged (log, share, score).
        request_se: standard error of the mean difference over requests, repeats of a request taken together; None where
            there are fewer than :data:`FEWEST_PAIRS`.
        requests: distinct requests.
        least_half: the interval reaches at least this far to both sides.
        test_p: p-value of a paired test over requests that must reject as well (McNemar's, Wilcoxon's), if any.
    """

    by_repeat: Mapping[int, float]
    request_se: float | None
    requests: int
    least_half: float = 0.0
    test_p: float | None = None


def log_ratio(other: Floats, base: Floats, repeat: Ints, request: Ints) -> RunFigures:
    """The log of the ratio of two totals, run by run.

    Args:
        other, base: what is summed (seconds, tokens), one value a pair, 0 or more.
        repeat, request: the repeat and the request of every pair.
    """
    by_repeat = {}
    for number in np.unique(repeat).tolist():
        rows = repeat == number
        above, below = float(other[rows].sum()), float(base[rows].sum())
        if above > 0 and below > 0:
            by_repeat[number] = float(np.log(above / below))
    places, which = np.unique(request, return_inverse=True)
    if not by_repeat:
        return RunFigures(by_repeat={}, request_se=None, requests=len(places))
    above_each, below_each = np.bincount(which, weights=other), np.bincount(which, weights=base)
    influence = above_each / above_each.mean() - below_each / below_each.mean()
    return RunFigures(by_repeat=by_repeat, request_se=_standard_error(influence), requests=len(places))


def mean_change(values: Floats, repeat: Ints, request: Ints, *, bounded: bool = False) -> RunFigures:
    """The mean of paired differences, run by run.

    Args:
        values: one difference a pair.
        repeat, request: the repeat and the request of every pair.
        bounded: the differences lie within -1 and 1 (shares, scores). The interval then reaches at least 3/n to both
            sides: no change in n requests does not exclude that 3/n of all change.
    """
    by_repeat = {number: float(values[repeat == number].mean()) for number in np.unique(repeat).tolist()}
    places, which = np.unique(request, return_inverse=True)
    n = len(places)
    if not by_repeat:
        return RunFigures(by_repeat={}, request_se=None, requests=n)
    each = np.bincount(which, weights=values) / np.bincount(which)
    return RunFigures(
        by_repeat=by_repeat,
        request_se=_standard_error(each - each.mean()),
        requests=n,
        least_half=3 / n if bounded else 0.0,
    )


def _standard_error(influence: Floats) -> float | None:
    n = len(influence)
    return float(np.sqrt(np.square(influence).sum() / (n - 1) / n)) if n >= FEWEST_PAIRS else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """About how much more would decide with a power of 80 %, if the figures stay as they are; None: nothing needed of
    it, or no reasonable number."""

    repeats: int | None = None
    requests: int | None = None


@dataclass(frozen=True, kw_only=True)
class Effect:
    """An arm against the baseline.

    Attributes:
        change: the excess over the baseline under the model, with its unadjusted interval; ``n`` counts repeats.
        p_value: of no change; the larger of what runs and requests say.
        adjusted_p: the same after Holm's correction over ``family`` arms.
        family: arms that were held against this baseline in this question.
        df: degrees of freedom of the noise between runs; 0 where runs say nothing.
        arms, repeats, requests: what the figures rest on.
        run_half, request_half: half the interval's width by runs and by requests, in the unit judged.
        noise: how far the A/A run lies from the baseline's, as root mean square over repeats; None without A/A.
        plan: what would decide.
    """

    change: Estimate
    p_value: float | None
    adjusted_p: float | None
    family: int
    df: int
    arms: int
    repeats: int
    requests: int
    run_half: float | None
    request_half: float | None
    noise: float | None
    plan: Plan

    @property
    def found(self) -> bool:
        """Whether a change is found at the interval's level, after correction."""
        return self.adjusted_p is not None and self.adjusted_p < 1 - self.change.level


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """Effects of a two-way layout against its first group, as arrays over leading axes.

    Attributes:
        estimate: group less first group, shape (..., groups - 1).
        sd: residual standard deviation of one run, shape (...); NaN with no degree of freedom.
        factor: the standard error of each estimate is ``sd * factor``, shape (groups - 1,).
        df: residual degrees of freedom.
    """

    estimate: Floats
    sd: Floats
    factor: Floats
    df: int


def two_way(figures: Floats, groups: Sequence[int]) -> Contrasts:
    """Least squares of an additive layout.

    Args:
        figures: shape (..., arms, repeats); NaN, at the same places for all leading axes, where a run is missing.
        groups: the group of each arm, 0 for the baseline; arms of one group have one effect.
    """
    arms, repeats = figures.shape[-2:]
    present = ~np.isnan(figures.reshape(-1, arms, repeats)[0])
    which = np.array(groups)
    count = int(which.max()) + 1
    arm, repeat = np.nonzero(present)
    design = np.zeros((len(arm), repeats + count - 1))
    design[np.arange(len(arm)), repeat] = 1
    others = which[arm] > 0
    design[np.flatnonzero(others), repeats + which[arm][others] - 1] = 1
    design = design[:, design.any(axis=0) | (np.arange(design.shape[1]) >= repeats)]
    values = figures[..., arm, repeat]
    inverse = np.linalg.pinv(design)
    fitted = values @ inverse.T
    rank = int(np.linalg.matrix_rank(design)) if design.size else 0
    df = len(arm) - rank
    residual = values - fitted @ design.T
    # Rests of rounding are no noise: equal figures leave exactly none.
    scale = np.abs(values).max(axis=-1, initial=0.0)[..., None]
    residual = np.where(np.abs(residual) <= 1e-12 * np.maximum(scale, 1e-300), 0.0, residual)
    sd = np.sqrt(np.square(residual).sum(axis=-1) / df) if df else np.full(values.shape[:-1], np.nan)
    first = design.shape[1] - (count - 1)
    variance = np.diag(inverse @ inverse.T)[first:]
    return Contrasts(estimate=fitted[..., first:], sd=sd, factor=np.sqrt(variance), df=df)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values; what was not tested is no part of the family."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for number, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - number) * p))
        adjusted[place] = highest
    return adjusted


def effects(
    arms: Mapping[str, RunFigures],
    *,
    floor: str | None,
    margin: float | None = None,
    need_floor: bool = False,
    level: float = LEVEL,
) -> dict[str, Effect]:
    """Judge all arms of a comparison in one question.

    Args:
        arms: figures of every arm but the baseline, the A/A arm among them.
        floor: the name of the A/A arm, if it was run.
        margin: changes within it count as none. Without one nothing is planned.
        need_floor: without an A/A arm there is no interval and no p-value, however many repeats.
        level: confidence level.

    Returns:
        an effect for every arm that has a figure, the floor's own among them (as an arm of its own, outside of the
        family).
    """
    measured = {name: found for name, found in arms.items() if found.by_repeat}
    if not measured:
        return {}
    repeats = sorted({number for found in measured.values() for number in found.by_repeat})
    methods = [name for name in measured if name != floor]
    has_floor = floor in measured
    figures = np.array(
        [[0.0] * len(repeats)]
        + [[found.by_repeat.get(number, np.nan) for number in repeats] for found in measured.values()]
    )
    names = ["", *measured]
    groups = [0 if name in ("", floor) else 1 + methods.index(name) for name in names]
    found = two_way(figures, groups)
    usable = has_floor or not need_floor
    noise = None
    if floor is not None and has_floor:
        noise = float(np.sqrt(np.mean(np.square(list(measured[floor].by_repeat.values())))))
    half_made = {}
    for place, name in enumerate(methods):
        half_made[name] = _tested(
            float(found.estimate[place]),
            float(found.sd * found.factor[place]) if found.df and usable else None,
            found.df if usable else 0,
            measured[name],
            level,
            judged=usable,
        )
    adjusted = holm([half_made[name].p_value for name in methods])
    family = sum(half_made[name].p_value is not None for name in methods)
    results = {}
    for name, p_adjusted in zip(methods, adjusted, strict=True):
        made = half_made[name]
        plan = Plan()
        if margin is not None and p_adjusted is not None and p_adjusted >= 1 - level:
            plan = _plan(made, len(names), max(groups) + 1, len(repeats), family, margin, level)
        results[name] = made.effect(p_adjusted, family, len(names), len(repeats), noise, plan)
    if floor is not None and has_floor:
        # The A/A arm by itself: its difference is what the noise is, so that only the other residuals can judge it.
        own = two_way(figures, range(len(names)))
        place = names.index(floor) - 1
        spread = float(own.sd * own.factor[place]) if own.df else None
        made = _tested(float(own.estimate[place]), spread, own.df, measured[floor], level, judged=own.df > 0)
        results[floor] = made.effect(made.p_value, 1, len(names), len(repeats), noise, Plan())
    return {name: results[name] for name in measured}


@dataclass(frozen=True)
class _Tested:
    estimate: float
    run_se: float | None
    df: int
    figures: RunFigures
    p_value: float | None
    run_half: float | None
    request_half: float | None
    level: float

    def effect(
        self, adjusted: float | None, family: int, arms: int, repeats: int, noise: float | None, plan: Plan
    ) -> Effect:
        halves = [half for half in (self.run_half, self.request_half) if half is not None]
        half = max(halves) if halves and self.p_value is not None else None
        by_runs = self.run_half is not None and half == self.run_half
        method = f"t over runs, {self.df} df" if by_runs else "t over requests"
        return Effect(
            change=Estimate(
                estimate=self.estimate,
                low=None if half is None else self.estimate - half,
                high=None if half is None else self.estimate + half,
                method=method if half is not None else "none",
                n=repeats,
                level=self.level,
            ),
            p_value=self.p_value,
            adjusted_p=adjusted,
            family=family,
            df=self.df,
            arms=arms,
            repeats=repeats,
            requests=self.figures.requests,
            run_half=self.run_half,
            request_half=self.request_half,
            noise=noise,
            plan=plan,
        )


def _tested(
    estimate: float, run_se: float | None, df: int, figures: RunFigures, level: float, *, judged: bool
) -> _Tested:
    request_se, n = figures.request_se, figures.requests
    if not judged or request_se is None:
        return _Tested(estimate, run_se, df, figures, None, None, None, level)
    run_half = None if run_se is None else t_quantile((1 + level) / 2, df) * run_se
    request_half = max(t_quantile((1 + level) / 2, n - 1) * request_se, figures.least_half)
    p_value = max(_p(estimate, run_se, df), _p(estimate, request_se, n - 1), figures.test_p or 0.0)
    if abs(estimate) <= figures.least_half:
        p_value = 1.0
    return _Tested(estimate, run_se, df, figures, p_value, run_half, request_half, level)


def t_quantile(probability: float, df: int) -> float:
    """Student's quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def _p(estimate: float, se: float | None, df: int) -> float:
    """Two-sided; 0 where runs say nothing against it (None), 1 where nothing differs."""
    from scipy.special import stdtr

    if estimate == 0:
        return 1.0
    if se is None or se == 0:
        return 0.0
    return float(2 * stdtr(df, -abs(estimate) / se))


def power(effect: float, se: float, df: int, *, level: float = LEVEL, margin: float | None = None) -> float:
    """The probability to find ``effect``, or with ``margin`` to find that it lies within it.

    Args:
        effect: the true change.
        se: the standard error of its estimate.
        df: degrees of freedom of that error.
        level: of the interval that must exclude 0, or lie within the margin.
    """
    from scipy.special import nctdtr

    if se <= 0:
        return 1.0
    critical = t_quantile((1 + level) / 2, df)
    if margin is None:
        shift = min(abs(effect) / se, 37.0)
        return float(1 - nctdtr(df, shift, critical))
    upper, lower = (margin - effect) / se, (margin + effect) / se
    sides = [float(1 - nctdtr(df, min(max(side, 0.0), 37.0), critical)) for side in (upper, lower)]
    return max(0.0, sum(sides) - 1)


def _plan(made: _Tested, arms: int, groups: int, repeats: int, family: int, margin: float, level: float) -> Plan:
    adjusted_level = 1 - (1 - level) / max(family, 1)
    aims: list[tuple[float, float | None]] = [(adjusted_level, None)]
    if abs(made.estimate) < margin:
        aims.append((level, margin))
    plans = [_plan_for(made, arms, groups, repeats, aim_level, aim) for aim_level, aim in aims]
    known = [plan for plan in plans if plan != Plan()]
    return min(known, key=lambda plan: ((plan.repeats or 0) + 1) * ((plan.requests or 0) + 1), default=Plan())


def _plan_for(made: _Tested, arms: int, groups: int, repeats: int, aim_level: float, margin: float | None) -> Plan:
    """Repeats for the noise between runs, requests for the spread over requests; both where both stand against it."""
    figures, size = made.figures, made.estimate
    runs: int | None = 0
    if made.run_se:
        one_run = float(made.run_se * np.sqrt(repeats))
        wanted = repeats_for(size, one_run, arms, groups, repeats, aim_level, margin)
        runs = None if wanted is None else wanted - repeats
    more: int | None = 0
    if figures.request_se:
        n, one = figures.requests, figures.request_se * np.sqrt(figures.requests)
        low, high = n, MOST_REQUESTS

        def enough(count: int) -> bool:
            return power(size, float(one / np.sqrt(count)), count - 1, level=aim_level, margin=margin) >= POWER

        if not enough(low):
            if not enough(high):
                more = None
            else:
                while high - low > max(1, low // 100):
                    middle = (low + high) // 2
                    low, high = (low, middle) if enough(middle) else (middle, high)
                more = high - n
    if runs is None or more is None or (runs == 0 and more == 0 and figures.least_half == 0):
        # Both have the power already and the estimate fell short by chance: once more of what is there.
        return Plan(repeats=1) if runs == 0 and more == 0 else Plan()
    if figures.least_half and margin is not None:
        room = margin - abs(size)
        more = max(more, int(np.ceil(3 / room)) - figures.requests) if room > 0 else more
    return Plan(repeats=runs or None, requests=more or None)


def rescaled(effect: Effect, factor: float) -> Effect:
    """An effect in another unit."""

    def times(value: float | None) -> float | None:
        return None if value is None else value * factor

    return replace(
        effect,
        change=effect.change.scaled(factor),
        run_half=times(effect.run_half),
        request_half=times(effect.request_half),
        noise=times(effect.noise),
    )


def as_relative(effect: Effect) -> Effect:
    """An effect that was judged on a log scale, with its change and noise as relative ones."""
    change = effect.change
    moved = replace(change, estimate=_expm1(change.estimate), low=_expm1(change.low), high=_expm1(change.high))
    return replace(effect, change=moved, noise=_expm1(effect.noise))


def _expm1(value: float | None) -> float | None:
    return None if value is None else float(np.expm1(value))


def imagined(again: Effect) -> Effect:
    """The effect of a method that was not run, beside a baseline and its A/A arm that were: how wide it would be.

    Args:
        again: the A/A arm's effect; with ``n`` repeats its differences give as many degrees of freedom.
    """
    n = again.repeats
    sd = float(np.log1p(again.noise or 0.0)) / np.sqrt(2)
    half = t_quantile((1 + again.change.level) / 2, n) * sd * np.sqrt(1.5 / n)
    return replace(again, run_half=float(half), df=n, arms=3, family=1)


def repeats_to_tell(change: float, effect: Effect, *, groups: int) -> int | None:
    """Repeats of each arm in all with which a change is found with 80 % power at the noise between runs that was seen.

    Args:
        change: in the unit judged.
        effect: of any arm of the experiment.
        groups: arms that differ, the baseline with its A/A run as one.
    """
    if effect.run_half is None:
        return None
    level = effect.change.level
    one_run = effect.run_half / t_quantile((1 + level) / 2, effect.df) * np.sqrt(effect.repeats)
    adjusted = 1 - (1 - level) / max(effect.family, 1)
    return repeats_for(change, float(one_run), effect.arms, groups, effect.repeats, adjusted, None)


def repeats_for(
    size: float, one_run: float, arms: int, groups: int, least: int, level: float, margin: float | None
) -> int | None:
    """The fewest repeats, ``least`` or more, with the wanted power; ``one_run`` is the error of one repeat's effect."""
    for count in range(least, MOST_REPEATS + 1):
        df = max((arms - 1) * (count - 1) + arms - groups, 1)
        if power(size, float(one_run / np.sqrt(count)), df, level=level, margin=margin) >= POWER:
            return count
    return None
