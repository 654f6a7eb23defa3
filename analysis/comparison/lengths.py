"""What compression does to the length of answers.

For request i, ``D = (L_base - L_other) / L_base`` (negative: the answer grew) and the inflation ratio
``L_other / L_base``. An answer cut off at ``max_tokens`` is censored: its true length is unknown, so beside the naive
figures stand the cap-hit rates and Kaplan-Meier curves. No sample is left out of the distribution of D.
"""

from dataclasses import dataclass, field

import numpy as np

from kvload.analysis.records.outcome import cap_hit
from kvload.analysis.records.pairs import Pairs, align
from kvload.analysis.records.table import Bools, Floats, Ints, count_true
from kvload.analysis.statistics import estimates, significance
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.statistics.significance import SurvivalCurve, TestResult

BIN_WIDTH = 0.1
LOWEST_BIN = -2.0
"""D below this lies in the histogram's open first bin; D never exceeds 1."""

TAIL = 0.5
ECDF_POINTS = 400
SCATTER_POINTS = 1500
_CURVE_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of D in bins of equal width; ``below`` holds everything under the first edge."""

    edges: list[float]
    counts: list[int]
    below: int


@dataclass(frozen=True, kw_only=True)
class LengthChange:
    """How the lengths of the answers changed, over pairs in which both requests were answered.

    Attributes:
        n: pairs with a length on both sides, not forced, and a baseline longer than 0.
        forced: answered pairs left out because their length was forced.
        empty_base: pairs left out because the baseline's answer is empty.
        difference_mean, difference_median: of D.
        ratio_mean, ratio_median: of the inflation ratio per request. The mean ratio of two equally noisy runs lies
            above 1, so it is to be read beside the floor's.
        ratio_total: all tokens of the arm over all tokens of the baseline.
        shrunk, grown: shares with ``D >= 50 %`` and ``D <= -50 %``.
        test: Wilcoxon's signed-rank test on the difference in tokens.
        cap_base, cap_other: shares of answered requests cut off at ``max_tokens``.
        capped: share of pairs with a cut answer on either side, whose D is naive.
        curve_base, curve_other: Kaplan-Meier curves; ``naive_*`` treat cut answers as complete.
        beyond_floor: mean inflation ratio less that of the A/A pair, request by request; None without a floor.
        histogram, ecdf, scatter: for plots; the ECDF as (D, share up to it), the scatter as (base, other, cut off).
    """

    n: int
    forced: int
    empty_base: int
    difference_mean: Estimate
    difference_median: Estimate
    ratio_mean: Estimate
    ratio_median: Estimate
    ratio_total: Estimate
    shrunk: Estimate
    grown: Estimate
    test: TestResult
    cap_base: Estimate
    cap_other: Estimate
    capped: Estimate
    curve_base: SurvivalCurve = field(repr=False)
    curve_other: SurvivalCurve = field(repr=False)
    naive_base: SurvivalCurve = field(repr=False)
    naive_other: SurvivalCurve = field(repr=False)
    beyond_floor: Estimate | None
    histogram: Histogram = field(repr=False)
    ecdf: list[tuple[float, float]] = field(repr=False)
    scatter: list[tuple[int, int, bool]] = field(repr=False)


def usable(pairs: Pairs) -> Bools:
    """Pairs of which D is defined: both answered and counted, the baseline's answer not empty."""
    counted: Bools = ~np.isnan(pairs.base.output_tokens) & ~np.isnan(pairs.other.output_tokens)
    return pairs.answered & counted & (pairs.base.output_tokens > 0) & ~forced(pairs)


def difference(pairs: Pairs) -> Floats:
    """D of every pair; NaN where it is undefined."""
    found = np.full(len(pairs.base), np.nan)
    rows = usable(pairs)
    found[rows] = 1 - pairs.other.output_tokens[rows] / pairs.base.output_tokens[rows]
    return found


def compare_lengths(
    pairs: Pairs, floor: Pairs | None = None, *, rng: np.random.Generator, level: float = estimates.LEVEL
) -> LengthChange | None:
    """Compare the lengths of two arms.

    Args:
        pairs: the arm against the baseline.
        floor: the baseline's second measurement against the baseline.
        rng: source of the bootstrap.
        level: confidence level.

    Returns:
        None where all lengths were forced: such answers say nothing.
    """
    if pairs.mode == "forced" or (len(pairs.base) and forced(pairs).all()):
        return None
    rows = usable(pairs)
    base, other = pairs.base.output_tokens[rows], pairs.other.output_tokens[rows]
    request = pairs.request[rows]
    ratio = other / base
    change = 1 - ratio
    cut = cap_hit(pairs.base) | cap_hit(pairs.other)

    def share(which: Bools, clusters: Ints = request) -> Estimate:
        return estimates.clustered_share(which, clusters, level=level)

    def middle(values: Floats) -> Estimate:
        return median_of(values, request, level=level)

    both = pairs.answered
    return LengthChange(
        n=len(base),
        forced=count_true(pairs.answered & forced(pairs)),
        empty_base=count_true(pairs.base.cause.equals("empty")),
        difference_mean=estimates.clustered_mean(change, request, rng=rng, level=level),
        difference_median=middle(change),
        ratio_mean=estimates.clustered_mean(ratio, request, rng=rng, level=level),
        ratio_median=middle(ratio),
        ratio_total=estimates.clustered_ratio(other, base, request, rng=rng, level=level),
        shrunk=share(change >= TAIL),
        grown=share(change <= -TAIL),
        test=significance.wilcoxon(other - base, request),
        cap_base=share(cap_hit(pairs.base)[both], pairs.request[both]),
        cap_other=share(cap_hit(pairs.other)[both], pairs.request[both]),
        capped=share(cut[rows]),
        curve_base=_curve(base, cap_hit(pairs.base)[rows], level),
        curve_other=_curve(other, cap_hit(pairs.other)[rows], level),
        naive_base=_curve(base, np.zeros(len(base), np.bool_), level),
        naive_other=_curve(other, np.zeros(len(other), np.bool_), level),
        beyond_floor=_beyond_floor(pairs, floor, rng, level),
        histogram=_histogram(change),
        ecdf=_ecdf(change),
        scatter=_scatter(base, other, cut[rows]),
    )


def forced(pairs: Pairs) -> Bools:
    """Pairs whose length was not the model's to choose: ``ignore_eos``, or ``min_tokens`` up to ``max_tokens``."""
    table = pairs.base
    found: Bools = table.ignore_eos | (table.min_tokens >= table.max_tokens)
    return found


def median_of(values: Floats, clusters: Ints, *, level: float = estimates.LEVEL) -> Estimate:
    """The median over pairs, by order statistics, or by Woodruff's method where requests were repeated."""
    _, which = np.unique(clusters, return_inverse=True)
    if len(values) == 0 or which.max() + 1 == len(values):
        return estimates.quantile(np.sort(values), 0.5, level=level)
    return estimates.clustered_quantile(
        values, which, 0.5, quantile_of=lambda q: float(np.quantile(values, q)), level=level
    )


def _beyond_floor(pairs: Pairs, floor: Pairs | None, rng: np.random.Generator, level: float) -> Estimate | None:
    if floor is None:
        return None
    rows, rows_floor = align(pairs, floor)
    inflation, noise = 1 - difference(pairs)[rows], 1 - difference(floor)[rows_floor]
    kept = ~np.isnan(inflation) & ~np.isnan(noise)
    return estimates.paired_difference(inflation[kept], noise[kept], pairs.request[rows][kept], rng=rng, level=level)


def _curve(lengths: Floats, censored: Bools, level: float) -> SurvivalCurve:
    curve = significance.kaplan_meier(lengths, censored, level=level)
    if len(curve.lengths) <= _CURVE_POINTS:
        return curve
    keep = np.unique(np.linspace(0, len(curve.lengths) - 1, _CURVE_POINTS).astype(int))
    thin = {name: np.array(getattr(curve, name))[keep].tolist() for name in ("lengths", "longer", "low", "high")}
    return SurvivalCurve(
        **thin,
        median=curve.median,
        restricted_mean=curve.restricted_mean,
        horizon=curve.horizon,
        n=curve.n,
        censored=curve.censored,
    )


def _histogram(change: Floats) -> Histogram:
    edges = np.round(np.arange(LOWEST_BIN, 1 + BIN_WIDTH / 2, BIN_WIDTH), 10)
    # Rounded, so that a D on an edge (0 above all) lies in the bin that starts there in spite of binary fractions.
    counts, _ = np.histogram(np.round(change, 12), edges)
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), below=count_true(change < LOWEST_BIN))


def _ecdf(change: Floats) -> list[tuple[float, float]]:
    values, counts = np.unique(change, return_counts=True)
    if not len(values):
        return []
    shares = np.cumsum(counts) / len(change)
    keep = np.unique(np.linspace(0, len(values) - 1, ECDF_POINTS).astype(int))
    return list(zip(values[keep].tolist(), shares[keep].tolist(), strict=True))


def _scatter(base: Floats, other: Floats, cut: Bools) -> list[tuple[int, int, bool]]:
    step = -(-len(base) // SCATTER_POINTS) or 1
    rows = slice(None, None, step)
    return [(int(a), int(b), c) for a, b, c in zip(base[rows], other[rows], cut[rows].tolist(), strict=True)]
