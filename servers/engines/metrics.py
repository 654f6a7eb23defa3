"""How an engine's ``/metrics`` become the shared vocabulary: one table for each engine, in its folder.

The vocabulary is :class:`kvload.records.ServerSample`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """Where a field of the vocabulary comes from.

    Attributes:
        metric: name without the engine's prefix.
        combine: how several label sets (data-parallel ranks, finish reasons) become one number. Ranks that share one
            pool count once, see :attr:`EngineMetrics.shared`.
        labels: a sample counts only with these.
        info: take the value from this label of an information metric instead.
        only_zero: it counts only where it is 0: a gauge beside a counter that is not there before its first event.
    """

    metric: str
    combine: Literal["sum", "mean", "max"] = "sum"
    labels: Mapping[str, str] | None = None
    info: str | None = None
    only_zero: bool = False


@dataclass(frozen=True)
class EngineMetrics:
    """An engine's metrics.

    Attributes:
        prefix: of all its metrics' names; no two engines share one.
        sources: field to its sources: the first one that the server has is taken.
        pool_blocks: labels of ``cache_config_info`` whose product is the pool in tokens, where it is told in no other
            way; None for none.
        shared: labels that number the ranks one pool is spread over (tensor, pipeline, expert parallel). Each of them
            tells the figures of all: of samples that differ in these labels alone the largest counts.
    """

    prefix: str
    sources: Mapping[str, tuple[Source, ...]]
    pool_blocks: tuple[str, str] | None = None
    shared: frozenset[str] = frozenset()
