"""What is foretold of a request, from its two outcomes.

``negative``: the score falls by ``theta`` or more below a baseline that did well enough to lose something.
``inflation``: the log of the ratio of the answers' lengths, and whether that reaches ``ratio``. ``score``: the score
that is lost.

An answer that was cut at its cap has an unknown length. A ratio that is only known from below or above is put where the
other ratios say that it may lie: it is drawn from their distribution beyond what is certain (Turnbull 1976). Where both
answers were cut nothing is known, and the row is left out.

Where the baseline's own two runs differ on a request, its outcome is partly noise. Such a row keeps the share
``v / (v + a^2)`` of its weight: ``v`` is the variance of the target, ``a`` the difference between the two runs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvload.analysis.quality.negatives import Gate, fallen
from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.analysis.routing.samples import Samples
from kvload.errors import UsageError
from kvload.route_model import Target

THETA = 0.1
RATIO = 1.5
FURTHEST = 3.0
"""Log ratios beyond this (20 times as long) count as this much where means are taken."""

_ROUNDS = 200
_FEWEST_OF_TASK = 50


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The targets of all rows of some :class:`Samples`.

    Attributes:
        known: rows that say something.
        event: 1 where the request is fragile, else 0.
        value: what is foretold as a number: the log length ratio, or the score lost; NaN for ``negative``.
        mirror: 1 where the same event happened with the roles exchanged: what chance alone does.
        weight: of each row in the fit, above 0 up to 1.
        floor_event: the event between the baseline's two runs; None where there is no second run.
        censored, unknown: rows known from one side only, and not at all.
    """

    known: Bools
    event: Floats
    value: Floats
    mirror: Floats
    weight: Floats
    floor_event: Floats | None
    censored: int = 0
    unknown: int = 0


def labels(
    samples: Samples,
    target: Target,
    *,
    theta: float = THETA,
    ratio: float = RATIO,
    gate: Gate | None = None,
    rng: np.random.Generator,
) -> Labels:
    """The targets of all rows.

    Args:
        theta: the relative fall of the score that counts.
        ratio: the length ratio that counts.
        gate: what the baseline's score must reach; the task's median where None.
        rng: places what is censored.

    Raises:
        UsageError: nothing of what is to be foretold was measured.
    """
    if target == "inflation":
        return _inflation(samples, ratio, rng)
    return _scores(samples, target, theta, gate or Gate())


def _scores(samples: Samples, target: Target, theta: float, gate: Gate) -> Labels:
    base, arm, again = samples.base_score, samples.arm_score, samples.again_score
    known = ~np.isnan(base) & ~np.isnan(arm)
    if not known.any():
        raise UsageError(
            "no answer was scored under both",
            where=f"--target {target}",
            hint="scores need expected answers in the trace; --target inflation needs none",
        )
    passed, arm_passed = _gated(samples, base, gate), _gated(samples, arm, gate)
    event = (passed & fallen(base, arm, theta)).astype(float)
    mirror = (arm_passed & fallen(arm, base, theta)).astype(float)
    floor = None
    if (~np.isnan(again)).any():
        floor = np.where(np.isnan(again), np.nan, (passed & fallen(base, again, theta)).astype(float))
    lost = base - arm
    noise = np.nan_to_num(np.abs(base - again))
    if target == "negative":
        noise = (noise > 0).astype(float)
        value = np.full(len(base), np.nan)
        spread = event[known]
    else:
        value, spread = lost, lost[known]
    return Labels(
        known=known,
        event=event,
        value=value,
        mirror=mirror,
        weight=discounted(float(np.var(spread)), noise),
        floor_event=floor,
    )


def _gated(samples: Samples, scores: Floats, gate: Gate) -> Bools:
    passed = np.zeros(len(scores), np.bool_)
    for task in set(samples.task.tolist()):
        rows = np.flatnonzero(samples.task == task)
        passed[rows] = gate.passed(scores[rows])
    return passed


def _inflation(samples: Samples, ratio: float, rng: np.random.Generator) -> Labels:
    found, side = log_ratio(samples.base_tokens, samples.arm_tokens, samples.base_cut, samples.arm_cut)
    known = ~np.isnan(found)
    if not known.any():
        raise UsageError(
            "no answer has a length under both", where="--target inflation", hint="answers must end by themselves"
        )
    value = np.full(len(found), np.nan)
    value[known] = place(found[known], side[known], samples.task[known], rng)
    again, again_side = log_ratio(samples.base_tokens, samples.again_tokens, samples.base_cut, samples.again_cut)
    floor = None
    if (~np.isnan(again)).any():
        placed = np.full(len(again), np.nan)
        there = ~np.isnan(again)
        placed[there] = place(again[there], again_side[there], samples.task[there], rng)
        floor = np.where(np.isnan(placed), np.nan, (placed >= np.log(ratio)).astype(float))
    bounded = np.clip(value, -FURTHEST, FURTHEST)
    noise = np.clip(np.nan_to_num(np.abs(again)), 0, FURTHEST)
    return Labels(
        known=known,
        event=(np.nan_to_num(value, nan=0.0) >= np.log(ratio)).astype(float),
        value=value,
        mirror=(-np.nan_to_num(value, nan=0.0) >= np.log(ratio)).astype(float),
        weight=discounted(float(np.var(bounded[known])), noise),
        floor_event=floor,
        censored=int(np.count_nonzero(side[known])),
        unknown=int(np.count_nonzero(samples.base_cut & samples.arm_cut)),
    )


def discounted(variance: float, noise: Floats) -> Floats:
    """The weight of rows of which the baseline's two runs differ by ``noise``."""
    if variance <= 0:
        return np.ones(len(noise))
    found: Floats = variance / (variance + noise**2)
    return found


def log_ratio(base: Floats, other: Floats, base_cut: Bools, other_cut: Bools) -> tuple[Floats, Ints]:
    """``log(other / base)`` as measured, and how it is censored: 1 at least that, -1 at most that, 0 that.

    NaN where nothing is known: a length is missing, or both answers were cut.
    """
    with np.errstate(invalid="ignore"):
        found = np.log(np.maximum(other, 0.5)) - np.log(np.maximum(base, 0.5))
    found = np.where(base_cut & other_cut, np.nan, found)
    return found, np.where(other_cut & ~base_cut, 1, np.where(base_cut & ~other_cut, -1, 0))


@dataclass(frozen=True)
class Distribution:
    """A distribution of point masses: ``support`` ascending, -inf and inf where the data leave that open."""

    support: Floats
    mass: Floats

    def beyond(self, value: float, side: int, draw: float) -> float:
        """Where something lies of which only a side of ``value`` is known.

        Args:
            side: 1 for above, -1 for below.
            draw: uniform in 0 to 1, decides.
        """
        inside = self.support > value if side > 0 else self.support < value
        mass = np.where(inside, self.mass, 0.0).cumsum()
        if mass[-1] <= 0:
            return side * float("inf")
        return float(self.support[int(np.searchsorted(mass, draw * mass[-1], side="right"))])


def turnbull(values: Floats, side: Ints) -> Distribution:
    """The distribution of values of which some are known from one side only (Turnbull 1976, by self-consistency).

    Args:
        values: what was measured, shape (n,).
        side: 0 where it is that, 1 where it is more, -1 where it is less.
    """
    exact = values[side == 0]
    if not len(exact):
        return Distribution(np.array([-np.inf, np.inf]), np.array([np.mean(side < 0), np.mean(side > 0)]))
    support, counts = np.unique(exact, return_counts=True)
    above, below = values[side > 0], values[side < 0]
    # what lies beyond all that was measured exactly is somewhere there, nobody knows where
    low, high = bool((below <= support[0]).any()), bool((above >= support[-1]).any())
    support = np.concatenate([[-np.inf] * low, support, [np.inf] * high])
    counts = np.concatenate([[0.0] * low, counts.astype(float), [0.0] * high])
    first_above = np.searchsorted(support, above, side="right")
    last_below = np.searchsorted(support, below, side="left")
    mass = np.full(len(support), 1 / len(support))
    for _ in range(_ROUNDS):
        total = np.concatenate([[0.0], mass.cumsum()])
        right = np.zeros(len(support) + 1)
        np.add.at(right, first_above, 1 / np.maximum(total[-1] - total[first_above], 1e-300))
        left = np.zeros(len(support) + 1)
        np.add.at(left, last_below, 1 / np.maximum(total[last_below], 1e-300))
        # a row known from above gives every point above it a share by its mass, and so the other way round
        share = right.cumsum()[:-1] + left[::-1].cumsum()[::-1][1:]
        new = (counts + mass * share) / len(values)
        if np.abs(new - mass).max() < 1e-9:
            break
        mass = new
    return Distribution(support, mass / mass.sum())


def place(values: Floats, side: Ints, task: npt.NDArray[np.object_], rng: np.random.Generator) -> Floats:
    """Values, those known from one side put where the others of their task say they may lie (of all, if it has few)."""
    found = values.copy()
    if not side.any():
        return found
    whole = turnbull(values, side)
    draws = rng.random(len(values))
    for name in set(task.tolist()):
        rows = np.flatnonzero(task == name)
        known = turnbull(values[rows], side[rows]) if len(rows) >= _FEWEST_OF_TASK else whole
        for row in rows[side[rows] != 0]:
            found[row] = known.beyond(float(values[row]), int(side[row]), float(draws[row]))
    return found
