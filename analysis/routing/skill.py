"""How good a forecast is, held against routing by task alone: losses per row, skills with intervals over conversations.

A skill is ``1 - loss of the forecast / loss of the other one``: 0 where it is no better. The event's probability has
Brier's score, the log length ratio the pinball loss at its 10, 50 and 90 % quantiles, the lost score its squared error.
"""

import numpy as np

from kvload.analysis.records.table import Floats, Ints
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from kvload.route_model import Skill

LEAST_BRIER = 0.05
"""A router is only called better where the event's Brier skill over the task reaches this."""

QUANTILES = (0.1, 0.5, 0.9)


def skill(model: Floats, other: Floats, cluster: Ints, rng: np.random.Generator) -> Estimate:
    """1 less the ratio of two forecasts' summed losses.

    Args:
        model, other: losses of every row.
        cluster: whole ones are resampled.
    """
    if not other.sum():
        return estimates.undefined("BCa bootstrap", n=len(np.unique(cluster)))
    return estimates.clustered_ratio(model, other, cluster, rng=rng).scaled(-1).shifted(1)


def as_skill(found: Estimate) -> Skill:
    """The same as the router's file keeps it."""
    return Skill(estimate=found.estimate, low=found.low, high=found.high)


def brier(log_odds: Floats, event: Floats) -> Floats:
    """Brier's score of every row (Brier 1950)."""
    found: Floats = (1 / (1 + np.exp(-log_odds)) - event) ** 2
    return found


def pinball(quantiles: Floats, value: Floats) -> Floats:
    """The mean pinball loss of every row at :data:`QUANTILES` (Koenker and Bassett 1978).

    Args:
        quantiles: shape (3, n).
    """
    total = np.zeros(len(value))
    for place, probability in enumerate(QUANTILES):
        short = value - quantiles[place]
        total += np.maximum(probability * short, (probability - 1) * short)
    return total / len(QUANTILES)


def auc(score: Floats, event: Floats) -> float | None:
    """The chance that a request with the event has the higher score than one without (ties count half)."""
    from scipy.stats import rankdata

    with_it = event > 0.5
    a, b = int(np.count_nonzero(with_it)), int(np.count_nonzero(~with_it))
    if not a or not b:
        return None
    ranks = rankdata(score)
    return (float(ranks[with_it].sum()) - a * (a + 1) / 2) / (a * b)


def is_better(found: Estimate, found_brier: Estimate) -> bool:
    """The bar: the skill over the task is surely above 0, and that of the event's probability is worth something."""
    return (
        found.low is not None
        and found.low > 0
        and found_brier.estimate is not None
        and found_brier.estimate >= LEAST_BRIER
    )


def sentence(found: Estimate, found_brier: Estimate, events: float) -> str:
    """The verdict in words."""
    if events == 0:
        return "no better than routing by task: no request is fragile"
    if found.estimate is None or found.low is None or found.high is None:
        return "no better than routing by task: too few requests to tell"
    text = f"skill {found.estimate:+.1%} (95 %: {found.low:+.1%} to {found.high:+.1%}) over it"
    brier_text = "" if found_brier.estimate is None else f", Brier skill {found_brier.estimate:+.1%}"
    if is_better(found, found_brier):
        return f"better than routing by task: {text}{brier_text}"
    if found.estimate == 0 and found.low == found.high:
        return "no better than routing by task: no feature foretells more than the task does"
    if found.low > 0:
        return (
            f"no better than routing by task: {text}, but too little: Brier skill below {LEAST_BRIER:.0%}{brier_text}"
        )
    return f"no better than routing by task: {text}{brier_text}"
