"""Latencies of requests, one array entry per record, NaN where a metric is undefined.

======== ==========================================================================================================
ttft     ``t_first - t_send``; ``ttft_sched`` counts from the schedule, so that a late client hides nothing
ttfo     ``t_answer - t_send``: the first of the answer itself, behind the reasoning; ttft is the first of anything
tpot     ``(t_last - t_first) / (output_tokens - tokens in the first chunk)``, less a token that came in no chunk;
         undefined where that is 0, and where chunks came in bursts
itl      each gap between token-carrying chunks, raw
e2e      ``t_last - t_send``; ``e2e_sched`` counts from the schedule
lag      ``t_send - t_sched``
======== ==========================================================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvload.analysis.records.table import Floats, Ints, RecordTable, chunk_blocks, chunk_times_us, count_true

_HISTOGRAM_US = 1 << 23
"""Gaps below this many microseconds (8.4 s) are counted in a histogram with one bin a microsecond."""

_SAMPLE_REQUESTS = 5000
"""Requests whose gaps are kept one by one, to see how far the gaps of one answer resemble each other."""


def ttft_s(table: RecordTable) -> Floats:
    """Time to first token, seconds."""
    return table.t_first_s - table.t_send_s


def ttft_sched_s(table: RecordTable) -> Floats:
    """Time to first token from the scheduled start, seconds."""
    return table.t_first_s - table.t_sched_s


def ttfo_s(table: RecordTable) -> Floats:
    """Time to the first of the answer itself, seconds; that of its first token where there is no reasoning."""
    return table.t_answer_s - table.t_send_s


def decode_tokens(table: RecordTable) -> Floats:
    """Output tokens after the first chunk's, at times of their own."""
    return table.output_tokens - table.first_chunk_tokens - table.end_tokens


def tpot_s(table: RecordTable) -> Floats:
    """Time per output token after the first chunk, seconds; NaN for an answer in one chunk or in bursts."""
    tokens = decode_tokens(table)
    found = np.full(len(table), np.nan)
    has_one = (np.nan_to_num(tokens) > 0) & ~table.in_bursts
    np.divide(table.t_last_s - table.t_first_s, tokens, out=found, where=has_one)
    return found


def e2e_s(table: RecordTable) -> Floats:
    """From the first byte sent to the last token, seconds."""
    return table.t_last_s - table.t_send_s


def e2e_sched_s(table: RecordTable) -> Floats:
    """From the scheduled start to the last token, seconds."""
    return table.t_last_s - table.t_sched_s


def lag_s(table: RecordTable) -> Floats:
    """How late the client was, seconds."""
    return table.t_send_s - table.t_sched_s


METRICS: dict[str, Callable[[RecordTable], Floats]] = {
    "ttft": ttft_s,
    "ttft_sched": ttft_sched_s,
    "tpot": tpot_s,
    "e2e": e2e_s,
    "e2e_sched": e2e_sched_s,
    "lag": lag_s,
}


@dataclass(frozen=True)
class TokenGaps:
    """All gaps between token-carrying chunks of a set of requests (inter-token latency).

    Whole microseconds, as recorded, so the distribution is exact although the gaps are only counted.

    Attributes:
        values_us: the distinct gaps, ascending.
        counts: how often each occurs.
        request_gaps: gaps of each request that has any.
        request_sums_us: the sum of each such request's gaps.
        sample_us: the gaps of an evenly spaced sample of those requests, one by one.
        sample_request: for each sampled gap the number of its request, ``0 .. sampled - 1``.
        sampled: requests in the sample.
        tokens_per_chunk: mean tokens in a token-carrying chunk; NaN without chunks.
        backwards: gaps that were negative as recorded and are counted as 0.
    """

    values_us: Ints
    counts: Ints
    request_gaps: Ints
    request_sums_us: Ints
    sample_us: Ints
    sample_request: Ints
    sampled: int
    tokens_per_chunk: float
    backwards: int

    @property
    def n(self) -> int:
        """Gaps in all."""
        return int(self.request_gaps.sum())

    def order_statistic_us(self, ranks: npt.ArrayLike) -> Floats:
        """The gaps of 0-based ranks; a fractional rank lies between its neighbours."""
        ranks = np.asarray(ranks, np.float64)
        ends = np.cumsum(self.counts)
        below = np.floor(ranks)
        low = self.values_us[np.searchsorted(ends, below, side="right")]
        high = self.values_us[np.searchsorted(ends, np.minimum(below + 1, self.n - 1), side="right")]
        return np.asarray(low + (ranks - below) * (high - low), np.float64)

    def quantile_us(self, q: npt.ArrayLike) -> Floats:
        """Quantiles with linear interpolation between order statistics (numpy's default); NaN where there is no gap."""
        levels = np.asarray(q, np.float64)
        return self.order_statistic_us(levels * (self.n - 1)) if self.n else np.full(levels.shape, np.nan)


def token_gaps(table: RecordTable, rows: Ints) -> TokenGaps:
    """Collect the gaps between token-carrying chunks of the requests at ``rows``, but those that came in bursts."""
    rows = rows[~table.in_bursts[rows]]
    histogram = np.zeros(0, np.int64)
    long_gaps: list[Ints] = []
    gaps_of, sums_of = np.zeros(len(table), np.int64), np.zeros(len(table), np.int64)
    tokens = chunks = backwards = borders = 0
    for block, part, starts in chunk_blocks(table, rows):
        times, ends = _times(table, block, part, starts)
        gaps_of[part], sums_of[part] = ends - starts, times[ends] - times[starts]
        tokens, chunks = tokens + int(block["tokens"].sum(dtype=np.int64)), chunks + len(block)
        gaps = np.diff(times)
        # From one request's last chunk to the next one's first is no gap. Counted as 0 and taken off again below: that
        # is cheaper than to cut them out.
        gaps[ends[:-1]] = 0
        borders += len(ends) - 1
        if len(gaps) and gaps.min() < 0:
            backwards += count_true(gaps < 0)
            gaps = np.maximum(gaps, 0)
        if len(gaps) and gaps.max() >= _HISTOGRAM_US:
            long_gaps.append(gaps[gaps >= _HISTOGRAM_US])
            gaps = gaps[gaps < _HISTOGRAM_US]
        found = np.bincount(gaps)
        if len(found) > len(histogram):
            found[: len(histogram)] += histogram
            histogram = found
        else:
            histogram[: len(found)] += found
    if borders:
        histogram[0] -= borders
    values = np.flatnonzero(histogram)
    long_values, long_counts = np.unique(np.concatenate([np.empty(0, np.int64), *long_gaps]), return_counts=True)
    with_gaps = np.flatnonzero(gaps_of)
    step = -(-len(with_gaps) // _SAMPLE_REQUESTS) or 1
    sample_us, sample_request = _gaps_one_by_one(table, with_gaps[::step])
    return TokenGaps(
        values_us=np.concatenate([values, long_values]),
        counts=np.concatenate([histogram[values], long_counts]),
        request_gaps=gaps_of[with_gaps],
        request_sums_us=sums_of[with_gaps],
        sample_us=sample_us,
        sample_request=sample_request,
        sampled=len(with_gaps[::step]),
        tokens_per_chunk=tokens / chunks if chunks else float("nan"),
        backwards=backwards,
    )


def _times(table: RecordTable, block: npt.NDArray[np.void], part: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """The times of a block's chunks in microseconds, and where the last chunk of each request lies."""
    times = chunk_times_us(table, block, part)
    return times, np.append(starts[1:], len(times)) - 1


def _gaps_one_by_one(table: RecordTable, rows: Ints) -> tuple[Ints, Ints]:
    gaps, owners, number = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for block, part, starts in chunk_blocks(table, rows):
        times, ends = _times(table, block, part, starts)
        inside = np.ones(len(times) - 1, np.bool_)
        inside[ends[:-1]] = False
        gaps.append(np.maximum(np.diff(times)[inside], 0))
        owners.append(np.repeat(np.arange(number, number + len(part)), ends - starts))
        number += len(part)
    return np.concatenate(gaps), np.concatenate(owners)


def in_flight(table: RecordTable) -> tuple[Floats, Ints]:
    """How many requests were open at each moment.

    Returns:
        times in seconds at which the number changes, and the number from that time on.
    """
    sent = ~np.isnan(table.t_send_s)
    begins = table.t_send_s[sent]
    ends = table.t_end_s[sent]
    ends = np.where(np.isnan(ends), np.inf, ends)
    times = np.concatenate([begins, ends])
    steps = np.concatenate([np.ones(len(begins), np.int64), -np.ones(len(ends), np.int64)])
    order = np.lexsort((-steps, times))
    return times[order], np.cumsum(steps[order])
