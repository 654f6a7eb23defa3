"""A server's own account of itself over time: ``/metrics`` of every engine in one vocabulary.

The vocabulary is :class:`kvload.records.ServerSample`. A scrape that fails becomes a sample with ``error``: a gap in
the series is seen as one.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import msgspec

from kvload.address import Address
from kvload.errors import KvloadError
from kvload.http import request
from kvload.records import ServerSample
from kvload.servers.engines.base import Adapter, adapters, known
from kvload.servers.engines.metrics import EngineMetrics, Source
from kvload.servers.watch.prometheus import Sample, parse

SCRAPE_TIMEOUT_S = 5.0
METRICS_LIMIT = 16 * 2**20


def engine_of(samples: list[Sample]) -> Adapter | None:
    """The engine whose prefix the metrics carry; None where it is none of ours."""
    for made in adapters():
        if made.metrics is not None and any(sample.name.startswith(made.metrics.prefix) for sample in samples):
            return made
    return None


def to_sample(text: str, engine: str | None, t_s: float) -> ServerSample:
    """The shared vocabulary's view of an exposition.

    Args:
        text: the answer of ``/metrics``.
        engine: whose metrics they are; found by their prefix where None.
        t_s: when they were asked for, on the run's clock.
    """
    samples = list(parse(text))
    made = known(engine) or engine_of(samples)
    if made is None or made.metrics is None:
        return ServerSample(t_s=t_s, error="the metrics are of no engine kvload knows")
    prefix, sources = made.metrics.prefix, made.metrics.sources
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.name.startswith(prefix):
            by_name.setdefault(sample.name.removeprefix(prefix), []).append(sample)
    if not by_name:
        return ServerSample(t_s=t_s, error=f"the metrics hold none with the prefix {prefix}")
    values: dict[str, float] = {}
    for name, places in sources.items():
        for source in places:
            value = _value(by_name.get(source.metric, []), source, made.metrics)
            if value is not None and not (source.only_zero and value):
                values[name] = value
                break
    return msgspec.convert({"t_s": t_s, **values}, ServerSample)


def sample_once(
    address: Address,
    engine: str | None = None,
    *,
    zero_monotonic: float | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = SCRAPE_TIMEOUT_S,
) -> ServerSample:
    """Scrape once. A failure is a sample with ``error``.

    Args:
        address: the server.
        engine: whose metrics to expect; found by their prefix where None.
        zero_monotonic: the run's zero on ``time.monotonic``; the sample's time is 0 where None.
    """
    t_s = 0.0 if zero_monotonic is None else time.monotonic() - zero_monotonic
    try:
        answer = request(address, "/metrics", headers=headers, timeout_s=timeout_s, limit=METRICS_LIMIT)
    except KvloadError as error:
        return ServerSample(t_s=t_s, error=error.message)
    if not answer.ok:
        return ServerSample(t_s=t_s, error=f"/metrics answered {answer.status}")
    return to_sample(answer.text(), engine, t_s)


class Scraper:
    """Scrapes at absolute deadlines in a thread of its own, once at the start and once at the end.

    A scrape that takes longer than the interval makes the next ones fall out, never come late in a burst.

    Args:
        address: the server.
        engine: whose metrics to expect; found by their prefix where None.
        interval_s: seconds between scrapes.
        zero_monotonic: the run's zero on ``time.monotonic``.
        sink: takes every sample, in the scraper's thread; the first and the last in the caller's.
    """

    def __init__(
        self,
        address: Address,
        engine: str | None,
        interval_s: float,
        zero_monotonic: float,
        sink: Callable[[ServerSample], None],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s must be positive, not {interval_s}")
        self._address = address
        self._engine = engine
        self._interval_s = interval_s
        self._zero = zero_monotonic
        self._sink = sink
        self._headers = headers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvload-scraper", daemon=True)

    def __enter__(self) -> Self:
        self._scrape()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * SCRAPE_TIMEOUT_S)
        self._scrape()

    def _run(self) -> None:
        start = time.monotonic()
        step = 1
        while not self._stop.wait(max(0.0, start + step * self._interval_s - time.monotonic())):
            self._scrape()
            step = max(step + 1, math.ceil((time.monotonic() - start) / self._interval_s))

    def _scrape(self) -> None:
        self._sink(sample_once(self._address, self._engine, zero_monotonic=self._zero, headers=self._headers))


def _value(samples: Sequence[Sample], source: Source, metrics: EngineMetrics) -> float | None:
    pools: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        if source.labels and any(sample.labels.get(key) != value for key, value in source.labels.items()):
            continue
        if source.parted_by and sample.labels.get(source.parted_by):
            continue
        number = _told(sample, source)
        if number is None or not math.isfinite(number):
            continue
        if source.info:
            # What an engine was set up with before stays in the exposition, ahead of what holds now.
            pools[frozenset((key, sample.labels.get(key, "")) for key in metrics.pools)] = number
            continue
        pool = frozenset(item for item in sample.labels.items() if item[0] not in metrics.shared)
        pools[pool] = max(number, pools.get(pool, number))
    numbers = list(pools.values())
    if not numbers:
        return None
    if source.combine == "max" or source.told_whole:
        return max(numbers)
    return sum(numbers) / (len(numbers) if source.combine == "mean" else 1)


def _told(sample: Sample, source: Source) -> float | None:
    """A sample's number: its value, or that of its labels where it is an information metric's that holds."""
    if not source.info:
        return sample.value
    if not sample.value:
        return None
    factors = [_number(sample.labels.get(label)) for label in source.info]
    return math.prod(factor for factor in factors if factor is not None) if None not in factors else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
