"""Where a share that falls with the load crosses a target, and how surely that is known.

Each load gives a share of requests that met the limits. Requests of one run share its moments, so that the shares vary
more than counting explains: they are taken as quasi-binomial, their variance times a dispersion of at least 1
(Wedderburn 1974; McCullagh and Nelder 1989, section 4.5).

The crossing is drawn: each load's share from its Jeffreys posterior, counts divided by the dispersion; the draws are
made to fall with the load (isotonic regression, Ayer et al. 1955), and the crossing lies somewhere between the last
load that reaches the target and the first that does not, evenly on a logarithmic scale. So its interval holds the
chance of the requests and the distance of the loads.
"""

from collections.abc import Sequence

import numpy as np

from kvload.analysis.records.table import Bools, Floats
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate

DRAWS = 4000
METHOD = "quasi-binomial draws"

Bounds = tuple[Floats, Floats]
"""The least and the greatest that each draw allows: the same, unless it lies outside all loads."""


def falling(shares: Floats, weights: Floats) -> Floats:
    """The closest non-increasing sequence in each row, weighted: ``max over k >= i of min over j <= i of mean(j..k)``.

    Args:
        shares: ``(rows, loads)``.
        weights: ``(loads,)``.
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


def draws(
    loads: Sequence[float],
    sent: Sequence[int],
    met: Sequence[int],
    *,
    target: float,
    dispersion: float | Sequence[float],
    rng: np.random.Generator,
) -> Bounds:
    """Crossings that the counts allow: from 0 where the lowest load misses the target, unbounded where none does.

    Args:
        loads: in rising order.
        sent, met: requests at each load, and how many of them met the limits; loads without requests are left out.
        target: share that is to be reached.
        dispersion: how many times the counts vary more than by chance, at least 1: one for all loads, or one a load.
        rng: source of the draws.
    """
    kept = [place for place, number in enumerate(sent) if number]
    if not kept:
        return np.zeros(DRAWS), np.full(DRAWS, np.inf)
    logs = np.log([loads[place] for place in kept])
    asked = np.array([sent[place] for place in kept], np.float64)
    good = np.array([met[place] for place in kept], np.float64)
    spread = np.broadcast_to(np.asarray(dispersion, np.float64), len(loads))[kept]
    shares = rng.beta(good / spread + 0.5, (asked - good) / spread + 0.5, size=(DRAWS, len(kept)))
    number = (falling(shares, asked) >= target).sum(axis=1)
    place = rng.uniform(size=DRAWS)
    low, high = logs[np.maximum(number - 1, 0)], logs[np.minimum(number, len(kept) - 1)]
    between = np.exp(low + place * (high - low))
    return np.where(number == 0, 0.0, between), np.where(number == len(kept), np.inf, between)


def ratio(drawn: Bounds, base: Bounds) -> Bounds:
    """One crossing over another, draw by draw."""
    with np.errstate(divide="ignore", invalid="ignore"):
        least, greatest = drawn[0] / base[1], drawn[1] / base[0]
    return np.nan_to_num(least, nan=0.0, posinf=np.inf), np.nan_to_num(greatest, nan=np.inf, posinf=np.inf)


def estimate(drawn: Bounds, n: int, level: float = estimates.LEVEL) -> Estimate:
    """Median and equal-tailed interval of draws between their bounds; an end that no load bounds is None."""
    least, greatest = drawn

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


def bracket(
    loads: Sequence[float], sent: Sequence[int], met: Sequence[int], target: float
) -> tuple[float | None, float | None]:
    """The highest load whose fitted share reaches the target, and the next one tried."""
    kept = [place for place, number in enumerate(sent) if number]
    if not kept:
        return None, None
    asked = np.array([sent[place] for place in kept], np.float64)
    good = np.array([met[place] for place in kept], np.float64)
    number = int((falling((good / asked)[None, :], asked)[0] >= target - 1e-12).sum())
    tried = [loads[place] for place in kept]
    return (tried[number - 1] if number else None), (tried[number] if number < len(tried) else None)


def dispersion(groups: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float | None:
    """Pearson's statistic of parts that should have one share, over its degrees of freedom, at least 1.

    Args:
        groups: for each group its parts' numbers of requests, and of those that met the limits.

    Returns:
        None where no group has two parts.
    """
    statistic, freedom = 0.0, 0
    for asked, good in groups:
        sent, met = (np.array([g for g, a in zip(values, asked, strict=True) if a], float) for values in (asked, good))
        if len(sent) < 2:
            continue
        share = met.sum() / sent.sum()
        freedom += len(sent) - 1
        if 0 < share < 1:
            statistic += float((((met - sent * share) ** 2) / (sent * share * (1 - share))).sum())
    return max(statistic / freedom, 1.0) if freedom else None


def batches(met: Bools, count: int) -> tuple[list[int], list[int]]:
    """Requests in their order, cut into ``count`` stretches: how many each holds, and how many met the limits."""
    parts = np.array_split(met, min(count, len(met))) if len(met) else []
    return [len(part) for part in parts], [int(np.count_nonzero(part)) for part in parts]
