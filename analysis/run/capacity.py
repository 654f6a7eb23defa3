"""How much a server carries: the highest request rate at which enough requests meet their limits.

The rate is found by search: every attempt replays requests at one rate and counts how many of those sent met all
limits. Attainment is taken to fall with the rate; where neighbours contradict that, they are pooled (isotonic
regression, Ayer et al. 1955).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate

TARGET = 0.99


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One replay: requests per second, requests sent, and how many of them met all limits."""

    rate_rps: float
    sent: int
    met: int


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The result of a search.

    ``rate_rps`` is the highest rate tried at which attainment reaches the target; its ``low`` end is the highest rate
    that surely does (Wilson's lower bound), its ``high`` end the lowest rate that surely does not. None: no attempt
    shows it.
    """

    rate_rps: Estimate
    target: float
    attempts: tuple[Attempt, ...]


def capacity(attempts: Sequence[Attempt], *, target: float = TARGET, level: float = estimates.LEVEL) -> Capacity:
    """Judge a set of attempts.

    Args:
        attempts: in any order; attempts at the same rate count together.
        target: the share of sent requests that must meet their limits.
        level: confidence level.
    """
    rates, sent, met = _by_rate(attempts)
    level_share = _falling(met, sent)
    passed = [rate for rate, share in zip(rates, level_share, strict=True) if share >= target - 1e-12]
    bounds = [estimates.wilson(int(m), int(s), level=level) for m, s in zip(met, sent, strict=True)]
    sure = [rate for rate, b in zip(rates, bounds, strict=True) if b.low is not None and b.low >= target]
    lost = [rate for rate, b in zip(rates, bounds, strict=True) if b.high is not None and b.high < target]
    return Capacity(
        rate_rps=Estimate(
            estimate=max(passed) if passed else None,
            low=max(sure) if sure else None,
            high=min(lost) if lost else None,
            method="search, Wilson at each rate",
            n=int(sum(sent)),
            level=level,
        ),
        target=target,
        attempts=tuple(sorted(attempts, key=lambda attempt: attempt.rate_rps)),
    )


def next_rate(
    attempts: Sequence[Attempt], *, start_rps: float, target: float = TARGET, tolerance: float = 0.05
) -> float | None:
    """The rate to try next; None once the capacity is known to ``tolerance``.

    Doubles while all attempts pass, halves while none does, and then halves the gap between them on a log scale.

    Args:
        attempts: those made so far.
        start_rps: the first rate.
        target: as for :func:`capacity`.
        tolerance: relative distance between the best rate that passes and the next that does not.
    """
    if not attempts:
        return start_rps
    rates, sent, met = _by_rate(attempts)
    shares = _falling(met, sent)
    passed = [rate for rate, share in zip(rates, shares, strict=True) if share >= target - 1e-12]
    missed = [rate for rate, share in zip(rates, shares, strict=True) if share < target - 1e-12]
    if not missed:
        return 2 * max(passed)
    if not passed:
        lowest = min(missed) / 2
        return lowest if lowest > start_rps / 1024 else None
    low, high = max(passed), min(missed)
    return None if high / low <= 1 + tolerance else float(np.sqrt(low * high))


def search(
    attempt: Callable[[float], Attempt],
    *,
    start_rps: float,
    target: float = TARGET,
    tolerance: float = 0.05,
    most: int = 20,
    level: float = estimates.LEVEL,
) -> Capacity:
    """Find the capacity by calling ``attempt`` at one rate after the other, ``most`` times at most."""
    made: list[Attempt] = []
    while len(made) < most:
        rate = next_rate(made, start_rps=start_rps, target=target, tolerance=tolerance)
        if rate is None:
            break
        made.append(attempt(rate))
    return capacity(made, target=target, level=level)


def _by_rate(attempts: Sequence[Attempt]) -> tuple[list[float], list[int], list[int]]:
    rates = sorted({attempt.rate_rps for attempt in attempts})
    sent = [sum(a.sent for a in attempts if a.rate_rps == rate) for rate in rates]
    met = [sum(a.met for a in attempts if a.rate_rps == rate) for rate in rates]
    return rates, sent, met


def _falling(met: Sequence[int], sent: Sequence[int]) -> list[float]:
    """Attainment as a falling function of the rate: pool adjacent violators."""
    pools: list[list[int]] = []
    for good, all_sent in zip(met, sent, strict=True):
        pools.append([good, all_sent, 1])
        while len(pools) > 1 and pools[-1][0] * pools[-2][1] > pools[-2][0] * pools[-1][1]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    return [good / all_sent if all_sent else 0.0 for good, all_sent, width in pools for _ in range(width)]
