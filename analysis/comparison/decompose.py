"""Where a change of end-to-end latency comes from, per request, in four parts that add up exactly.

::

    E2E = TTFT + decode        decode = TPOT x (tokens after the first chunk)

    queueing   change of the time the request waited in the server's queue
    prefill    change of TTFT less queueing
    speed      (TPOT_other - TPOT_base) x tokens of the baseline
    length     TPOT_other x (tokens of the arm - tokens of the baseline)

Where the server does not tell its queueing times, ``queueing`` is None and ``prefill`` holds the whole change of TTFT.
An answer of one chunk has no TPOT: it takes its partner's, so that the change is one of length.
"""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.outcome import has_length
from kvload.analysis.records.pairs import Pairs
from kvload.analysis.records.table import Bools, Floats, Ints, RecordTable
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of every timed pair in seconds; ``queueing`` is None where it was not measured.

    ``rows`` are the positions of these pairs among all, ``request`` their requests.
    """

    rows: Ints
    request: Ints
    queueing_s: Floats | None
    prefill_s: Floats
    speed_s: Floats
    length_s: Floats
    total_s: Floats
    base_s: Floats

    def named(self) -> dict[str, Floats]:
        """The parts that exist, by name."""
        parts = {"prefill": self.prefill_s, "speed": self.speed_s, "length": self.length_s}
        return parts if self.queueing_s is None else {"queueing": self.queueing_s, **parts}


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Mean parts over all pairs, in seconds; they add up to ``total``.

    Attributes:
        n: pairs with all times.
        parts: by name; ``queueing`` is missing where it was not measured.
        total: the mean change of E2E.
        base_s: the baseline's mean E2E.
        relative: the change relative to the baseline's mean.
        speed_up_s: what everything but length gained (positive: faster).
        eaten: share of that speed-up that longer answers take away, with its interval; None where there is no
            speed-up to eat from (its interval reaches 0).
    """

    n: int
    parts: dict[str, Estimate]
    total: Estimate
    base_s: float | None
    relative: Estimate
    speed_up_s: Estimate
    eaten: Estimate | None


@dataclass(frozen=True, kw_only=True)
class TimesAtBaseLength:
    """What requests take, and what they would take under the arm had their answers the baseline's lengths.

    Attributes:
        rows: positions of the pairs.
        base_s, other_s: TTFT and time per token for the baseline's tokens, seconds.
    """

    rows: Ints
    base_s: Floats
    other_s: Floats


def times_at_base_length(pairs: Pairs) -> TimesAtBaseLength:
    """Times without the part that is length, over all pairs in which both answers began.

    An answer that was cut counts as well: how fast its tokens came is known, whatever its length would have been.
    """
    began = has_length(pairs.base) & has_length(pairs.other) & _timed(pairs)
    rows = np.flatnonzero(began)
    base, other = pairs.base.take(rows), pairs.other.take(rows)
    speed = _speed_s(base, other)
    first = latency.ttft_s(other) - latency.ttft_s(base)
    before = latency.e2e_s(base)
    return TimesAtBaseLength(rows=rows, base_s=before, other_s=np.maximum(before + first + speed, 0.0))


def _speed_s(base: RecordTable, other: RecordTable) -> Floats:
    """``(TPOT_other - TPOT_base) x tokens of the baseline``, seconds."""
    tokens = latency.decode_tokens(base)
    speeds = latency.tpot_s(base), latency.tpot_s(other)
    before = np.where(np.isnan(speeds[0]), speeds[1], speeds[0])
    after = np.where(np.isnan(speeds[1]), speeds[0], speeds[1])
    # Two answers of one chunk each have no speed at all.
    speed: Floats = np.nan_to_num(after - before) * np.maximum(tokens, 0)
    return speed


def parts_of(pairs: Pairs) -> Parts:
    """Decompose every pair that has all times."""
    base, other = pairs.base, pairs.other
    rows = np.flatnonzero(pairs.answered & _timed(pairs))
    base, other = base.take(rows), other.take(rows)
    decode = base.t_last_s - base.t_first_s, other.t_last_s - other.t_first_s
    speed = _speed_s(base, other)
    change = decode[1] - decode[0]
    first = latency.ttft_s(other) - latency.ttft_s(base)
    queued: Bools = ~np.isnan(base.queue_s) & ~np.isnan(other.queue_s)
    queueing = other.queue_s - base.queue_s if len(queued) and queued.all() else None
    return Parts(
        rows=rows,
        request=base.index,
        queueing_s=queueing,
        prefill_s=first if queueing is None else first - queueing,
        speed_s=speed,
        # The length part as the rest of the decode time keeps the sum exact; it equals TPOT_other x (n_other - n_base).
        length_s=change - speed,
        total_s=latency.e2e_s(other) - latency.e2e_s(base),
        base_s=latency.e2e_s(base),
    )


def _timed(pairs: Pairs) -> Bools:
    timed: Bools = np.ones(len(pairs.base), np.bool_)
    for table in (pairs.base, pairs.other):
        timed &= ~np.isnan(latency.e2e_s(table)) & ~np.isnan(latency.ttft_s(table))
        timed &= ~np.isnan(latency.decode_tokens(table))
    return timed


def decompose(pairs: Pairs, *, rng: np.random.Generator, level: float = estimates.LEVEL) -> Decomposition:
    """Decompose the change of E2E between two arms.

    Args:
        pairs: the arm against the baseline.
        rng: source of the bootstrap, by request.
        level: confidence level.
    """
    parts = parts_of(pairs)

    def mean(values: Floats) -> Estimate:
        return estimates.clustered_mean(values, parts.request, rng=rng, level=level)

    gained = parts.length_s - parts.total_s
    speed_up = mean(gained)
    eaten = None
    if speed_up.low is not None and speed_up.low > 0:
        eaten = estimates.clustered_ratio(parts.length_s, gained, parts.request, rng=rng, level=level)
    return Decomposition(
        n=len(parts.request),
        parts={name: mean(values) for name, values in parts.named().items()},
        total=mean(parts.total_s),
        base_s=float(parts.base_s.mean()) if len(parts.base_s) else None,
        relative=estimates.clustered_ratio(parts.total_s, parts.base_s, parts.request, rng=rng, level=level),
        speed_up_s=speed_up,
        eaten=eaten,
    )
