"""Paired tests and censored distributions."""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.analysis.statistics.estimates import LEVEL


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """A two-sided test.

    ``p_value`` is None where there was nothing to test; ``n`` counts the units that bear on it (discordant pairs,
    differences that are not 0). ``estimate`` is the test's own figure of the effect.
    """

    estimate: float | None
    p_value: float | None
    method: str
    n: int

    def rejects(self, level: float = LEVEL) -> bool:
        """Whether the test finds a difference at the confidence ``level``."""
        return self.p_value is not None and self.p_value < 1 - level


TestResult.__test__ = False  # type: ignore[attr-defined]


def mcnemar(before: Bools, after: Bools, clusters: Ints | None = None) -> TestResult:
    """Did pass/fail of the same requests change?

    One observation a request: McNemar's test with the mid-p value (Fagerland et al. 2013, doi 10.1186/1471-2288-13-91).
    Repeats of requests: the clustered form of Durkalski et al. 2003 (doi 10.1002/sim.1438), whose units are requests.

    Args:
        before, after: pass or fail of each pair.
        clusters: the request each pair belongs to.

    Returns:
        with the difference in the share of passes as ``estimate``.
    """
    if not len(before):
        return TestResult(estimate=None, p_value=None, method="McNemar mid-p", n=0)
    difference = after.astype(np.int64) - before.astype(np.int64)
    estimate = float(difference.mean())
    if clusters is None or len(np.unique(clusters)) == len(clusters):
        lost, won = int(np.count_nonzero(difference < 0)), int(np.count_nonzero(difference > 0))
        return TestResult(estimate=estimate, p_value=_mid_p(lost, won), method="McNemar mid-p", n=lost + won)
    _, which = np.unique(clusters, return_inverse=True)
    # Each request weighs the same, however often it was repeated.
    shares = np.bincount(which, weights=difference) / np.bincount(which)
    moved = int(np.count_nonzero(shares))
    if not moved:
        return TestResult(estimate=estimate, p_value=1.0, method="clustered McNemar", n=0)
    from scipy.special import chdtrc

    statistic = float(shares.sum() ** 2 / np.square(shares).sum())
    return TestResult(estimate=estimate, p_value=float(chdtrc(1, statistic)), method="clustered McNemar", n=moved)


def _mid_p(lost: int, won: int) -> float:
    from scipy.special import bdtr

    n, fewer = lost + won, min(lost, won)
    if n == 0:
        return 1.0
    point = bdtr(fewer, n, 0.5) - (bdtr(fewer - 1, n, 0.5) if fewer else 0.0)
    return float(min(1.0, 2 * bdtr(fewer, n, 0.5) - point))


def wilcoxon(differences: Floats, clusters: Ints | None = None) -> TestResult:
    """Wilcoxon's signed-rank test of whether differences lie symmetrically about 0; zeros are dropped (Wilcoxon 1945).

    Args:
        differences: one per pair.
        clusters: the request each belongs to; repeats are averaged first.

    Returns:
        with the rank-biserial correlation (-1 to 1) as ``estimate``.
    """
    if clusters is not None and len(clusters):
        _, which = np.unique(clusters, return_inverse=True)
        differences = np.bincount(which, weights=differences) / np.bincount(which)
    kept = differences[differences != 0]
    if not len(kept):
        empty = not len(differences)
        return TestResult(
            estimate=None if empty else 0.0, p_value=None if empty else 1.0, method="Wilcoxon signed-rank", n=0
        )
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as signed_rank

    found = signed_rank(kept, method="asymptotic" if len(kept) > 50 else "auto")
    ranks = rankdata(np.abs(kept))
    estimate = float((ranks * np.sign(kept)).sum() / ranks.sum())
    return TestResult(estimate=estimate, p_value=float(found.pvalue), method="Wilcoxon signed-rank", n=len(kept))


@dataclass(frozen=True, kw_only=True)
class SurvivalCurve:
    """The share of answers longer than each length, with its pointwise interval (exponential Greenwood).

    ``median`` is None where half of the answers are longer than anything observed. ``restricted_mean`` is the mean
    length up to ``horizon``, the longest length observed.
    """

    lengths: list[float]
    longer: list[float]
    low: list[float]
    high: list[float]
    median: float | None
    restricted_mean: float | None
    horizon: float | None
    n: int
    censored: int
    method: str = "Kaplan-Meier"


def kaplan_meier(lengths: Floats, censored: Bools, *, level: float = LEVEL) -> SurvivalCurve:
    """Kaplan and Meier's estimate of a distribution of which some values are only known from below.

    Args:
        lengths: observed lengths; for a censored one the length at which it was cut off.
        censored: which were cut off.
        level: confidence level of the pointwise interval.
    """
    n, cut = len(lengths), int(np.count_nonzero(censored))
    if n == 0:
        return SurvivalCurve(
            lengths=[], longer=[], low=[], high=[], median=None, restricted_mean=None, horizon=None, n=0, censored=0
        )
    from kvload.analysis.statistics.estimates import normal_quantile

    values, place = np.unique(lengths, return_inverse=True)
    leaving = np.bincount(place)
    ended = np.bincount(place, weights=~censored)
    at_risk = n - np.concatenate([[0], np.cumsum(leaving)[:-1]])
    longer = np.cumprod(1 - ended / at_risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(ended / (at_risk * (at_risk - ended)))
        # log(-log S) is closer to normal than S and keeps the interval inside 0 and 1.
        half = normal_quantile((1 + level) / 2) * np.sqrt(greenwood) / np.abs(np.log(longer))
        low, high = longer ** np.exp(half), longer ** np.exp(-half)
    low, high = np.where(longer == 1, 1.0, np.nan_to_num(low)), np.where(longer == 1, 1.0, np.nan_to_num(high))
    steps = np.diff(np.concatenate([[0.0], values]))
    restricted = float((steps * np.concatenate([[1.0], longer[:-1]])).sum())
    half_reached = np.flatnonzero(longer <= 0.5)
    return SurvivalCurve(
        lengths=values.tolist(),
        longer=longer.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        median=float(values[half_reached[0]]) if len(half_reached) else None,
        restricted_mean=restricted,
        horizon=float(values[-1]),
        n=n,
        censored=cut,
    )
