"""Packed pages behind a window of full precision, keys and values in pages of their own."""

from collections.abc import Sequence

import numpy as np

from kvload.servers.embedded.account.base import PageAccount, PagedSequence, StepEntry
from kvload.servers.embedded.account.tables import BlockTables, Ints


class BlockAccount(PageAccount):
    """Four tables for each sequence: packed keys, packed values, and the window's keys and values.

    Args:
        pages, page_bytes: see :class:`PageAccount`.
        page_tokens: tokens of a packed page.
        window_tokens: most tokens in full precision.
        window_page_tokens: tokens of a page of the window.
        sliding_values: whether the newest ``window_tokens`` values are always in full precision.
    """

    def __init__(
        self,
        pages: int,
        page_bytes: int,
        *,
        page_tokens: int,
        window_tokens: int,
        window_page_tokens: int,
        sliding_values: bool,
    ) -> None:
        super().__init__(pages, page_bytes)
        self.page_tokens = page_tokens
        self.window_tokens = window_tokens
        self.window_page_tokens = window_page_tokens
        self.sliding_values = sliding_values
        self.packed_keys, self.packed_values, self.window_keys, self.window_values = (BlockTables() for _ in range(4))
        self.tables = self.packed_keys, self.packed_values, self.window_keys, self.window_values

    @property
    def pool_tokens(self) -> int:
        """Length of the sequence that fills the pool."""
        left = self.pages - 2 * -(-self.window_tokens // self.window_page_tokens)
        return max(0, left // 2 * self.page_tokens) + self.window_tokens

    def open(self) -> PagedSequence:
        """A new, empty sequence: the same row in all four tables."""
        rows = [table.open() for table in self.tables]
        return PagedSequence(rows[0], self.page_bytes)

    def _release(self, row: int) -> Ints:
        return np.concatenate([table.close(row) for table in self.tables])

    def packed_lengths(self, lengths: Ints) -> tuple[Ints, Ints]:
        """How many keys and how many values are packed of sequences of these lengths."""
        keys = lengths // self.window_tokens * self.window_tokens
        return keys, np.maximum(0, lengths - self.window_tokens) if self.sliding_values else keys

    def _pages_held(self, length: int, window_keys: int, window_values: int) -> Ints:
        """Pages of each table, for a sequence of this length with so many tokens in its windows."""
        keys, values = (int(part[0]) for part in self.packed_lengths(np.array([length])))
        per_page = np.array([self.page_tokens, self.page_tokens, self.window_page_tokens, self.window_page_tokens])
        held: Ints = -(-np.array([keys, values, window_keys, window_values]) // per_page)
        return held

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """Everything packed that can be, and full windows."""
        del prompt_tokens
        window = min(length, self.window_tokens)
        return int(self._pages_held(length, window, window).sum())

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Pages for what is packed in this step and for what stays in the windows."""
        before, after, window = sequence.length, sequence.length + new_tokens, self.window_tokens
        # A single token is stored in the window before the window is packed; a chunk is packed on its way.
        keys = before % window + 1 if new_tokens == 1 and before else max(before % window, after % window)
        values = min(after, window) if self.sliding_values else keys
        missing = self._pages_held(after, keys, values)
        missing -= [int(table.counts[sequence.row]) for table in self.tables]
        missing = np.maximum(0, missing)
        pages = self.free_list.take(int(missing.sum()))
        if pages is None:
            return False
        if len(pages):
            self._fresh.append(pages)
            sequence.pages += len(pages)
            for table, some in zip(self.tables, np.split(pages, np.cumsum(missing)[:-1]), strict=True):
                table.append(sequence.row, some)
        return True

    def advance(self, entries: Sequence[StepEntry]) -> None:
        """Lengths advance; pages of windows that were packed are freed."""
        for entry in entries:
            sequence = entry.sequence
            sequence.length += entry.new_tokens
            kept = -(-(sequence.length % self.window_tokens) // self.window_page_tokens)
            shrinking = self.tables[2:3] if self.sliding_values else self.tables[2:]
            for table in shrinking:
                count = int(table.counts[sequence.row])
                if count > kept:
                    self.free_list.give(table.remove(sequence.row, kept, count))
                    sequence.pages -= count - kept
