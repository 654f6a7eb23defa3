"""The search for the highest request rate at which enough requests meet their limits.

Every attempt replays requests at one rate, with arrivals of its own, and counts how many met all limits. The search
closes in on the rate where attainment (made to fall with the rate) crosses the target, and then tries both ends of what
is left again: a rate that passed by chance once must pass on the whole.
"""

from collections.abc import Sequence

from kvload.analysis.statistics import crossing

TARGET = 0.99
TRIES = 2
"""Attempts at each end of the bracket before a search ends."""

WIDEST = 1024.0
"""A search gives up where so small a share of its first rate still misses."""


def next_rate(
    attempts: Sequence[tuple[float, int, int]],
    *,
    start_rps: float,
    target: float = TARGET,
    tolerance: float = 0.1,
    tries: int = TRIES,
) -> float | None:
    """The rate to try next; None once the crossing is known to ``tolerance``, or there is none.

    Doubles while all attempts pass, halves while none does, then halves the gap between them on a log scale, then
    repeats its ends.

    Args:
        attempts: rate, requests sent that count and requests that met their limits, of those made so far.
        start_rps: the first rate.
        target: share of sent requests that must meet their limits.
        tolerance: relative distance between the best rate that passes and the next that does not.
        tries: attempts at each end.
    """
    if not attempts:
        return start_rps
    rates = sorted({rate for rate, _, _ in attempts})
    sent = [sum(asked for at, asked, _ in attempts if at == rate) for rate in rates]
    met = [sum(good for at, _, good in attempts if at == rate) for rate in rates]
    low, high = crossing.bracket(rates, sent, met, target)
    if low is None and high is None:
        return None
    if high is None:
        return 2 * rates[-1]
    if low is None:
        return rates[0] / 2 if rates[0] / 2 > start_rps / WIDEST else None
    if high / low > 1 + tolerance:
        return float((low * high) ** 0.5)
    counts = {rate: sum(at == rate for at, _, _ in attempts) for rate in (low, high)}
    fewest = min(counts, key=lambda rate: counts[rate])
    return fewest if counts[fewest] < tries else None
