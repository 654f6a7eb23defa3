"""Block tables of every layer and head: high precision from the left end, low precision from the right."""

import numpy as np

from kvload.servers.embedded.account.tables import Ints

HIGH, LOW = 0, 1


class HeadTables:
    """For each open sequence, layer and head one row of page ids that grows from both ends.

    Attributes:
        pages: ``(sequences, layers, heads, columns)`` page ids.
        counts: ``(sequences, layers, heads, 2)`` pages at the left (high) and at the right (low) end.
        tokens: the same for tokens.
        prompts: ``(sequences,)`` length of the prompt; 0 as long as it is not read to its end.
    """

    def __init__(self, layers: int, heads: int) -> None:
        self.pages: Ints = np.zeros((8, layers, heads, 16), dtype=np.int64)
        self.counts: Ints = np.zeros((8, layers, heads, 2), dtype=np.int64)
        self.tokens: Ints = np.zeros((8, layers, heads, 2), dtype=np.int64)
        self.prompts: Ints = np.zeros(8, dtype=np.int64)
        self._free_rows = list(range(7, -1, -1))

    def open(self) -> int:
        """An empty row."""
        if not self._free_rows:
            rows = len(self.pages)
            self.pages, self.counts, self.tokens, self.prompts = (
                np.concatenate([held, np.zeros_like(held)])
                for held in (self.pages, self.counts, self.tokens, self.prompts)
            )
            self._free_rows = list(range(2 * rows - 1, rows - 1, -1))
        return self._free_rows.pop()

    def close(self, row: int) -> Ints:
        """Give the row back; returns all page ids it held."""
        held = [
            self.take_back(row, layer, head, end, 0)
            for layer in range(self.pages.shape[1])
            for head in range(self.pages.shape[2])
            for end in (HIGH, LOW)
        ]
        self.tokens[row] = 0
        self.prompts[row] = 0
        self._free_rows.append(row)
        return np.concatenate(held)

    def append(self, row: int, where: Ints, end: int, pages: Ints) -> None:
        """Add pages at one end of some heads' rows.

        Args:
            where: ``(layers, heads)`` how many each gets.
            pages: as many ids as that makes.
        """
        while int((self.counts[row].sum(-1) + where).max()) > self.pages.shape[-1]:
            self._widen()
        start = 0
        for layer, head in zip(*np.nonzero(where), strict=True):
            count = int(where[layer, head])
            first = int(self.counts[row, layer, head, end])
            self.pages[row, layer, head, self._columns(end, first, first + count)] = pages[start : start + count]
            self.counts[row, layer, head, end] += count
            start += count

    def take_back(self, row: int, layer: int, head: int, end: int, keep: int) -> Ints:
        """Remove all but the first ``keep`` pages of an end; returns them."""
        count = int(self.counts[row, layer, head, end])
        removed: Ints = self.pages[row, layer, head, self._columns(end, keep, count)].copy()
        self.counts[row, layer, head, end] = min(count, keep)
        return removed

    def ends(self, rows: Ints, end: int, null_page: int) -> Ints:
        """``(sequences, layers, heads, n)`` page ids of one end in order, padded with ``null_page``."""
        counts = self.counts[rows, :, :, end]
        columns = np.arange(int(counts.max()))
        found = self.pages[rows][..., self._columns(end, 0, len(columns))]
        padded: Ints = np.where(columns < counts[..., None], found, null_page)
        return padded

    def _columns(self, end: int, start: int, stop: int) -> Ints:
        columns: Ints = np.arange(start, max(start, stop))
        return columns if end == HIGH else self.pages.shape[-1] - 1 - columns

    def _widen(self) -> None:
        width = self.pages.shape[-1]
        wider = np.zeros((*self.pages.shape[:-1], 2 * width), dtype=np.int64)
        wider[..., :width] = self.pages
        wider[..., width:] = self.pages
        self.pages = wider
