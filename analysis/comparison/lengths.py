"""What compression does to the length of answers.

For request i, ``D = (L_base - L_other) / L_base`` (negative: the answer grew) and the inflation ratio
``L_other / L_base``. An answer cut off at ``max_tokens``, by its own time limit or by the run's end is censored: its
true length is unknown. No sample is left out of the distribution of D.

What is judged is the mean of ``log(L_other / L_base)``, which is 0 between equal arms however noisy they are (the mean
ratio is not). Of a censored pair it takes what is certain and no more: the arm alone cut at more tokens than the
baseline's counts as that much longer, at fewer as no change, since either may be true; both cut is a tie (the scores of
Gehan 1965, for pairs). Both directions are treated alike, so that it stays 0 between equal arms, and under censoring it
understates a change.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from kvload.analysis.records.outcome import cap_hit, censored, cut_by_time, has_length
from kvload.analysis.records.pairs import Pairs
from kvload.analysis.records.table import Bools, Floats, Ints, count_true
from kvload.analysis.statistics import estimates, significance
from kvload.analysis.statistics.estimates import Estimate
from kvload.analysis.statistics.significance import SurvivalCurve, TestResult

BIN_WIDTH = 0.1
LOWEST_BIN = -2.0
"""D below this lies in the histogram's open first bin; D never exceeds 1."""

TAIL = 0.5
CUT_SHARE = 0.05
"""Where more pairs than this have a cut answer, lengths are never called the same."""

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
    """How the lengths of the answers changed, over pairs with a length on both sides.

    Attributes:
        n: pairs with a length on both sides (to the end, or until cut), not forced, and a baseline longer than 0.
        forced: pairs left out because their length was forced.
        empty_base: pairs left out of D and the ratios because the baseline's answer is empty.
        unstarted: pairs in which a request gave no answer at all (failed, refused, timed out before its first token).
        difference_mean, difference_median: of D.
        ratio_mean, ratio_median: of the inflation ratio per request. The mean ratio of two equally noisy runs lies
            above 1.
        ratio_total: all tokens of the arm over all tokens of the baseline.
        shrunk, grown: shares surely with ``D >= 50 %`` and ``D <= -50 %``.
        test: Wilcoxon's signed-rank test on the difference in tokens, in which censored pairs count as above.
        cap_base, cap_other: shares of answers cut off at ``max_tokens``.
        capped: share of pairs with a cut answer on either side, whose D is naive.
        cut_by_time: pairs with an answer cut by its time limit or by the run's end.
        both_cut: pairs with both answers cut, which say nothing.
        base_cut_alone, other_cut_alone: pairs with one answer cut; the other's true length is unknown in one direction.
        informative: distinct requests with a pair that is not cut on both sides.
        enough_tokens: a ``max_tokens`` that about 5 % of the answers would still reach, if the others end as fast as
            those that did; None where none did, or none is cut.
        curve_base, curve_other: Kaplan-Meier curves; ``naive_*`` treat cut answers as complete.
        histogram, ecdf, scatter: for plots; the ECDF as (D, share up to it), the scatter as (base, other, cut off).
    """

    n: int
    forced: int
    empty_base: int
    unstarted: int
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
    cut_by_time: int
    both_cut: int
    base_cut_alone: int
    other_cut_alone: int
    informative: int
    enough_tokens: int | None
    curve_base: SurvivalCurve = field(repr=False)
    curve_other: SurvivalCurve = field(repr=False)
    naive_base: SurvivalCurve = field(repr=False)
    naive_other: SurvivalCurve = field(repr=False)
    histogram: Histogram = field(repr=False)
    ecdf: list[tuple[float, float]] = field(repr=False)
    scatter: list[tuple[int, int, bool]] = field(repr=False)


def measured(pairs: Pairs) -> Bools:
    """Pairs with a length on both sides that was the model's to choose."""
    return has_length(pairs.base) & has_length(pairs.other) & ~forced(pairs)


def usable(pairs: Pairs) -> Bools:
    """Pairs of which D is defined: measured, the baseline's answer not empty."""
    return measured(pairs) & (pairs.base.output_tokens > 0)


def difference(pairs: Pairs) -> Floats:
    """D of every pair; NaN where it is undefined."""
    found = np.full(len(pairs.base), np.nan)
    rows = usable(pairs)
    found[rows] = 1 - pairs.other.output_tokens[rows] / pairs.base.output_tokens[rows]
    return found


def certain_log_ratio(base: Floats, other: Floats, base_cut: Bools, other_cut: Bools) -> Floats:
    """``log(other / base)`` as far as it is certain; 0 where nothing is.

    Args:
        base, other: tokens of both answers; an empty answer counts as half a token.
        base_cut, other_cut: which are only known from below.
    """
    ratio = np.log(np.maximum(other, 0.5) / np.maximum(base, 0.5))
    ratio = np.where(other_cut & ~base_cut, np.maximum(ratio, 0.0), ratio)
    ratio = np.where(base_cut & ~other_cut, np.minimum(ratio, 0.0), ratio)
    return np.where(base_cut & other_cut, 0.0, ratio)


def compare_lengths(pairs: Pairs, *, rng: np.random.Generator, level: float = estimates.LEVEL) -> LengthChange | None:
    """Compare the lengths of two arms.

    Args:
        pairs: the arm against the baseline.
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
    base_cut, other_cut = censored(pairs.base), censored(pairs.other)
    cut = base_cut | other_cut
    both = measured(pairs)
    curves = [_curve(length, which[rows], level) for length, which in ((base, base_cut), (other, other_cut))]

    def share(which: Bools, clusters: Ints = request) -> Estimate:
        return estimates.clustered_share(which, clusters, level=level)

    def middle(values: Floats) -> Estimate:
        return median_of(values, request, level=level)

    return LengthChange(
        n=len(base),
        forced=count_true(pairs.answered & forced(pairs)),
        empty_base=count_true(pairs.base.cause.equals("empty")),
        unstarted=count_true(~both & ~forced(pairs)),
        difference_mean=estimates.clustered_mean(change, request, rng=rng, level=level),
        difference_median=middle(change),
        ratio_mean=estimates.clustered_mean(ratio, request, rng=rng, level=level),
        ratio_median=middle(ratio),
        ratio_total=estimates.clustered_ratio(other, base, request, rng=rng, level=level),
        shrunk=share((change >= TAIL) & ~other_cut[rows]),
        grown=share((change <= -TAIL) & ~base_cut[rows]),
        test=significance.wilcoxon(_certain_difference(base, other, base_cut[rows], other_cut[rows]), request),
        cap_base=share(cap_hit(pairs.base)[both], pairs.request[both]),
        cap_other=share(cap_hit(pairs.other)[both], pairs.request[both]),
        capped=share(cut[rows]),
        cut_by_time=count_true((cut_by_time(pairs.base) | cut_by_time(pairs.other)) & rows),
        both_cut=count_true(base_cut & other_cut & rows),
        base_cut_alone=count_true(base_cut & ~other_cut & rows),
        other_cut_alone=count_true(other_cut & ~base_cut & rows),
        informative=len(np.unique(pairs.request[rows & ~(base_cut & other_cut)])),
        enough_tokens=_enough_tokens(curves, [base, other]),
        curve_base=_thin(curves[0]),
        curve_other=_thin(curves[1]),
        naive_base=_thin(_curve(base, np.zeros(len(base), np.bool_), level)),
        naive_other=_thin(_curve(other, np.zeros(len(other), np.bool_), level)),
        histogram=_histogram(change),
        ecdf=_ecdf(change),
        scatter=_scatter(base, other, cut[rows]),
    )


def _certain_difference(base: Floats, other: Floats, base_cut: Bools, other_cut: Bools) -> Floats:
    difference_ = np.where(other_cut & ~base_cut, np.maximum(other - base, 0.0), other - base)
    difference_ = np.where(base_cut & ~other_cut, np.minimum(difference_, 0.0), difference_)
    return np.where(base_cut & other_cut, 0.0, difference_)


def _enough_tokens(curves: list[SurvivalCurve], lengths: list[Floats]) -> int | None:
    """The cut curves carried on with a constant rate of ending, that of all tokens seen."""
    wanted = []
    for curve, tokens in zip(curves, lengths, strict=True):
        ended, left = curve.n - curve.censored, curve.longer[-1] if curve.longer else 0.0
        if ended == 0:
            return None
        if curve.censored and left > CUT_SHARE:
            wanted.append(curve.lengths[-1] + float(np.log(left / CUT_SHARE)) * float(tokens.sum()) / ended)
    return int(np.ceil(max(wanted))) if wanted else None


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


def _curve(lengths: Floats, cut: Bools, level: float) -> SurvivalCurve:
    return significance.kaplan_meier(lengths, cut, level=level)


def _thin(curve: SurvivalCurve) -> SurvivalCurve:
    if len(curve.lengths) <= _CURVE_POINTS:
        return curve
    keep = np.unique(np.linspace(0, len(curve.lengths) - 1, _CURVE_POINTS).astype(int))
    thin = {name: np.array(getattr(curve, name))[keep].tolist() for name in ("lengths", "longer", "low", "high")}
    return replace(curve, **thin)


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
