"""What all page accounts share: sequences, the free list, and what may be admitted."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvload.servers.embedded.account.pages import PageList
from kvload.servers.embedded.account.tables import Ints


class PagedSequence:
    """One request's share of the cache.

    Attributes:
        row: its row in the account's tables.
        length: tokens stored so far in logical positions, evicted ones included.
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


@dataclass(slots=True)
class StepEntry:
    """One sequence's part of a step: ``new_tokens`` more tokens, at positions ``length .. length + new_tokens``.

    ``prompt_tokens`` is the length of the whole prompt (after a preemption: prompt and answer so far), so that
    methods that act at the end of the prefill know when that is.
    """

    sequence: PagedSequence
    new_tokens: int
    prompt_tokens: int


class PageAccount(ABC):
    """Block tables and free list of one cache structure; what the scheduler asks.

    Args:
        pages: of the pool.
        page_bytes: of a page, over all planes.
    """

    def __init__(self, pages: int, page_bytes: int) -> None:
        self.free_list = PageList(pages)
        self.page_bytes = page_bytes
        self._fresh: list[Ints] = []

    @property
    def pages(self) -> int:
        """Pages of the pool."""
        return self.free_list.pages

    @property
    def free_pages(self) -> int:
        """Pages nobody holds."""
        return self.free_list.free_pages

    @property
    def total_bytes(self) -> int:
        """Bytes of the pool."""
        return self.pages * self.page_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages in use."""
        return (self.pages - self.free_pages) * self.page_bytes

    @property
    @abstractmethod
    def pool_tokens(self) -> int:
        """Tokens that fit when stored as the method stores a long sequence."""

    @abstractmethod
    def open(self) -> PagedSequence:
        """A new, empty sequence."""

    def close(self, sequence: PagedSequence) -> None:
        """Free all pages of a sequence; closing twice is harmless."""
        if not sequence.closed:
            sequence.closed = True
            sequence.pages = 0
            self.free_list.give(self._release(sequence.row))

    @abstractmethod
    def _release(self, row: int) -> Ints:
        """Empty a row of the tables and give it back; the pages it held."""

    @abstractmethod
    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """The most pages a sequence holds at any time while it grows to ``length`` after a prompt of that length."""

    def fits(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a request of this size could ever be served with the whole pool to itself."""
        return self.most_pages(prompt_tokens, prompt_tokens + max_new_tokens) <= self.pages

    def admits(self, prompt_tokens: int) -> bool:
        """Whether the free pages hold a prompt of this length now, with headroom for a first decode step."""
        return self.most_pages(prompt_tokens, prompt_tokens + 1) <= self.free_pages

    @abstractmethod
    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Take the pages that ``new_tokens`` more tokens need at most; False (and nothing taken) if there are none."""

    def fresh_pages(self) -> Ints:
        """Pages taken since this was last asked: where kinds of pages differ, their old bytes must be cleared."""
        fresh = np.concatenate(self._fresh) if self._fresh else np.zeros(0, dtype=np.int64)
        self._fresh.clear()
        return fresh

    @abstractmethod
    def advance(self, entries: Sequence[StepEntry]) -> None:
        """A step was computed: lengths advance, pages that nobody will read again are freed."""
