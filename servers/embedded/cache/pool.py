"""The fixed pool of pages and its free list."""

import numpy as np
import numpy.typing as npt
import torch

PageIds = npt.NDArray[np.int64]


class PagePool:
    """Pages of equal bytes, all allocated at construction.

    A page id stands for one page in each of ``planes`` arrays: methods that keep the same tokens in all layers use one
    plane a layer and one id for all of them; methods with tables of their own for every layer use a single plane.

    Args:
        total_bytes: upper bound on the bytes of all planes together.
        page_bytes: bytes of a page in one plane.
        planes: number of arrays.
        device: where they live.

    Attributes:
        null_page: id of a page of zeros beyond the pool, for the padding of tables.
        waste_page: id of a page beyond the pool that takes writes which go nowhere.
    """

    def __init__(self, total_bytes: int, page_bytes: int, planes: int, device: torch.device) -> None:
        self.page_bytes = page_bytes
        self.planes = planes
        self.pages = total_bytes // (page_bytes * planes)
        # Zeros, not whatever memory held: bytes of unwritten slots are read as numbers before they are masked.
        self.storage = torch.zeros((planes, self.pages + 2, page_bytes), dtype=torch.uint8, device=device)
        self.null_page = self.pages
        self.waste_page = self.pages + 1
        self._free = np.arange(self.pages - 1, -1, -1, dtype=np.int64)
        self._free_count = self.pages

    @property
    def free_pages(self) -> int:
        """Pages nobody holds."""
        return self._free_count

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.pages * self.page_bytes * self.planes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages in use."""
        return (self.pages - self._free_count) * self.page_bytes * self.planes

    def take(self, count: int) -> PageIds | None:
        """``count`` free pages, or None (and nothing taken) where there are fewer."""
        if count > self._free_count:
            return None
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count].copy()

    def clear(self, pages: PageIds) -> None:
        """Fill pages with zeros.

        A page may have held anything before. Where kinds of pages differ, what is not written yet must be cleared: it
        is read together with what is, and old bytes need not be numbers in the new kind.
        """
        if len(pages):
            self.storage.index_fill_(1, torch.from_numpy(pages).to(self.storage.device), 0)

    def give(self, pages: PageIds) -> None:
        """Return pages taken before; each exactly once."""
        self._free[self._free_count : self._free_count + len(pages)] = pages
        self._free_count += len(pages)
