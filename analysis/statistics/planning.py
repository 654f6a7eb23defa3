"""How much more would decide: the power of a t test, and the repeats and requests that give it."""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.statistics.estimates import LEVEL
from kvload.analysis.statistics.run_figures import RunFigures

POWER = 0.8
MOST_REPEATS = 60
MOST_REQUESTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """About how much more would decide with a power of 80 %, if the figures stay as they are; None: nothing needed of
    it, or no reasonable number."""

    repeats: int | None = None
    requests: int | None = None


def t_quantile(probability: float, df: int) -> float:
    """Student's quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


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


def plan_for(
    size: float,
    run_se: float | None,
    figures: RunFigures,
    *,
    arms: int,
    groups: int,
    repeats: int,
    family: int,
    margin: float,
    level: float,
) -> Plan:
    """What would decide whether an arm differs, or lies within ``margin`` of the baseline, if figures stay as they are.

    Args:
        size: the change that was estimated.
        run_se: its standard error by the noise between runs; None where runs say nothing.
        figures: what its requests say.
        arms, groups, repeats: of the layout; ``groups`` are arms that differ.
        family: arms that are held against this baseline.
        margin: changes within it count as none.
        level: confidence level.
    """
    adjusted_level = 1 - (1 - level) / max(family, 1)
    aims: list[tuple[float, float | None]] = [(adjusted_level, None)]
    if abs(size) < margin:
        aims.append((level, margin))
    plans = [_plan(size, run_se, figures, arms, groups, repeats, aim_level, aim) for aim_level, aim in aims]
    known = [plan for plan in plans if plan != Plan()]
    return min(known, key=lambda plan: ((plan.repeats or 0) + 1) * ((plan.requests or 0) + 1), default=Plan())


def _plan(
    size: float,
    run_se: float | None,
    figures: RunFigures,
    arms: int,
    groups: int,
    repeats: int,
    aim_level: float,
    margin: float | None,
) -> Plan:
    """Repeats for the noise between runs, requests for the spread over requests; both where both stand against it."""
    runs: int | None = 0
    if run_se:
        one_run = float(run_se * np.sqrt(repeats))
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


def repeats_for(
    size: float, one_run: float, arms: int, groups: int, least: int, level: float, margin: float | None
) -> int | None:
    """The fewest repeats, ``least`` or more, with the wanted power; ``one_run`` is the error of one repeat's effect."""
    for count in range(least, MOST_REPEATS + 1):
        df = max((arms - 1) * (count - 1) + arms - groups, 1)
        if power(size, _judged_se(one_run, count), df, level=level, margin=margin) >= POWER:
            return count
    return None


def _judged_se(one_run: float, repeats: int) -> float:
    """The error that ``repeats`` are expected to be judged by: the larger of that of all arms and of the arm's own.

    An arm's own scatter over ``n`` runs lies about its true one by ``1 / sqrt(2 (n - 1))`` of it, and of a normal
    deviation the part above 0 is 0.4 on average.
    """
    larger = 1 + 0.4 / np.sqrt(2 * (repeats - 1)) if repeats > 1 else 1.0
    return float(one_run / np.sqrt(repeats) * larger)
