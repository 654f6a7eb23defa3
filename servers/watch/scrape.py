"""A server's own account of itself over time: ``/metrics`` of every engine in one vocabulary.

The vocabulary is :class:`kvload.records.ServerSample`. A scrape that fails becomes a sample with ``error``: a gap in
the series is seen as one.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import msgspec

from kvload.address import Address
from kvload.errors import KvloadError
from kvload.http import request
from kvload.records import ServerSample
from kvload.servers.engines.base import Adapter, adapters, known
from kvload.servers.engines.metrics import Source
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
            value = _value(by_name.get(source.metric, []), source, made.metrics.shared)
            if value is not None and not (source.only_zero and value):
                values[name] = value
                break
    if "pool_tokens" not in values and made.metrics.pool_blocks is not None:
        blocks = _product(by_name.get("cache_config_info", []), made.metrics.pool_blocks)
        values |= {} if blocks is None else {"pool_tokens": blocks}
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


def _value(samples: list[Sample], source: Source, shared: frozenset[str]) -> float | None:
    pools: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        if source.labels and any(sample.labels.get(key) != value for key, value in source.labels.items()):
            continue
        number = _number(sample.labels.get(source.info)) if source.info else sample.value
        if number is None or not math.isfinite(number):
            continue
        # An information metric has its value among the labels, so that its samples are not told apart by them.
        pool = frozenset(item for item in sample.labels.items() if item[0] not in shared and item[0] != source.info)
        pools[pool] = max(number, pools.get(pool, number))
    numbers = list(pools.values())
    if not numbers:
        return None
    if source.combine == "max":
        return max(numbers)
    return sum(numbers) / (len(numbers) if source.combine == "mean" else 1)


def _product(samples: list[Sample], labels: tuple[str, str]) -> float | None:
    total = None
    for sample in samples:
        first, second = (_number(sample.labels.get(label)) for label in labels)
        if first is not None and second is not None:
            total = (total or 0.0) + first * second
    return total


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
