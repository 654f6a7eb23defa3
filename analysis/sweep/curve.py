"""From points to curves: attainment and goodput over load, what each arm carries, and its ratio to the baseline's.

How surely a capacity is known: :mod:`kvload.analysis.statistics.crossing`. The dispersion of a level is the larger of
what repeats say, of all levels together, and what the stretches of its own runs say: requests wait together where a
server is full, and nowhere else. Where no level was run twice, what drifts between runs is not in the intervals. A
ratio of capacities is taken draw by draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from kvload.analysis.statistics import crossing, estimates
from kvload.analysis.sweep.model import Axis, Curve, Level, Point
from kvload.records import ServerInfo

Floats = npt.NDArray[np.float64]


def curves_of(
    points: Sequence[Point],
    arms: Sequence[str],
    *,
    axis: Axis,
    baseline: str,
    target: float,
    servers: Mapping[str, ServerInfo] | None = None,
    failed: Mapping[str, str] | None = None,
    price_per_hour: float | None = None,
    seed: int = 0,
    level: float = estimates.LEVEL,
) -> tuple[tuple[Curve, ...], float | None]:
    """The curve of every arm, and the sweep's dispersion (None where no level was run twice).

    Args:
        points: all runs, in any order.
        arms: the arms' names in the order they are shown, those without a run included.
        axis: what the levels are.
        baseline: the arm that capacities are divided by.
        target: share of sent requests that must meet the limits.
        servers: what served each arm.
        failed: why arms could not be measured to their end.
        price_per_hour: what the server costs an hour, all its GPUs together.
        seed: of the draws.
        level: confidence level.
    """
    by_arm = {arm: _by_level([point for point in points if point.arm == arm]) for arm in arms}
    measured = _dispersion(by_arm)
    draws = {
        arm: _capacity_draws(groups, target, measured, np.random.default_rng((seed, place)))
        for place, (arm, groups) in enumerate(by_arm.items())
    }
    found, against = [], draws[baseline]
    for arm, groups in by_arm.items():
        levels = tuple(_level(axis, load, group, _spread(group, measured), level) for load, group in groups)
        sent = sum(point.sent for _, group in groups for point in group)
        met_at, missed_at = crossing.bracket(*_counts(groups), target)
        good_tokens = next((each.good_tokens_per_s for each in levels if each.level == met_at), None)
        found.append(
            Curve(
                arm=arm,
                baseline=arm == baseline,
                server=(servers or {}).get(arm),
                levels=levels,
                capacity=crossing.estimate(draws[arm], sent, level),
                met_at=met_at,
                missed_at=missed_at,
                ratio=None if arm == baseline else crossing.estimate(crossing.ratio(draws[arm], against), sent, level),
                best=max((each for each in levels), key=lambda each: each.goodput_rps.estimate or 0.0, default=None),
                cost_per_million=_cost(price_per_hour, good_tokens),
                failed=(failed or {}).get(arm),
            )
        )
    return tuple(found), measured


Groups = list[tuple[float, list[Point]]]


def _by_level(points: Sequence[Point]) -> Groups:
    ordered = sorted(points, key=lambda point: (point.level, point.repeat))
    return [(load, list(group)) for load, group in groupby(ordered, key=lambda point: point.level)]


def _dispersion(by_arm: Mapping[str, Groups]) -> float | None:
    """How much more equal runs differ than counting explains."""
    return crossing.dispersion(
        [
            ([point.sent for point in group], [point.met for point in group])
            for groups in by_arm.values()
            for _, group in groups
        ]
    )


def _spread(group: Sequence[Point], between_runs: float | None) -> float:
    """The dispersion of one level: requests that wait do so together, so that the stretches of its runs differ."""
    stretches = [stretch for point in group for stretch in point.stretches]
    within = crossing.dispersion([([sent for sent, _ in stretches], [met for _, met in stretches])])
    return max(between_runs or 1.0, within or 1.0)


def _level(axis: Axis, load: float, points: Sequence[Point], spread: float, level: float) -> Level:
    sent, met = sum(point.sent for point in points), sum(point.met for point in points)
    share = (
        estimates.wilson_effective(met / sent, sent / spread, level=level)
        if sent
        else estimates.undefined("Wilson", level=level)
    )
    share = replace(share, n=sent)
    rate = _sent_rps(axis, points)
    seconds = sent / rate if rate else None
    return Level(
        level=load,
        share=share,
        goodput_rps=share.scaled(rate) if rate is not None else estimates.undefined("Wilson", level=level),
        sent_rps=rate,
        good_tokens_per_s=sum(point.good_tokens for point in points) / seconds if seconds else None,
        output_tokens_per_s=_mean([point.output_tokens_per_s for point in points]),
        ttft_s=_middle([point.ttft_s for point in points]),
        tpot_s=_middle([point.tpot_s for point in points]),
        e2e_s=_middle([point.e2e_s for point in points]),
        points=tuple(points),
    )


def _sent_rps(axis: Axis, points: Sequence[Point]) -> float | None:
    """Requests sent a second: as asked, where the client kept pace; in a closed loop, as many as were answered."""
    if axis == "concurrency":
        return _mean([point.answered_rps for point in points])
    return _mean([point.level * (1.0 if point.kept_pace is None else point.kept_pace) for point in points])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _middle(values: Sequence[Mapping[float, float | None]]) -> dict[float, float | None]:
    """The median over repeats of each percentile."""
    found: dict[float, float | None] = {}
    for percent in values[0]:
        known = [value for each in values if (value := each[percent]) is not None]
        found[percent] = float(np.median(known)) if known else None
    return found


def _counts(groups: Groups) -> tuple[list[float], list[int], list[int]]:
    sent = [sum(point.sent for point in group) for _, group in groups]
    return [load for load, _ in groups], sent, [sum(point.met for point in group) for _, group in groups]


def _capacity_draws(
    groups: Groups, target: float, between_runs: float | None, rng: np.random.Generator
) -> crossing.Bounds:
    loads, sent, met = _counts(groups)
    spread = [_spread(group, between_runs) for _, group in groups]
    return crossing.draws(loads, sent, met, target=target, dispersion=spread, rng=rng)


def _cost(price_per_hour: float | None, good_tokens_per_s: float | None) -> float | None:
    if price_per_hour is None or not good_tokens_per_s:
        return None
    return price_per_hour / 3600 / good_tokens_per_s * 1e6
