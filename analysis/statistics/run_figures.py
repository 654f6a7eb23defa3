"""What the runs of an arm say beside the baseline's: one figure a repeat, and how far requests scatter it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvload.analysis.records.table import Floats, Ints

FEWEST_PAIRS = 20
"""Fewer pairs than this have no interval and no verdict."""


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
