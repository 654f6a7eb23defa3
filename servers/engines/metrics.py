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
        info: take the value from these labels of an information metric instead; of several their product. Its other
            labels say how the engine is set up: its samples are told apart by :attr:`EngineMetrics.pools` alone.
        told_whole: each pool's sample has the figure of all pools together.
        parted_by: a label that is empty where the total is told, and says which part it is where a part of it is.
        only_zero: it counts only where it is 0: a gauge beside a counter that is not there before its first event.
    """

    metric: str
    combine: Literal["sum", "mean", "max"] = "sum"
    labels: Mapping[str, str] | None = None
    info: tuple[str, ...] = ()
    told_whole: bool = False
    parted_by: str | None = None
    only_zero: bool = False


@dataclass(frozen=True)
class EngineMetrics:
    """An engine's metrics.

    Attributes:
        prefix: of all its metrics' names; no two engines share one.
        sources: field to its sources: the first one that the server has is taken.
        pools: labels that number the engines behind one port, each with a pool of its own (data-parallel ranks), in
            information metrics.
        shared: labels that number the ranks one pool is spread over (tensor, pipeline, expert parallel). Each of them
            tells the figures of all: of samples that differ in these labels alone the largest counts.
    """

    prefix: str
    sources: Mapping[str, tuple[Source, ...]]
    pools: tuple[str, ...] = ()
    shared: frozenset[str] = frozenset()
