"""Block tables of all sequences, in arrays, so that a step's tables are one indexing operation."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class BlockTables:
    """One row of page ids for every open sequence. Rows and columns grow by doubling; rows are used again.

    Attributes:
        pages: page ids, one row a sequence; entries behind a row's count are 0 or stale.
        counts: pages of each row.
        dropped: tokens of the pages that were taken out of each row.
    """

    def __init__(self) -> None:
        self.pages: Ints = np.zeros((16, 16), dtype=np.int64)
        self.counts: Ints = np.zeros(16, dtype=np.int64)
        self.dropped: Ints = np.zeros(16, dtype=np.int64)
        self._free_rows = list(range(15, -1, -1))

    def open(self) -> int:
        """An empty row."""
        if not self._free_rows:
            rows = len(self.counts)
            self.pages = np.concatenate([self.pages, np.zeros_like(self.pages)])
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self.dropped = np.concatenate([self.dropped, np.zeros_like(self.dropped)])
            self._free_rows = list(range(2 * rows - 1, rows - 1, -1))
        return self._free_rows.pop()

    def close(self, row: int) -> Ints:
        """Give the row back; returns the page ids it held."""
        held = self.row(row).copy()
        self.counts[row] = 0
        self.dropped[row] = 0
        self._free_rows.append(row)
        return held

    def row(self, row: int) -> Ints:
        """The page ids of a row, in order (a view)."""
        return self.pages[row, : self.counts[row]]

    def append(self, row: int, pages: Ints) -> None:
        """Add page ids at the row's end."""
        count = int(self.counts[row])
        needed = count + len(pages)
        while needed > self.pages.shape[1]:
            self.pages = np.concatenate([self.pages, np.zeros_like(self.pages)], axis=1)
        self.pages[row, count:needed] = pages
        self.counts[row] = needed

    def remove(self, row: int, start: int, stop: int) -> Ints:
        """Take the entries ``start .. stop`` out of a row and close the gap; returns them."""
        count = int(self.counts[row])
        removed = self.pages[row, start:stop].copy()
        self.pages[row, start : count - (stop - start)] = self.pages[row, stop:count].copy()
        self.counts[row] = count - (stop - start)
        return removed
