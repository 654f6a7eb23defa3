"""Pages of two precisions with tables of their own for every layer and head."""

from collections.abc import Sequence

import numpy as np

from kvload.servers.embedded.account.base import PageAccount, PagedSequence, StepEntry
from kvload.servers.embedded.account.head_tables import HIGH, LOW, HeadTables
from kvload.servers.embedded.account.tables import Ints


class HeadAccount(PageAccount):
    """A page holds tokens of one head in one layer. How many of which precision depends on the text.

    Args:
        pages, page_bytes: see :class:`PageAccount`.
        layers, heads: tables of each sequence.
        high_tokens, low_tokens: tokens of a page at either precision.
    """

    def __init__(
        self, pages: int, page_bytes: int, *, layers: int, heads: int, high_tokens: int, low_tokens: int
    ) -> None:
        super().__init__(pages, page_bytes)
        self.page_tokens = np.array([high_tokens, low_tokens])
        self.heads_of_all = layers * heads
        self.tables = HeadTables(layers, heads)

    @property
    def pool_tokens(self) -> int:
        """Tokens that fit at high precision: how many more there are room for depends on the text."""
        return self.pages // self.heads_of_all * int(self.page_tokens[HIGH])

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        return PagedSequence(self.tables.open(), self.page_bytes)

    def _release(self, row: int) -> Ints:
        return self.tables.close(row)

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """Every token at high precision, and a first page of low precision in every head."""
        del prompt_tokens
        return self.heads_of_all * (length // int(self.page_tokens[HIGH]) + 2)

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Room for the prompt's tokens at high precision; for a generated one, a free slot of either precision."""
        row = sequence.row
        needed = self.tables.tokens[row].copy()
        needed[..., HIGH] += new_tokens
        needed[..., LOW] += 1
        missing = np.maximum(0, -(-needed // self.page_tokens) - self.tables.counts[row])
        total = int(missing.sum())
        if not total:
            return True
        pages = self.free_list.take(total)
        if pages is None:
            return False
        self._fresh.append(pages)
        split = int(missing[..., HIGH].sum())
        self.tables.append(row, missing[..., HIGH], HIGH, pages[:split])
        self.tables.append(row, missing[..., LOW], LOW, pages[split:])
        sequence.pages += total
        return True

    def settle(self, sequence: PagedSequence, layer: int, head: int, high: int, low: int) -> Ints:
        """A head's prompt was sorted: so many tokens stay at either precision, and the surplus of pages is freed.

        Returns:
            pages that now hold the other precision, and must be cleared before they are written.
        """
        row = sequence.row
        surplus = self.tables.take_back(row, layer, head, HIGH, -(-high // int(self.page_tokens[HIGH])))
        held = int(self.tables.counts[row, layer, head, LOW])
        missing = max(0, -(-low // int(self.page_tokens[LOW])) - held)
        where = np.zeros(self.tables.counts.shape[1:3], dtype=np.int64)
        where[layer, head] = missing
        self.tables.append(row, where, LOW, surplus[:missing])
        self.free_list.give(surplus[missing:])
        sequence.pages -= len(surplus) - missing
        self.tables.tokens[row, layer, head] = high, low
        return surplus[:missing]

    def advance(self, entries: Sequence[StepEntry]) -> None:
        """Lengths advance; pages that no next token can need are given back."""
        for entry in entries:
            sequence = entry.sequence
            reading = not self.tables.prompts[sequence.row]
            sequence.length += entry.new_tokens
            if reading and sequence.length >= entry.prompt_tokens:
                self.tables.prompts[sequence.row] = entry.prompt_tokens
            elif reading:
                self.tables.tokens[sequence.row, :, :, HIGH] = sequence.length
            self._give_back(sequence)

    def _give_back(self, sequence: PagedSequence) -> None:
        row = sequence.row
        needed = self.tables.tokens[row] // self.page_tokens + 1
        over = np.argwhere(self.tables.counts[row] > needed)
        for layer, head, end in over.tolist():
            pages = self.tables.take_back(row, layer, head, end, int(needed[layer, head, end]))
            self.free_list.give(pages)
            sequence.pages -= len(pages)
