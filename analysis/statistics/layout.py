"""Changes between arms judged by their runs, not by their requests.

What differs between two servers is the run: a machine drifts by a per cent between equal runs, and that drift is common
to all requests of a run, so that resampling requests cannot see it. Every run gives one figure ``y`` (the log of a
total time, a share, a mean). The arms form a two-way layout with the repeats::

    y[arm, repeat] = mean + effect[arm] + level[repeat] + noise

The baseline and its second measurement (A/A) have one effect between them. The noise is estimated from all arms, with
``(arms - 1)(repeats - 1)`` degrees of freedom and one more where there is an A/A run. An effect against the
baseline has a t interval from it, which is never narrower than the one over requests. An arm whose own differences from
the baseline scatter more from repeat to repeat than all arms' noise says has that scatter for its noise: quiet arms
do not speak for one whose runs differ. Where several arms are held
against one baseline, p-values are adjusted by Holm's step-down method (Holm 1979).

With one run of each arm there is one degree of freedom, the A/A pair: a change is found from ``11.0 = t(0.975, 1) *
sqrt(3/4)`` times the A/A difference on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvload.analysis.records.table import Floats
from kvload.analysis.statistics.estimates import LEVEL, Estimate
from kvload.analysis.statistics.planning import Plan, plan_for, repeats_for, t_quantile
from kvload.analysis.statistics.run_figures import RunFigures


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
        scattered: the noise is the arm's own, which is larger than that of all arms.
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
    scattered: bool = False

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
    scattered = {}
    for place, name in enumerate(methods):
        pooled_se = float(found.sd * found.factor[place]) if found.df and usable else None
        own_se = _own_se(measured[name], measured.get(floor) if floor is not None else None)
        scattered[name] = pooled_se is not None and own_se is not None and own_se > pooled_se
        half_made[name] = _tested(
            float(found.estimate[place]),
            own_se if scattered[name] else pooled_se,
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
            plan = plan_for(
                made.estimate,
                made.run_se,
                made.figures,
                arms=len(names),
                groups=max(groups) + 1,
                repeats=len(repeats),
                family=family,
                margin=margin,
                level=level,
            )
        effect = made.effect(p_adjusted, family, len(names), len(repeats), noise, plan)
        results[name] = replace(effect, scattered=scattered[name])
    if floor is not None and has_floor:
        # The A/A arm by itself: its difference is what the noise is, so that only the other residuals can judge it.
        own = two_way(figures, range(len(names)))
        place = names.index(floor) - 1
        spread = float(own.sd * own.factor[place]) if own.df else None
        made = _tested(float(own.estimate[place]), spread, own.df, measured[floor], level, judged=own.df > 0)
        results[floor] = made.effect(made.p_value, 1, len(names), len(repeats), noise, Plan())
    return {name: results[name] for name in measured}


def _own_se(arm: RunFigures, again: RunFigures | None) -> float | None:
    """Standard error of an arm's effect by its own differences from the baseline, over repeats; None with one repeat.

    Args:
        again: the A/A arm; where it was run, the baseline of a repeat is the mean of its two runs.
    """
    half = {} if again is None else {number: value / 2 for number, value in again.by_repeat.items()}
    apart = [value - half.get(number, 0.0) for number, value in arm.by_repeat.items()]
    return float(np.std(apart, ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else None


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


def _p(estimate: float, se: float | None, df: int) -> float:
    """Two-sided; 0 where runs say nothing against it (None), 1 where nothing differs."""
    from scipy.special import stdtr

    if estimate == 0:
        return 1.0
    if se is None or se == 0:
        return 0.0
    return float(2 * stdtr(df, -abs(estimate) / se))


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
