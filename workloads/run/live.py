"""What a run shows of itself while it goes on. Reports are made from records, never from these figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.records import RequestRecord

_GROWTH = math.log(1.02)
_BUCKETS = 1400
METRICS = ("ttft", "tpot", "itl", "e2e", "lag")


class LiveReport(msgspec.Struct, kw_only=True):
    """What one worker tells of itself, now and then: totals, and what was added since its last report.

    Attributes:
        added: bucket counts by metric, see :class:`LogHistogram`.
        judged, met: requests ended since the last report, and how many of them met every limit.
        tokens, good_tokens: their output tokens, and those of the requests that met every limit.
    """

    worker: int
    planned: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    unsent: int = 0
    answered: int = 0
    in_flight: int = 0
    cpu_s: float = 0.0
    rss_bytes: int = 0
    retries: int = 0
    merged_reads: int = 0
    added: dict[str, dict[int, int]] = {}
    judged: int = 0
    met: int = 0
    tokens: int = 0
    good_tokens: int = 0


class LogHistogram:
    """Counts in buckets that are 2 % wide, so that histograms of many workers add up.

    Bucket 0 holds a microsecond and less, the last one some days and more.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BUCKETS, np.int64)

    def add(self, value_s: float) -> None:
        """Take one value in."""
        bucket = math.ceil(math.log(value_s / 1e-6) / _GROWTH) if value_s > 1e-6 else 0
        self.counts[min(bucket, _BUCKETS - 1)] += 1

    def add_us(self, values_us: npt.NDArray[np.float64]) -> None:
        """Take in many values, in microseconds."""
        buckets = np.log(np.maximum(values_us, 1.0))
        buckets /= _GROWTH
        np.ceil(buckets, out=buckets)
        np.minimum(buckets, _BUCKETS - 1, out=buckets)
        self.counts += np.bincount(buckets.astype(np.int64), minlength=_BUCKETS)

    def merge(self, counts: Mapping[int, int]) -> None:
        """Add another histogram's filled buckets."""
        for bucket, count in counts.items():
            self.counts[int(bucket)] += count

    def filled(self) -> dict[int, int]:
        """The buckets that hold anything."""
        (places,) = np.nonzero(self.counts)
        return dict(zip(places.tolist(), self.counts[places].tolist(), strict=True))

    def quantile(self, share: float) -> float | None:
        """The value, in seconds, below which that share lies (to 2 %); None where there are no values."""
        running = np.cumsum(self.counts)
        if not running[-1]:
            return None
        bucket = int(np.searchsorted(running, share * running[-1]))
        return 1e-6 * math.exp((bucket - 0.5) * _GROWTH) if bucket > 0 else 1e-6


class LiveMeter:
    """Gathers one worker's figures between two reports.

    Args:
        slo: limits in seconds by metric.
    """

    def __init__(self, slo: Mapping[str, float]) -> None:
        self._slo = dict(slo)
        self._reset()

    def _reset(self) -> None:
        self._histograms = {name: LogHistogram() for name in METRICS}
        self._judged = self._met = self._tokens = self._good_tokens = 0

    def add(self, record: RequestRecord, chunks: npt.NDArray[np.void]) -> None:
        """Take in a request that has ended."""
        if record.status == "unsent":
            return
        values = metrics_of(record)
        for name, value in values.items():
            if value is not None:
                self._histograms[name].add(value)
        if len(chunks) > 1 and not record.in_bursts:
            self._histograms["itl"].add_us(np.diff(chunks["us"].astype(np.float64)) * record.chunk_tick_us)
        tokens = record.output_tokens or 0
        met = meets(record, self._slo)
        self._judged += 1
        self._met += met
        self._tokens += tokens
        self._good_tokens += tokens * met

    def take(self) -> dict[str, object]:
        """What was added since the last call, as fields of :class:`LiveReport`."""
        fields: dict[str, object] = {
            "added": {name: found for name, histogram in self._histograms.items() if (found := histogram.filled())},
            "judged": self._judged,
            "met": self._met,
            "tokens": self._tokens,
            "good_tokens": self._good_tokens,
        }
        self._reset()
        return fields


def metrics_of(record: RequestRecord) -> dict[str, float | None]:
    """TTFT, TPOT, E2E and lag of one request in seconds; None where it was not measured or cannot be had."""
    return {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2e": record.e2e_s, "lag": record.lag_s}


def meets(record: RequestRecord, limits_s: Mapping[str, float]) -> bool:
    """Whether a request meets every limit, as the report judges it.

    It misses a limit on what was not measured; a limit on TPOT is met by an answer that has one token by proof.
    """
    values = metrics_of(record)
    return record.status == "ok" and all(
        record.has_one_token and name == "tpot" if (value := values.get(name)) is None else value <= limit
        for name, limit in limits_s.items()
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run as it stands. Times in seconds; percentiles over the whole run so far, None where nothing was measured.

    Attributes:
        left_s: until the schedule's last request is due; 0 while the last answers come in.
        attainment: share of ended requests that met every limit; None without limits.
        state: ``preparing``, ``running``, ``draining`` or ``ended``.
    """

    state: str
    planned: int
    sent: int = 0
    done: int = 0
    failed: int = 0
    unsent: int = 0
    in_flight: int = 0
    elapsed_s: float = 0.0
    left_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_p50_s: float | None = None
    lag_p99_s: float | None = None
    attainment: float | None = None
    workers: int = 1
    lost_workers: int = 0


class LiveBoard:
    """All workers' reports put together."""

    def __init__(self, slo: Mapping[str, float]) -> None:
        self.slo = dict(slo)
        self.histograms = {name: LogHistogram() for name in METRICS}
        self.judged = self.met = self.tokens = self.good_tokens = 0
        self._latest: dict[int, LiveReport] = {}

    def take(self, report: LiveReport) -> None:
        """Add one worker's report."""
        self._latest[report.worker] = report
        for name, counts in report.added.items():
            self.histograms[name].merge(counts)
        self.judged += report.judged
        self.met += report.met
        self.tokens += report.tokens
        self.good_tokens += report.good_tokens

    def total(self, field: str) -> int:
        """The sum of a total over all workers."""
        return sum(int(getattr(report, field)) for report in self._latest.values())

    def cpu_s(self) -> dict[int, float]:
        """Processor time used by each worker since the run's start, in seconds."""
        return {worker: report.cpu_s for worker, report in sorted(self._latest.items())}

    def rss_bytes(self) -> dict[int, int]:
        """Each worker's peak of resident memory."""
        return {worker: report.rss_bytes for worker, report in sorted(self._latest.items())}

    def quantile(self, metric: str, share: float) -> float | None:
        """A percentile of a metric over the whole run so far, in seconds."""
        return self.histograms[metric].quantile(share)
