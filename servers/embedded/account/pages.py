"""The free list of a fixed number of pages."""

import numpy as np

from kvload.servers.embedded.account.tables import Ints


class PageList:
    """Which of the pages ``0 .. pages`` are free.

    Args:
        pages: how many there are.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = np.arange(pages - 1, -1, -1, dtype=np.int64)
        self._free_count = pages

    @property
    def free_pages(self) -> int:
        """Pages nobody holds."""
        return self._free_count

    def take(self, count: int) -> Ints | None:
        """``count`` free pages, or None (and nothing taken) where there are fewer."""
        if count > self._free_count:
            return None
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count].copy()

    def give(self, pages: Ints) -> None:
        """Return pages taken before; each exactly once."""
        self._free[self._free_count : self._free_count + len(pages)] = pages
        self._free_count += len(pages)
