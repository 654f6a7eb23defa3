"""From points to curves: attainment and goodput over load, what each arm carries, and its ratio to the baseline's.

Every level gives a share of requests that met the limits. Requests of one run share its moments, and equal runs
differ by more than counting explains: the shares are taken as quasi-binomial, with one dispersion for the whole sweep,
Pearson's statistic of the repeats over its degrees of freedom and at least 1 (Wedderburn 1974; McCullagh and Nelder
1989, section 4.5). Where no level was run twice it is 1, and what drifts between runs is not in the intervals.

Capacity is drawn: each level's share from its Jeffreys posterior, counts divided by the dispersion; the draws are made
to fall with the load (isotonic regression, Ayer et al. 1955), and the capacity lies somewhere between the last level
that reaches the target and the first that does not, evenly on a logarithmic scale. So its interval holds the chance of
the requests and the distance of the levels. The estimate is the draws' median; a ratio is taken draw by draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.sweep.model import Axis, Curve, Level, Point
from kvload.records import ServerInfo

Floats = npt.NDArray[np.float64]

DRAWS = 4000
METHOD = "quasi-binomial draws"


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
    spread = measured or 1.0
    draws = {
        arm: _capacity_draws(groups, target, spread, np.random.default_rng((seed, place)))
        for place, (arm, groups) in enumerate(by_arm.items())
    }
    found = []
    for arm, groups in by_arm.items():
        levels = tuple(_level(axis, load, group, spread, level) for load, group in groups)
        sent = sum(point.sent for _, group in groups for point in group)
        met_at, missed_at = _bracket(groups, target)
        good_tokens = next((each.good_tokens_per_s for each in levels if each.level == met_at), None)
        found.append(
            Curve(
                arm=arm,
                baseline=arm == baseline,
                server=(servers or {}).get(arm),
                levels=levels,
                capacity=_estimate(draws[arm], sent, level),
                met_at=met_at,
                missed_at=missed_at,
                ratio=None if arm == baseline else _estimate(_ratio(draws[arm], draws[baseline]), sent, level),
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
    """Pearson's statistic of equal runs over its degrees of freedom, at least 1."""
    statistic, freedom = 0.0, 0
    for groups in by_arm.values():
        for _, group in groups:
            runs = [point for point in group if point.sent]
            if len(runs) < 2:
                continue
            sent = np.array([point.sent for point in runs], dtype=float)
            met = np.array([point.met for point in runs], dtype=float)
            share = met.sum() / sent.sum()
            freedom += len(runs) - 1
            if 0 < share < 1:
                statistic += float((((met - sent * share) ** 2) / (sent * share * (1 - share))).sum())
    return max(statistic / freedom, 1.0) if freedom else None


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


def _falling(shares: Floats, weights: Floats) -> Floats:
    """The closest non-increasing sequence in each row, weighted: ``max over k >= i of min over j <= i of mean(j..k)``.

    Args:
        shares: ``(rows, levels)``.
        weights: ``(levels,)``.
    """
    count = shares.shape[1]
    sums = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares * weights, axis=1)], axis=1)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    fitted = np.full_like(shares, -np.inf)
    for last in range(count):
        lowest = np.full(len(shares), np.inf)
        for first in range(last + 1):
            mean = (sums[:, last + 1] - sums[:, first]) / (total[last + 1] - total[first])
            lowest = np.minimum(lowest, mean)
            fitted[:, first] = np.maximum(fitted[:, first], lowest)
    return fitted


def _capacity_draws(groups: Groups, target: float, spread: float, rng: np.random.Generator) -> Floats:
    """Capacities that the counts allow: 0 where the lowest level misses the target, infinite where none does."""
    groups = [(load, group) for load, group in groups if sum(point.sent for point in group)]
    if not groups:
        return np.full(DRAWS, np.nan)
    loads = np.array([load for load, _ in groups])
    sent = np.array([sum(point.sent for point in group) for _, group in groups], dtype=float)
    met = np.array([sum(point.met for point in group) for _, group in groups], dtype=float)
    shares = rng.beta(met / spread + 0.5, (sent - met) / spread + 0.5, size=(DRAWS, len(groups)))
    reached = _falling(shares, sent) >= target
    number = reached.sum(axis=1)
    place = rng.uniform(size=DRAWS)
    logs = np.log(loads)
    low, high = logs[np.maximum(number - 1, 0)], logs[np.minimum(number, len(loads) - 1)]
    between = np.exp(low + place * (high - low))
    return np.where(number == 0, 0.0, np.where(number == len(loads), np.inf, between))


def _ratio(arm: Floats, base: Floats) -> Floats:
    """Draw by draw; not a number where both lie on the same side of all levels tried."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(arm / base)


def _estimate(draws: Floats, n: int, level: float) -> Estimate:
    """Median and equal-tailed interval; an end that no level bounds is None.

    A draw that is not a number may be anything: it counts as 0 for the lower end and as infinite for the upper.
    """
    if np.isnan(draws).all():
        return estimates.undefined(METHOD, n=n, level=level)
    least, greatest = np.nan_to_num(draws, nan=0.0, posinf=np.inf), np.nan_to_num(draws, nan=np.inf, posinf=np.inf)

    def quantile(values: Floats, q: float) -> float | None:
        # an order statistic: interpolation between a number and infinity is none
        value = float(np.sort(values)[round(q * (len(values) - 1))])
        return value if 0 < value < np.inf else None

    tail = (1 - level) / 2
    middle = (quantile(least, 0.5), quantile(greatest, 0.5))
    return Estimate(
        estimate=middle[0] if middle[0] == middle[1] else None,
        low=quantile(least, tail),
        high=quantile(greatest, 1 - tail),
        method=METHOD,
        n=n,
        level=level,
    )


def _bracket(groups: Groups, target: float) -> tuple[float | None, float | None]:
    """The highest level that reaches the target and the next one tried."""
    groups = [(load, group) for load, group in groups if sum(point.sent for point in group)]
    if not groups:
        return None, None
    sent = np.array([sum(point.sent for point in group) for _, group in groups], dtype=float)
    met = np.array([sum(point.met for point in group) for _, group in groups], dtype=float)
    fitted = _falling((met / sent)[None, :], sent)[0]
    number = int((fitted >= target - 1e-12).sum())
    loads = [load for load, _ in groups]
    return (loads[number - 1] if number else None), (loads[number] if number < len(loads) else None)


def _cost(price_per_hour: float | None, good_tokens_per_s: float | None) -> float | None:
    if price_per_hour is None or not good_tokens_per_s:
        return None
    return price_per_hour / 3600 / good_tokens_per_s * 1e6
