"""Pages of tokens that are stored each on its own, all of them or the first and the newest."""

from collections.abc import Sequence

from kvload.servers.embedded.account.base import PageAccount, PagedSequence, StepEntry
from kvload.servers.embedded.account.tables import BlockTables, Ints


class TokenAccount(PageAccount):
    """One table: a page holds ``page_tokens`` consecutive tokens.

    Args:
        pages, page_bytes: see :class:`PageAccount`.
        page_tokens: tokens of a page.
        sink_tokens: first tokens that stay in spite of ``recent_tokens``.
        recent_tokens: newest tokens that stay; None for all.
        chunk_tokens: most tokens of one prompt in one step.

    Attributes:
        tables: page ids of every sequence.
        sink_slots: slots of the pages that the sinks lie in; dropped pages lie behind them.
    """

    def __init__(
        self,
        pages: int,
        page_bytes: int,
        *,
        page_tokens: int,
        sink_tokens: int = 0,
        recent_tokens: int | None = None,
        chunk_tokens: int = 512,
    ) -> None:
        super().__init__(pages, page_bytes)
        self.page_tokens = page_tokens
        self.recent_tokens = recent_tokens
        self.chunk_tokens = chunk_tokens
        self.sink_slots = -(-sink_tokens // page_tokens) * page_tokens
        self.tables = BlockTables()

    @property
    def pool_tokens(self) -> int:
        """Tokens of a sequence of any length, in whole pages."""
        return self.pages * self.page_tokens

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        return PagedSequence(self.tables.open(), self.page_bytes)

    def _release(self, row: int) -> Ints:
        return self.tables.close(row)

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """All its tokens', or those of the sinks, the window and one more chunk."""
        pages = -(-length // self.page_tokens)
        if self.recent_tokens is None:
            return pages
        chunk = max(1, min(self.chunk_tokens, prompt_tokens))
        kept = self.sink_slots + self.recent_tokens + chunk
        return min(pages, -(-kept // self.page_tokens) + 1)

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Take the pages that the tokens need beyond the room in the last page."""
        slots = sequence.length + new_tokens
        if self.recent_tokens is not None:
            slots -= int(self.tables.dropped[sequence.row])
        if slots <= sequence.pages * self.page_tokens:
            return True
        missing = -(-slots // self.page_tokens) - sequence.pages
        pages = self.free_list.take(missing)
        if pages is None:
            return False
        self.tables.append(sequence.row, pages)
        sequence.pages += missing
        return True

    def advance(self, entries: Sequence[StepEntry]) -> None:
        """Lengths advance; pages between the sinks and the window are freed."""
        for entry in entries:
            entry.sequence.length += entry.new_tokens
        if self.recent_tokens is not None:
            for entry in entries:
                self._drop(entry.sequence, self.recent_tokens)

    def _drop(self, sequence: PagedSequence, recent: int) -> None:
        row = sequence.row
        first_seen = sequence.length - recent + 1
        stop = (first_seen - int(self.tables.dropped[row])) // self.page_tokens
        start = self.sink_slots // self.page_tokens
        if stop > start:
            self.free_list.give(self.tables.remove(row, start, stop))
            self.tables.dropped[row] += (stop - start) * self.page_tokens
            sequence.pages -= stop - start
