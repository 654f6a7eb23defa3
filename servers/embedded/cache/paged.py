"""What all caches share: the pool, the sequences and their accounting."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.embedded.cache.pool import PagePool
from kvload.servers.kernels.attention import AttentionExtras


class PagedSequence:
    """One request's share of a cache; see ``cache_api.SequenceCache``.

    Attributes:
        row: its row in the cache's tables.
        length: tokens stored so far, evicted ones included.
        pages: pages it holds, in one plane.
        closed: whether it was given back.
    """

    __slots__ = ("_page_bytes", "closed", "length", "pages", "row")

    def __init__(self, row: int, page_bytes: int) -> None:
        self.row = row
        self.length = 0
        self.pages = 0
        self.closed = False
        self._page_bytes = page_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages it holds, over all planes."""
        return self.pages * self._page_bytes


class PagedCache(ABC):
    """The part of ``cache_api.KVCache`` that does not depend on what a page holds.

    Args:
        geometry: shape of the model's keys and values.
        pool: the pages.
    """

    def __init__(self, geometry: CacheGeometry, pool: PagePool) -> None:
        self.geometry = geometry
        self.pool = pool
        # On a CPU a block should stay in the caches next to the cores; on a GPU it should fill the device.
        self.scratch_bytes = (8 << 20) if geometry.device.type == "cpu" else (256 << 20)

    @property
    def total_bytes(self) -> int:
        """Bytes of the pool."""
        return self.pool.total_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages in use."""
        return self.pool.allocated_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in one plane: what memory is given out in."""
        return self.pool.page_bytes

    @property
    def page_heads(self) -> int:
        """KV heads that share a page."""
        return self.geometry.kv_heads

    @property
    @abstractmethod
    def pool_tokens(self) -> int:
        """Tokens that fit when stored as the method stores a long sequence."""

    @abstractmethod
    def open(self) -> PagedSequence:
        """A new, empty sequence."""

    @abstractmethod
    def close(self, sequence: Any) -> None:
        """Free all pages of a sequence; closing twice is harmless."""

    @abstractmethod
    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """The most pages a sequence holds at any time while it grows to ``length`` after a prompt of that length."""

    def fits(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a request of this size could ever be served with the whole pool to itself."""
        return self.most_pages(prompt_tokens, prompt_tokens + max_new_tokens) <= self.pool.pages

    def admits(self, prompt_tokens: int) -> bool:
        """Whether the free pages hold a prompt of this length now, with headroom for a first decode step."""
        return self.most_pages(prompt_tokens, prompt_tokens + 1) <= self.pool.free_pages

    @abstractmethod
    def reserve(self, sequence: Any, new_tokens: int) -> bool:
        """Take the pages that ``new_tokens`` more tokens need at most; False (and nothing taken) if there are none."""

    @abstractmethod
    def plan(self, entries: Sequence[StepEntry]) -> Any:
        """Prepare one step over these sequences, in this order of the packed batch."""

    @abstractmethod
    def attend(
        self,
        layer: int,
        plan: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Store this step's keys and values and attend over all that the queries may see; see ``cache_api``."""

    @abstractmethod
    def commit(self, plan: Any) -> None:
        """Finish the step."""
