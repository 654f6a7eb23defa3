"""Estimates with intervals: shares, means, ratios and quantiles.

Every function returns an :class:`Estimate` that names its method, its n and its level. Random resampling takes an
``rng``, so the same records give the same report.

============================ ===========================================================================================
Wilson                       score interval of a share (Wilson 1927)
BCa bootstrap                bias-corrected and accelerated bootstrap (Efron 1987) of means, ratios of sums and paired
                             differences, whole clusters resampled, acceleration from the closed-form jackknife; below
                             100 clusters with Student's quantiles and n - 1 (Hesterberg 2015); none below 20
ABC bootstrap                its analytic limit (DiCiccio and Efron 1992), for more than 1,024 clusters
binomial order statistics    distribution-free interval of a quantile
Woodruff, by request         quantile of values that come in clusters (Woodruff 1952)
============================ ===========================================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload.analysis.records.table import Bools, Floats, Ints

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 20
"""Fewer values than this have no interval for their mean: a bootstrap of them covers far less than it says."""

_CORRECTED_BELOW = 100
_RESAMPLE_UP_TO = 1024
_BLOCK = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and what is known about it.

    ``estimate`` is None where it is undefined (an empty set); ``low`` and ``high`` are None where the data do not bound
    it on that side. ``n`` counts the independent units (requests), ``level`` is the confidence level.
    """

    estimate: float | None
    low: float | None = None
    high: float | None = None
    method: str
    n: int
    level: float = LEVEL

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, where it has both ends."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of ``value``."""
        return (self.low is not None and self.low > value) or (self.high is not None and self.high < value)

    def shifted(self, offset: float) -> "Estimate":
        """The same estimate counted from elsewhere."""
        return replace(
            self,
            estimate=_plus(self.estimate, offset),
            low=_plus(self.low, offset),
            high=_plus(self.high, offset),
        )

    def scaled(self, factor: float) -> "Estimate":
        """The same estimate in another unit."""

        def times(value: float | None) -> float | None:
            return None if value is None else value * factor

        low, high = times(self.low), times(self.high)
        if factor < 0:
            low, high = high, low
        return replace(self, estimate=times(self.estimate), low=low, high=high)


def _plus(value: float | None, offset: float) -> float | None:
    return None if value is None else value + offset


def undefined(method: str, *, n: int = 0, level: float = LEVEL) -> Estimate:
    """What is reported where there is nothing to estimate."""
    return Estimate(estimate=None, method=method, n=n, level=level)


def normal_quantile(probability: float) -> float:
    """The standard normal distribution's quantile."""
    from scipy.special import ndtri

    return float(ndtri(probability))


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Estimate:
    """A share with Wilson's score interval.

    Args:
        successes: how many of ``n``.
        n: how many in all; 0 gives no estimate.
        level: confidence level.
    """
    if n == 0:
        return undefined("Wilson", level=level)
    return wilson_effective(successes / n, n, level=level)


def wilson_effective(share: float, n: float, *, level: float = LEVEL) -> Estimate:
    """Wilson's interval of a share that is as certain as one of ``n`` independent observations, whole or not."""
    z = normal_quantile((1 + level) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Estimate(estimate=share, low=low, high=high, method="Wilson", n=round(n), level=level)


def clustered_share(which: Bools, clusters: Ints, *, level: float = LEVEL) -> Estimate:
    """A share of observations of which those with the same cluster number belong together.

    Wilson's interval for the effective number of observations (Kish 1965): as many independent ones as would have the
    share's variance over clusters, at least the number of clusters and at most that of observations.
    """
    _, place = np.unique(clusters, return_inverse=True)
    groups = int(place.max()) + 1 if len(place) else 0
    if groups == len(which):
        return wilson(int(np.count_nonzero(which)), len(which), level=level)
    size = np.bincount(place)
    share = float(np.mean(which))
    residuals = np.bincount(place, weights=which) - share * size
    variance = float(np.square(residuals).sum()) / len(which) ** 2 * groups / max(groups - 1, 1)
    effective = share * (1 - share) / variance if variance > 0 else groups
    effective = min(max(effective, groups), len(which))
    found = wilson_effective(share, effective, level=level)
    return replace(found, method="Wilson, by request", n=groups)


def mean(values: Floats, *, rng: np.random.Generator, level: float = LEVEL, resamples: int = RESAMPLES) -> Estimate:
    """The mean of independent values, with a BCa (few values) or ABC (many) bootstrap interval."""
    return ratio_of_sums(values, np.ones(len(values)), rng=rng, level=level, resamples=resamples)


def clustered_mean(
    values: Floats,
    clusters: Ints,
    *,
    rng: np.random.Generator,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean of values of which those with the same cluster number belong together (repeats of one request).

    Args:
        values: one per observation.
        clusters: a number per observation; whole clusters are resampled.
        rng: source of the resampling.
        level: confidence level.
        resamples: bootstrap samples.
    """
    _, which = np.unique(clusters, return_inverse=True)
    sums = np.bincount(which, weights=values).astype(np.float64)
    return ratio_of_sums(sums, np.bincount(which).astype(np.float64), rng=rng, level=level, resamples=resamples)


def clustered_ratio(
    above: Floats,
    below: Floats,
    clusters: Ints,
    *,
    rng: np.random.Generator,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """``sum(above) / sum(below)`` over pairs of which those with the same cluster number belong together."""
    _, which = np.unique(clusters, return_inverse=True)
    sums = [np.bincount(which, weights=values).astype(np.float64) for values in (above, below)]
    return ratio_of_sums(sums[0], sums[1], rng=rng, level=level, resamples=resamples)


def paired_difference(
    after: Floats,
    before: Floats,
    clusters: Ints | None = None,
    *,
    rng: np.random.Generator,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean of ``after - before`` over pairs, by paired bootstrap: a resample takes both members of a pair."""
    numbers = np.arange(len(after)) if clusters is None else clusters
    found = clustered_mean(after - before, numbers, rng=rng, level=level, resamples=resamples)
    return replace(found, method=f"paired {found.method}")


def ratio_of_sums(
    numerators: Floats,
    denominators: Floats,
    *,
    rng: np.random.Generator,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """``sum(numerators) / sum(denominators)`` over clusters, each cluster giving one of both.

    A mean is the ratio whose denominators are 1; a mean over repeats has the number of repeats there.

    Args:
        numerators, denominators: one pair per cluster.
        rng: source of the resampling; unused for more than 1,024 clusters.
        level: confidence level.
        resamples: bootstrap samples.
    """
    n = len(numerators)
    total = float(denominators.sum())
    if n == 0 or total == 0:
        return undefined("BCa bootstrap", n=n, level=level)
    estimate = float(numerators.sum()) / total
    influence = (numerators - estimate * denominators) / (total / n)
    spread = float(np.sqrt(np.square(influence).sum()))
    if n < FEWEST:
        return Estimate(estimate=estimate, method=f"none: fewer than {FEWEST} values", n=n, level=level)
    if spread <= 1e-12 * max(abs(estimate), 1e-300) * np.sqrt(n):
        return Estimate(
            estimate=estimate, low=estimate, high=estimate, method="BCa bootstrap (all equal)", n=n, level=level
        )
    # The jackknife's acceleration of a mean in closed form; a ratio has it up to terms of order 1/n.
    acceleration = float((influence**3).sum()) / (6 * spread**3)
    tails = _tails(n, level)
    if n > _RESAMPLE_UP_TO:
        shifted = acceleration + tails
        low, high = estimate + spread / n * shifted / (1 - acceleration * shifted) ** 2
        return Estimate(estimate=estimate, low=float(low), high=float(high), method="ABC bootstrap", n=n, level=level)
    replicates = _resampled_ratio(numerators, denominators, rng, resamples)
    return _bca(replicates, estimate, acceleration, tails, n, level)


def _tails(n: int, level: float) -> Floats:
    """Standard normal deviates of the interval's ends.

    Few values' spread is underestimated by a bootstrap, which divides by n and takes it as known: below 100, Student's
    quantiles with n - 1 degrees of freedom, widened by sqrt(n / (n - 1)).
    """
    if n >= _CORRECTED_BELOW:
        return np.array([normal_quantile((1 - level) / 2), normal_quantile((1 + level) / 2)])
    from scipy.special import stdtrit

    upper = float(stdtrit(n - 1, (1 + level) / 2)) * float(np.sqrt(n / (n - 1)))
    return np.array([-upper, upper])


def _resampled_ratio(numerators: Floats, denominators: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    n = len(numerators)
    constant = bool((denominators == denominators[0]).all())
    step = max(1, _BLOCK // n)
    parts = []
    for first in range(0, resamples, step):
        draws = rng.integers(0, n, (min(step, resamples - first), n), dtype=np.int32)
        above = numerators[draws].sum(axis=1)
        below = denominators[0] * n if constant else denominators[draws].sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(above / below)
    return np.concatenate(parts)


def _bca(replicates: Floats, estimate: float, acceleration: float, tails: Floats, n: int, level: float) -> Estimate:
    from scipy.special import ndtr

    replicates = replicates[np.isfinite(replicates)]
    # Half of the ties count as below, as for discrete data they would pull the correction to one side.
    close = np.abs(replicates - estimate) <= 1e-12 * max(abs(estimate), 1e-300)
    below = (np.count_nonzero((replicates < estimate) & ~close) + 0.5 * np.count_nonzero(close)) / len(replicates)
    smallest = 0.5 / len(replicates)
    bias = normal_quantile(min(max(below, smallest), 1 - smallest))
    shifted = bias + tails
    low, high = np.quantile(replicates, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return Estimate(estimate=estimate, low=float(low), high=float(high), method="BCa bootstrap", n=n, level=level)


def quantile(ordered: Floats, q: float, *, level: float = LEVEL) -> Estimate:
    """A quantile of independent values with the distribution-free interval between two order statistics.

    Args:
        ordered: the values, ascending.
        q: 0 to 1. The estimate interpolates linearly (numpy's default).
        level: at least this confidence. Few values do not bound a high quantile from above: ``high`` is None then.
    """
    n = len(ordered)
    if n == 0:
        return undefined("binomial order statistics", level=level)
    low, high = _binomial_ranks(n, q, level)
    return Estimate(
        estimate=_interpolated(ordered, q),
        low=float(ordered[low - 1]) if low >= 1 else None,
        high=float(ordered[high - 1]) if high <= n else None,
        method="binomial order statistics",
        n=n,
        level=level,
    )


def _interpolated(ordered: Floats, q: float) -> float:
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (position - below) * (ordered[above] - ordered[below]))


def _binomial_ranks(n: int, q: float, level: float) -> tuple[int, int]:
    """Ranks (1-based) of the order statistics that enclose the quantile; 0 and n + 1 where there is none."""
    low, high = (_binomial_quantile(p, n, q) for p in ((1 - level) / 2, (1 + level) / 2))
    return low, high + 1


def _binomial_quantile(p: float, n: int, q: float) -> int:
    from scipy.special import bdtr, bdtrik

    k = int(np.ceil(max(bdtrik(p, n, q), 0.0))) if 0 < q < 1 else round(n * q)
    while k > 0 and bdtr(k - 1, n, q) >= p:
        k -= 1
    while k < n and bdtr(k, n, q) < p:
        k += 1
    return k


def clustered_quantile(
    values: npt.NDArray[Any],
    clusters: Ints,
    q: float,
    *,
    quantile_of: Callable[[float], float],
    population: int | None = None,
    level: float = LEVEL,
) -> Estimate:
    """A quantile of values that come in clusters, by Woodruff's method.

    The share of values up to the quantile is a ratio over clusters; its standard error, turned back into values by the
    quantile function itself, gives the interval.

    Args:
        values: values of all clusters or of a sample of them, at any scale.
        clusters: the cluster of each value, ``0 .. c - 1``.
        q: 0 to 1.
        quantile_of: the quantile function of all values.
        population: clusters in all, where ``values`` holds a sample.
        level: confidence level.
    """
    sampled = int(clusters.max()) + 1 if len(clusters) else 0
    n = population or sampled
    if sampled == 0:
        return undefined("Woodruff, by request", level=level)
    estimate = quantile_of(q)
    if sampled == 1:
        return Estimate(estimate=estimate, method="none: one request", n=n, level=level)
    inside = np.bincount(clusters, weights=values <= estimate, minlength=sampled)
    size = np.bincount(clusters, minlength=sampled)
    share = inside.sum() / size.sum()
    residuals = (inside - share * size) / size.mean()
    error = float(np.sqrt(np.square(residuals).sum() / (sampled - 1) / n))
    # No less than for independent values.
    error = max(error, float(np.sqrt(q * (1 - q) / (size.mean() * n))))
    z = normal_quantile((1 + level) / 2)
    low, high = q - z * error, q + z * error
    return Estimate(
        estimate=estimate,
        low=quantile_of(low) if low > 0 else None,
        high=quantile_of(high) if high < 1 else None,
        method="Woodruff, by request",
        n=n,
        level=level,
    )
