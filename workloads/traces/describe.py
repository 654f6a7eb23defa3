"""What a trace holds, found in one pass with memory that does not grow with the file.

Lengths are counted exactly (one counter for every possible length up to the longest seen), arrivals in bins whose width
doubles as the trace goes on. Only block ids and session names are remembered, for the traces that have them.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload.workloads.traces.fitting import is_made_up
from kvload.workloads.traces.trace import TraceRequest

PERCENTILES = (50, 90, 95, 99)
_BUFFERED = 1 << 16
_BINS = 64
_FIRST_BIN_S = 2.0**-10
_NAMED_TASKS = 64


@dataclass(frozen=True)
class Lengths:
    """A distribution of token (or character) counts; ``percentiles`` by their number, interpolated linearly."""

    count: int
    mean: float
    minimum: int
    maximum: int
    percentiles: dict[int, float]


@dataclass(frozen=True)
class Description:
    """What :class:`Describer` found.

    Attributes:
        requests, span_s: how many, and from the first arrival to the last (None without times).
        rate: requests over span, per second.
        gap_cv: standard deviation of the gaps between arrivals over their mean; 1 for Poisson arrivals.
        peak_rate: most arrivals in any one second that starts on a whole second.
        distinct_arrivals: different times; far fewer than requests where the clock is coarse.
        input, output: lengths in tokens as the trace tells them.
        text_characters: lengths of prompts given as text.
        blocks, distinct_blocks, block_reuse: block ids of all prompts, different ones, and the share seen before.
        sessions, turns_max, followers: conversations, their most turns, and turns that wait for the former's end.
        failed: requests the trace marks as failed. scored: those with an expected answer. tasks: requests by task.
        bins, bin_s: arrivals counted over time, for a picture.
    """

    requests: int
    span_s: float | None = None
    rate: float | None = None
    gap_cv: float | None = None
    peak_rate: int | None = None
    distinct_arrivals: int | None = None
    input: Lengths | None = None
    output: Lengths | None = None
    text_characters: Lengths | None = None
    blocks: int = 0
    distinct_blocks: int = 0
    block_reuse: float | None = None
    sessions: int = 0
    turns_max: int | None = None
    followers: int = 0
    failed: int = 0
    scored: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    bins: list[int] = field(default_factory=list)
    bin_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def describe(requests: Iterable[TraceRequest]) -> Description:
    """Describe a trace in one pass."""
    describer = Describer()
    for request in requests:
        describer.add(request)
    return describer.result()


class Describer:
    """Takes requests one by one; see :class:`Description` for what it finds."""

    def __init__(self) -> None:
        self._requests = 0
        self._arrivals = _Arrivals()
        self._input, self._output, self._characters = _LengthCounts(), _LengthCounts(), _LengthCounts()
        self._blocks = 0
        self._block_ids: set[int] = set()
        self._turns: dict[str, int] = {}
        self._followers = self._failed = self._scored = 0
        self._tasks: Counter[str] = Counter()

    def add(self, request: TraceRequest) -> None:
        """Count one request."""
        self._requests += 1
        if request.arrival is not None:
            self._arrivals.add(request.arrival)
        if request.prompt_token_ids is not None:
            self._input.add(len(request.prompt_token_ids))
        elif request.input_length is not None:
            self._input.add(request.input_length)
        if request.output_length is not None:
            self._output.add(request.output_length)
        if not is_made_up(request) and request.prompt_token_ids is None:
            self._characters.add(_characters(request))
        if request.block_ids:
            self._blocks += len(request.block_ids)
            self._block_ids.update(request.block_ids)
        if request.session is not None:
            turns = self._turns.get(request.session, 0)
            self._turns[request.session] = turns + 1
            self._followers += turns > 0
        if request.extra and request.extra.get("failed"):
            self._failed += 1
        self._scored += request.expected is not None
        if request.task is not None and (request.task in self._tasks or len(self._tasks) < _NAMED_TASKS):
            self._tasks[request.task] += 1

    def result(self) -> Description:
        """What was found so far."""
        arrivals = self._arrivals
        return Description(
            requests=self._requests,
            span_s=arrivals.last if arrivals.count else None,
            rate=arrivals.count / arrivals.last if arrivals.last else None,
            gap_cv=arrivals.gap_cv(),
            peak_rate=arrivals.peak if arrivals.count else None,
            distinct_arrivals=arrivals.distinct if arrivals.count else None,
            input=self._input.result(),
            output=self._output.result(),
            text_characters=self._characters.result(),
            blocks=self._blocks,
            distinct_blocks=len(self._block_ids),
            block_reuse=1 - len(self._block_ids) / self._blocks if self._blocks else None,
            sessions=len(self._turns),
            turns_max=max(self._turns.values(), default=None),
            followers=self._followers,
            failed=self._failed,
            scored=self._scored,
            tasks=dict(self._tasks.most_common()),
            bins=arrivals.bins(),
            bin_s=arrivals.bin_s if arrivals.count else None,
        )


class _LengthCounts:
    """Exact distribution of whole numbers: one counter for each value up to the largest, 8 bytes each."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._buffer = array("q")

    def add(self, value: int) -> None:
        self._buffer.append(value)
        if len(self._buffer) >= _BUFFERED:
            self._flush()

    def _flush(self) -> None:
        if not self._buffer:
            return
        counts = np.bincount(np.frombuffer(self._buffer, np.int64), minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts, self._buffer = counts, array("q")

    def result(self) -> Lengths | None:
        self._flush()
        values = np.flatnonzero(self._counts)
        if not len(values):
            return None
        cumulative = np.cumsum(self._counts[values])
        total = int(cumulative[-1])

        def at(rank: int) -> int:
            return int(values[np.searchsorted(cumulative, rank, side="right")])

        percentiles = {}
        for percent in PERCENTILES:
            low, part = divmod(percent * (total - 1), 100)
            lower, upper = at(low), at(min(low + 1, total - 1))
            percentiles[percent] = lower + (upper - lower) * part / 100
        mean = float(values @ self._counts[values]) / total
        return Lengths(total, mean, int(values[0]), int(values[-1]), percentiles)


class _Arrivals:
    """Gaps, peak and bins of non-decreasing arrivals."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.distinct = 0
        self.peak = 0
        self.bin_s = _FIRST_BIN_S
        self._bins = [0] * _BINS
        self._squares = 0.0
        self._second = -1
        self._in_second = 0

    def add(self, arrival: float) -> None:
        if self.count == 0:
            self.distinct = 1
        else:
            gap = arrival - self.last
            self._squares += gap * gap
            self.distinct += gap > 0
        self.count += 1
        self.last = arrival
        second = int(arrival)
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        self.peak = max(self.peak, self._in_second)
        place = int(arrival / self.bin_s)
        while place >= _BINS:
            self._bins = [a + b for a, b in zip(self._bins[::2], self._bins[1::2], strict=True)] + [0] * (_BINS // 2)
            self.bin_s *= 2
            place = int(arrival / self.bin_s)
        self._bins[place] += 1

    def gap_cv(self) -> float | None:
        gaps = self.count - 1
        if gaps < 2 or self.last == 0:
            return None
        mean = self.last / gaps
        return float(np.sqrt(max(self._squares / gaps - mean * mean, 0.0)) / mean)

    def bins(self) -> list[int]:
        return self._bins[: int(self.last / self.bin_s) + 1] if self.count else []


def _characters(request: TraceRequest) -> int:
    if request.prompt is not None:
        return len(request.prompt)
    total = 0
    for message in request.messages or []:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        total += sum(
            len(part["text"]) for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return total
