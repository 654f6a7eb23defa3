"""What the engine may ask of the paged, compressed KV cache.

One :class:`KVCache` serves the whole engine; a :class:`PagedSequence` is one request's share of it. Each engine step
runs in this order::

    cache.reserve(sequence, tokens)      for every sequence of the step; False means: out of pages, preempt someone
    plan = cache.plan(entries)           once a step, shared by all layers
    cache.attend(layer, plan, ...)       in every layer: stores the new keys and values, returns the attention output
    cache.commit(plan)                   after the last layer: flush residual windows, evict, free pages

Token positions are logical: they are never renumbered by eviction.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from kvload.servers.embedded.account.base import StepEntry
from kvload.servers.kernels.attention import AttentionExtras
from kvload.servers.kernels.layout import CacheGeometry

__all__ = ["CacheGeometry", "KVCache", "StepEntry"]


class KVCache(Protocol):
    """A fixed pool of pages, shared by all sequences. Never allocates after construction beyond bounded scratch."""

    @property
    def total_bytes(self) -> int:
        """Bytes of the pool."""

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages in use."""

    @property
    def kernels_name(self) -> str:
        """Which kernels store and attend."""

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of one layer: what memory is given out in."""

    @property
    def page_heads(self) -> int:
        """KV heads that share a page."""

    @property
    def pool_tokens(self) -> int:
        """Tokens that fit when stored as the method stores a long sequence: what ``/metrics`` reports."""

    def open(self) -> Any:
        """A new, empty sequence."""

    def close(self, sequence: Any) -> None:
        """Free all pages of a sequence; closing twice is harmless."""

    def fits(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a request of this size could ever be served with the whole pool to itself."""

    def admits(self, prompt_tokens: int) -> bool:
        """Whether the free pages hold a prompt of this length now, with headroom for a first decode step."""

    def reserve(self, sequence: Any, new_tokens: int) -> bool:
        """Take the pages that ``new_tokens`` more tokens need at most; False (and nothing taken) if there are none."""

    def plan(self, entries: Sequence[StepEntry]) -> Any:
        """Prepare one step over these sequences, in this order of the packed batch."""

    def attend(
        self,
        layer: int,
        plan: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Store this step's keys and values and attend over all that the queries may see.

        Args:
            query: ``(tokens, query_heads, head_dim)``, the sequences of the plan one after the other.
            key, value: ``(tokens, kv_heads, head_dim)``, keys with their rotary embedding applied.

        Returns:
            ``(tokens, query_heads, head_dim)`` in the query's dtype.
        """

    def commit(self, plan: Any) -> None:
        """Finish the step: lengths advance, full residual windows are packed, evicted tokens' pages are freed."""
