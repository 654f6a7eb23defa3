"""Pages whose slots hold different tokens in different heads, as many in each."""

from collections.abc import Sequence

from kvload.servers.embedded.account.base import PageAccount, PagedSequence, StepEntry
from kvload.servers.embedded.account.tables import BlockTables, Ints


class ScoredAccount(PageAccount):
    """One table; a prompt is held whole until it is read, then as many tokens as are kept.

    Args:
        pages, page_bytes: see :class:`PageAccount`.
        page_tokens: slots of a page.
        kept_tokens: tokens that stay at the end of the prompt.
        evicts_while_decoding: whether generated tokens push others out once ``kept_tokens`` are reached.
        evicts_at_once: how many go together.
    """

    def __init__(
        self,
        pages: int,
        page_bytes: int,
        *,
        page_tokens: int,
        kept_tokens: int,
        evicts_while_decoding: bool,
        evicts_at_once: int = 1,
    ) -> None:
        super().__init__(pages, page_bytes)
        self.page_tokens = page_tokens
        self.kept_tokens = kept_tokens
        self.evicts_at_once = evicts_at_once
        self.most_slots = kept_tokens + evicts_at_once if evicts_while_decoding else None
        self.tables = BlockTables()

    def kept_of(self, prompt_tokens: int) -> int:
        """Tokens that stay of a prompt: what is beyond ``kept_tokens`` goes ``evicts_at_once`` at a time."""
        return min(prompt_tokens, self.kept_tokens + max(0, prompt_tokens - self.kept_tokens) % self.evicts_at_once)

    @property
    def pool_tokens(self) -> int:
        """Tokens that are kept, in whole pages."""
        return self.pages * self.page_tokens

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        return PagedSequence(self.tables.open(), self.page_bytes)

    def _release(self, row: int) -> Ints:
        return self.tables.close(row)

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """The whole prompt, until it is read; then what is kept, and what is generated."""
        after = self.kept_of(prompt_tokens) + length - prompt_tokens
        if self.most_slots is not None:
            after = min(after, self.most_slots)
        return -(-max(prompt_tokens, after) // self.page_tokens)

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Pages for the tokens, none if they take the place of dropped ones."""
        dropped = int(self.tables.dropped[sequence.row])
        slots = sequence.length - dropped + new_tokens
        if dropped and self.most_slots is not None:
            slots = min(slots, self.most_slots)
        missing = -(-slots // self.page_tokens) - int(self.tables.counts[sequence.row])
        if missing <= 0:
            return True
        pages = self.free_list.take(missing)
        if pages is None:
            return False
        self.tables.append(sequence.row, pages)
        sequence.pages += missing
        return True

    def advance(self, entries: Sequence[StepEntry]) -> None:
        """Lengths advance; the pages of what was dropped at the end of a prompt are freed."""
        for entry in entries:
            sequence = entry.sequence
            row = sequence.row
            before, sequence.length = sequence.length, sequence.length + entry.new_tokens
            slots = before - int(self.tables.dropped[row])
            if before < entry.prompt_tokens or before == 0:
                ends = sequence.length >= entry.prompt_tokens
                slots = self.kept_of(sequence.length) if ends else slots + entry.new_tokens
            else:
                slots += entry.new_tokens
                slots = slots if self.most_slots is None else min(slots, self.most_slots)
            self.tables.dropped[row] = sequence.length - slots
            held = int(self.tables.counts[row])
            needed = -(-slots // self.page_tokens)
            if self.tables.dropped[row] and held > needed:
                self.free_list.give(self.tables.remove(row, needed, held))
                sequence.pages -= held - needed
