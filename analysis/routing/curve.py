"""What a router gains, exactly: both outcomes of every request are known, so nothing has to be estimated of the mix.

For every share of the requests that is sent to the full cache: the mean score, the tokens, the negative samples net of
their mirror, the bytes of keys and values. Requests of the same value are sent in equal parts, so that no order of
theirs decides. Every figure has an interval over conversations.

Nobody can do better than an oracle that knows both outcomes. It must not be credited with noise (the curse of the
winner): chosen by one repeat it is scored by another; with one run of the arm, what the same choice gains between the
baseline's own two runs is taken off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.analysis.routing.samples import Samples
from kvload.analysis.routing.targets import FURTHEST, Labels
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate

SHARES = tuple(round(step * 0.05, 2) for step in range(21))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One share of the requests under the full cache.

    Attributes:
        share: 0 (all compressed) to 1 (all full).
        score: mean score of the mix; None without scores.
        gain: of the score over all compressed; ``over_random`` and ``over_task`` over such routers.
        recovered: part of the score lost by compressing all that the mix does not lose; None where compression costs no
            score that could be told from nothing.
        tokens: answer length against the full cache's, by the mean of log ratios; None without lengths.
        net_negatives: negative samples less their mirror, among all requests; None without scores.
        bytes_share: bytes of keys and values against all full; None where they are not known.
        random, by_task, oracle: mean score of those routers; ``oracle`` None where noise could not be taken off.
    """

    share: float
    score: Estimate | None
    gain: Estimate | None
    over_random: Estimate | None
    over_task: Estimate | None
    recovered: Estimate | None
    tokens: Estimate | None
    net_negatives: Estimate | None
    bytes_share: float | None
    random: float | None
    by_task: float | None
    oracle: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one arm, in ascending shares; ``oracle_note`` says how noise was taken off the oracle."""

    arm: str
    n: int
    points: list[Point] = field(repr=False)
    oracle_note: str

    def at(self, share: float) -> Point:
        """The point nearest to a share."""
        return min(self.points, key=lambda point: abs(point.share - share))


def sent(value: Floats, share: float) -> Floats:
    """Which part of each row goes to the full cache: the rows of the highest value, ties in equal parts.

    Args:
        value: shape (n,).
        share: of all rows, 0 to 1.

    Returns:
        0 to 1 for every row, ``share`` in the mean.
    """
    n = len(value)
    levels, which, counts = np.unique(value, return_inverse=True, return_counts=True)
    above = n - counts.cumsum()
    part = np.clip((share * n - above) / counts, 0.0, 1.0)
    del levels
    found: Floats = part[which]
    return found


def curve(
    samples: Samples,
    labels: Labels,
    value: Floats,
    by_task: Floats,
    *,
    shares: Sequence[float] = SHARES,
    rng: np.random.Generator,
) -> Curve:
    """The gain of a router at every share.

    Args:
        samples, labels: what happened.
        value, by_task: how much each request needs the full cache, by the router and by its task alone; neither may
            have been fitted on these rows.
        shares: of the requests, to the full cache.
        rng: of the intervals.
    """
    scored = ~np.isnan(samples.base_score) & ~np.isnan(samples.arm_score)
    oracle, note = _oracle(samples, scored)
    points = [_point(samples, labels, value, by_task, share, scored, oracle, rng) for share in sorted(shares)]
    return Curve(arm=samples.arm, n=len(samples), points=points, oracle_note=note)


def _point(
    samples: Samples,
    labels: Labels,
    value: Floats,
    by_task: Floats,
    share: float,
    scored: Bools,
    oracle: "_Oracle | None",
    rng: np.random.Generator,
) -> Point:
    part = sent(value, share)
    found: dict[str, Estimate | float | None] = dict.fromkeys(
        ("score", "gain", "over_random", "over_task", "recovered", "net_negatives", "random", "by_task", "oracle")
    )
    if scored.any():
        rows = np.flatnonzero(scored)
        unit = samples.cluster[rows]
        # among the scored rows alone, so that a share of them is sent
        part_s, task_s = sent(value[rows], share), sent(by_task[rows], share)
        full, arm = samples.base_score[rows], samples.arm_score[rows]
        lost = full - arm

        def mean(values: Floats) -> Estimate:
            return estimates.clustered_mean(values, unit, rng=rng)

        at_all = mean(lost)
        found |= {
            "score": mean(arm + part_s * lost),
            "gain": mean(part_s * lost),
            "over_random": mean((part_s - share) * lost),
            "over_task": mean((part_s - task_s) * lost),
            "random": float((arm + share * lost).mean()),
            "by_task": float((arm + task_s * lost).mean()),
            "oracle": None if oracle is None else float(arm.mean()) + oracle.gain(share),
        }
        if at_all.low is not None and at_all.low > 0:
            found["recovered"] = estimates.clustered_ratio(part_s * lost, lost, unit, rng=rng)
        if not np.isnan(labels.mirror[rows]).any():
            net = (1 - part_s) * (labels.event[rows] - labels.mirror[rows])
            found["net_negatives"] = mean(net).scaled(len(rows))
    return Point(
        share=share,
        tokens=_tokens(samples, part, rng),
        bytes_share=_bytes_share(samples, part),
        **found,  # type: ignore[arg-type]
    )


def _tokens(samples: Samples, part: Floats, rng: np.random.Generator) -> Estimate | None:
    there = ~np.isnan(samples.base_tokens) & ~np.isnan(samples.arm_tokens)
    there &= ~(samples.base_cut & samples.arm_cut)
    if not there.any():
        return None
    with np.errstate(invalid="ignore"):
        change = np.log(np.maximum(samples.arm_tokens, 0.5) / np.maximum(samples.base_tokens, 0.5))
    # of what is cut only what is certain counts, alike in both directions
    change = np.where(samples.arm_cut & ~samples.base_cut, np.maximum(change, 0), change)
    change = np.where(samples.base_cut & ~samples.arm_cut, np.minimum(change, 0), change)
    change = np.clip(change, -FURTHEST, FURTHEST)
    rows = np.flatnonzero(there)
    return estimates.clustered_mean(((1 - part) * change)[rows], samples.cluster[rows], rng=rng)


def _bytes_share(samples: Samples, part: Floats) -> float | None:
    known = ~np.isnan(samples.base_bytes) & ~np.isnan(samples.arm_bytes)
    if not known.any():
        return None
    full, arm, part = samples.base_bytes[known], samples.arm_bytes[known], part[known]
    return float((part * full + (1 - part) * arm).sum() / full.sum())


@dataclass(frozen=True)
class _Oracle:
    """Pairs of what decides and what is gained, and the same between equal runs, which is taken off."""

    decides: Floats
    gains: Floats
    noise: Floats | None

    def gain(self, share: float) -> float:
        """Mean gain of sending a share of the requests, those first that gain most, none that lose."""
        found = float((sent(self.decides, share) * (self.decides > 0) * self.gains).mean())
        if self.noise is not None:
            found -= float((sent(self.noise, share) * (self.noise > 0) * self.noise).mean())
        return max(found, 0.0) if self.noise is not None else found


def _oracle(samples: Samples, scored: Bools) -> tuple[_Oracle | None, str]:
    lost = samples.base_score - samples.arm_score
    repeats = np.unique(samples.repeat[scored]) if scored.any() else np.zeros(0, np.int64)
    if len(repeats) > 1:
        first, second = _repeats(samples, scored, int(repeats[0]), int(repeats[1]))
        if len(first):
            decides = np.concatenate([lost[first], lost[second]])
            gains = np.concatenate([lost[second], lost[first]])
            return _Oracle(decides, gains, None), "chosen by one repeat, scored by another"
    again = samples.again_score
    there = scored & ~np.isnan(again)
    if there.any():
        noise = (samples.base_score - again)[there]
        return _Oracle(lost[scored], lost[scored], noise), "less what the same choice gains between equal runs (A/A)"
    return None, "none: without a second run its gain cannot be told from noise"


def _repeats(samples: Samples, scored: Bools, one: int, two: int) -> tuple[Ints, Ints]:
    first, second = (np.flatnonzero(scored & (samples.repeat == repeat)) for repeat in (one, two))
    _, a, b = np.intersect1d(samples.request[first], samples.request[second], return_indices=True)
    return first[a], second[b]
