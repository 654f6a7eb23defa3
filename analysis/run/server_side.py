"""The server's own account of a run, from the scrapes of its metrics, and whether it agrees with the client's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

import numpy as np

from kvload.analysis.records.cached import cached_share, cached_tokens
from kvload.analysis.records.table import Floats, RecordTable, count_true
from kvload.records import ServerInfo, ServerSample


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A gauge over the samples of a run."""

    mean: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A total as the client summed it up and as the server's counter grew.

    ``uncounted`` requests reached the server and ended without a count (failed, timed out, cut), so that the totals
    need not agree; ``equal`` is None where one side is missing.
    """

    name: str
    client: int | None
    server: int | None
    uncounted: int
    equal: bool | None


@dataclass(frozen=True, kw_only=True)
class ServerSide:
    """What the scrapes say; every figure is None where the server does not give it.

    ``prefix_hit_rate`` is the share of prompt tokens that the prefix cache held by the server's counters, and
    ``cached_share`` by its count in every answer, over the answered requests. ``queue_mean_s`` and ``prefill_mean_s``
    are per finished request. ``failed_scrapes`` could not be read.
    """

    samples: int
    failed_scrapes: int
    cache_usage: Gauge | None
    running: Gauge | None
    waiting: Gauge | None
    preemptions: int | None
    prefix_hit_rate: float | None
    cached_share: float | None
    queue_mean_s: float | None
    prefill_mean_s: float | None
    pool_tokens: int | None
    agreement: list[Agreement]

    @property
    def hit_share(self) -> float | None:
        """Share of prompt tokens that the prefix cache held: by the answers where they tell, else by the counters."""
        return self.prefix_hit_rate if self.cached_share is None else self.cached_share


def summarise(samples: Sequence[ServerSample], table: RecordTable, servers: Sequence[ServerInfo] = ()) -> ServerSide:
    """Sum up the scrapes of a run beside its records.

    Args:
        servers: those of the run's manifest.
    """
    good = [sample for sample in samples if sample.error is None]

    def gauge(name: str) -> Gauge | None:
        values = [value for value in map(attrgetter(name), good) if value is not None]
        return Gauge(mean=float(np.mean(values)), max=float(max(values))) if values else None

    def growth(name: str) -> float | None:
        return counter_growth(good, attrgetter(name))

    hits, queries, requests = growth("prefix_hits"), growth("prefix_queries"), growth("requests")
    queue, prefill, preemptions = growth("queue_s"), growth("prefill_s"), growth("preemptions")
    pools = [sample.pool_tokens for sample in good if sample.pool_tokens is not None]
    return ServerSide(
        samples=len(samples),
        failed_scrapes=len(samples) - len(good),
        cache_usage=gauge("cache_usage"),
        running=gauge("running"),
        waiting=gauge("waiting"),
        preemptions=None if preemptions is None else round(preemptions),
        prefix_hit_rate=hits / queries if hits is not None and queries else None,
        cached_share=cached_share(table, servers),
        queue_mean_s=queue / requests if queue is not None and requests else None,
        prefill_mean_s=prefill / requests if prefill is not None and requests else None,
        pool_tokens=round(pools[-1]) if pools else None,
        agreement=[
            _agreement("output tokens", table.output_tokens, table, growth("generation_tokens")),
            _agreement("prompt tokens", table.prompt_tokens, table, growth("prompt_tokens")),
            *_cached_agreement(table, servers, hits),
        ],
    )


def _cached_agreement(table: RecordTable, servers: Sequence[ServerInfo], hits: float | None) -> list[Agreement]:
    """Cached tokens by the answers and by the counters, where both are there and anything was cached."""
    found = _agreement("cached tokens", cached_tokens(table, servers), table, hits)
    return [found] if found.equal is not None and (found.client or found.server) else []


def counter_growth(samples: Sequence[ServerSample], value_of: Callable[[ServerSample], float | None]) -> float | None:
    """How far a counter grew from the first to the last sample that has it.

    A counter that falls was reset (the server started again): it grew by its new value then.
    """
    values = [value for value in map(value_of, samples) if value is not None]
    if len(values) < 2:
        return None
    return sum(after - before if after >= before else after for before, after in pairwise(values))


def _agreement(name: str, tokens: Floats, table: RecordTable, server: float | None) -> Agreement:
    # A refused request never ran; one that failed on connecting never reached the server, but nobody can tell.
    reached = table.sent & ~table.has_status("refused")
    known = reached & ~np.isnan(tokens) & (table.ok | ~table.output_tokens_source.equals("chunks"))
    client = int(tokens[known].sum()) if known.any() or not reached.any() else None
    counted = None if server is None else round(server)
    return Agreement(
        name=name,
        client=client,
        server=counted,
        uncounted=count_true(reached & (np.isnan(tokens) | ~table.ok)),
        equal=None if client is None or counted is None else client == counted,
    )
