"""Tokens kept by the attention they received, each head its own: ``h2o`` and ``snapkv``."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.paged import PagedCache, PagedSequence
from kvload.servers.embedded.cache.pool import PagePool
from kvload.servers.embedded.cache.tables import BlockTables, Ints
from kvload.servers.embedded.compression.base import ScoredMethod
from kvload.servers.kernels import attention
from kvload.servers.kernels.attention import AttentionExtras, Sight
from kvload.servers.kernels.layout import Field, PageLayout


@dataclass
class Decodes:
    """Generated tokens of some sequences.

    Attributes:
        tokens: rows of the packed batch, ``(b,)``.
        sequences: rows of the tables.
        pages: ``(b, blocks)``.
        slots: ``(b, 1)`` where a token goes while there is room; ``full`` where each head has a free slot of its own.
        full: ``(b, 1)``; None where no sequence is full.
        length: ``(b, 1, 1)`` position of the new token.
        used: ``(b, 1, 1)`` slots in use, the new token's included.
    """

    tokens: torch.Tensor
    sequences: torch.Tensor
    pages: torch.Tensor
    slots: torch.Tensor
    full: torch.Tensor | None
    length: torch.Tensor
    used: torch.Tensor


@dataclass
class Chunk:
    """Several tokens of one prompt. Nothing of the prompt is dropped before its last chunk.

    Attributes:
        tokens: rows of the packed batch.
        position: ``(t,)`` logical positions, which are slots as well.
        own: pages and slots of the chunk's tokens.
        judges: first of the chunk's queries whose weights count.
        ends: whether tokens are dropped after it.
        pages: all pages of the sequence.
    """

    tokens: slice
    position: torch.Tensor
    own: tuple[torch.Tensor, torch.Tensor]
    judges: int
    ends: bool
    pages: torch.Tensor


@dataclass
class ScoredPlan:
    """One step."""

    entries: Sequence[StepEntry]
    decodes: list[Decodes]
    chunks: list[Chunk]


class ScoredCache(PagedCache):
    """A cache whose slots hold different tokens in different heads, as many in each.

    A page holds the keys, values, positions and scores of ``page_tokens`` slots of all heads, in every layer. A head's
    dropped token leaves a hole (position -1) that its next token fills.

    Args:
        geometry: shape of the model's keys and values.
        method: which tokens stay.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
    """

    def __init__(self, geometry: CacheGeometry, method: ScoredMethod, total_bytes: int, chunk_tokens: int) -> None:
        self.method = method
        self.chunk_tokens = chunk_tokens
        self.page_tokens = method.page_tokens
        slots = (self.page_tokens, geometry.kv_heads)
        self.layout = PageLayout(
            (
                Field("key", geometry.dtype, (*slots, geometry.head_dim)),
                Field("value", geometry.dtype, (*slots, geometry.head_dim)),
                Field("position", torch.int32, slots),
                Field("score", torch.float32, slots),
            )
        )
        pool = PagePool(total_bytes, self.layout.page_bytes, geometry.layers, geometry.device)
        super().__init__(geometry, pool)
        self._tables = BlockTables()
        # The slot that each head's next token takes once the budget is used up.
        self._holes = torch.zeros((geometry.layers, 0, geometry.kv_heads), dtype=torch.int64, device=geometry.device)
        self._heads = torch.arange(geometry.kv_heads, device=geometry.device)
        self._grouped = geometry.kv_heads, geometry.query_heads // geometry.kv_heads, 1, geometry.head_dim
        element = geometry.dtype.itemsize
        self.limit_scratch(
            max(1, self.scratch_bytes // (2 * self.page_tokens * geometry.kv_heads * geometry.head_dim * element))
        )

    def limit_scratch(self, blocks: int) -> None:
        """Read at most this many pages at once, but always all that one sequence holds."""
        self._scratch_blocks = blocks

    @property
    def _most_slots(self) -> int | None:
        """Slots of a sequence that generates for ever; None: no limit."""
        return self.method.kept_tokens + 1 if self.method.evicts_while_decoding else None

    @property
    def pool_tokens(self) -> int:
        """Tokens that are kept, in whole pages."""
        return self.pool.pages * self.page_tokens

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        row = self._tables.open()
        missing = len(self._tables.counts) - self._holes.shape[1]
        if missing:
            self._holes = torch.nn.functional.pad(self._holes, (0, 0, 0, missing))
        return PagedSequence(row, self.pool.page_bytes * self.pool.planes)

    def close(self, sequence: PagedSequence) -> None:
        """Free all pages of a sequence; closing twice is harmless."""
        if not sequence.closed:
            sequence.closed = True
            sequence.pages = 0
            self.pool.give(self._tables.close(sequence.row))

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """The whole prompt, until it is read; then what is kept, and what is generated."""
        after = min(prompt_tokens, self.method.kept_tokens) + length - prompt_tokens
        if self._most_slots is not None:
            after = min(after, self._most_slots)
        return -(-max(prompt_tokens, after) // self.page_tokens)

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Pages for the tokens, none if they take the place of dropped ones."""
        dropped = int(self._tables.dropped[sequence.row])
        slots = sequence.length - dropped + new_tokens
        if dropped and self._most_slots is not None:
            slots = min(slots, self._most_slots)
        missing = -(-slots // self.page_tokens) - int(self._tables.counts[sequence.row])
        if missing <= 0:
            return True
        pages = self.pool.take(missing)
        if pages is None:
            return False
        self._tables.append(sequence.row, pages)
        sequence.pages += missing
        return True

    def plan(self, entries: Sequence[StepEntry]) -> ScoredPlan:
        """Index tensors of the step."""
        decodes, chunks = [], []
        rows = np.array([entry.sequence.row for entry in entries], dtype=np.int64)
        lengths = np.array([entry.sequence.length for entry in entries], dtype=np.int64)
        new = np.array([entry.new_tokens for entry in entries], dtype=np.int64)
        prompts = np.array([entry.prompt_tokens for entry in entries], dtype=np.int64)
        first = np.cumsum(new) - new
        single = (new == 1) & (lengths >= prompts) & (lengths > 0)
        members = np.flatnonzero(single)
        slots = lengths - self._tables.dropped[rows]
        for part in batches(slots[members] // self.page_tokens + 1, self._scratch_blocks):
            chosen = members[part]
            decodes.append(self._decodes(rows[chosen], lengths[chosen], slots[chosen], first[chosen]))
        for index in np.flatnonzero(~single).tolist():
            start, count = int(first[index]), int(new[index])
            chunks.append(
                self._chunk(int(rows[index]), int(lengths[index]), slice(start, start + count), int(prompts[index]))
            )
        return ScoredPlan(entries, decodes, chunks)

    def _decodes(self, rows: Ints, lengths: Ints, slots: Ints, tokens: Ints) -> Decodes:
        most = self._most_slots
        full = slots >= most if most is not None else np.zeros(len(slots), dtype=bool)
        used = np.where(full, slots, slots + 1)
        blocks = np.arange(-(-int(used.max()) // self.page_tokens))
        inside = blocks < self._tables.counts[rows, None]
        pages = np.where(inside, self._tables.pages[rows][:, : len(blocks)], self.pool.null_page)
        return Decodes(
            tokens=self._tensor(tokens),
            sequences=self._tensor(rows),
            pages=self._tensor(pages),
            slots=self._tensor(np.where(full, 0, slots))[:, None],
            full=torch.from_numpy(full)[:, None].to(self.geometry.device) if full.any() else None,
            length=self._tensor(lengths)[:, None, None],
            used=self._tensor(used)[:, None, None],
        )

    def _chunk(self, row: int, length: int, tokens: slice, prompt: int) -> Chunk:
        count = tokens.stop - tokens.start
        position = length + np.arange(count)
        judging = self.method.judging_queries
        pages = self._tables.row(row)
        return Chunk(
            tokens=tokens,
            position=self._tensor(position),
            own=(self._tensor(pages[position // self.page_tokens]), self._tensor(position % self.page_tokens)),
            judges=0 if judging is None else min(count, max(0, prompt - judging - length)),
            ends=length + count >= prompt and length + count > self.method.kept_tokens,
            pages=self._tensor(pages),
        )

    def _tensor(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.geometry.device, non_blocking=True)

    def attend(
        self,
        layer: int,
        plan: ScoredPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Exact attention over what is kept; then scores are added, and the lowest make room."""
        out = torch.empty_like(query)
        for group in plan.decodes:
            new_query, new_key, new_value = (x.index_select(0, group.tokens) for x in (query, key, value))
            out[group.tokens] = self._attend_decodes(layer, group, new_query, new_key, new_value, extras)
        for chunk in plan.chunks:
            new_query, new_key, new_value = (x[chunk.tokens] for x in (query, key, value))
            out[chunk.tokens] = self._attend_chunk(layer, chunk, new_query, new_key, new_value, extras)
        return out

    def _attend_decodes(
        self,
        layer: int,
        group: Decodes,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        keys, values, positions, scores = self.layout.views(self.pool.storage[layer])
        slots = group.slots.expand(-1, self.geometry.kv_heads)
        if group.full is not None:
            slots = torch.where(group.full, self._holes[layer, group.sequences], slots)
        spots = group.pages.gather(1, slots // self.page_tokens), slots % self.page_tokens, self._heads.expand_as(slots)
        keys.index_put_(spots, key)
        values.index_put_(spots, value)
        positions.index_put_(spots, group.length[:, 0].expand_as(slots).to(torch.int32))
        scores.index_put_(spots, torch.zeros(slots.shape, device=slots.device))
        rows = self.pool.storage[layer]
        held_key, held_value = (self._slots_first(self.layout.take(rows, x, group.pages)) for x in ("key", "value"))
        sight = Sight(extras.sliding_window)
        grouped = query.view(-1, *self._grouped)
        if self.method.judging_queries is not None:
            position = self._valid(group.length.expand(-1, 1, held_key.shape[2]), group.used)
            if extras.sliding_window is not None:
                position = self._valid(self._taken(rows, "position", group), group.used)
            mask = sight.mask(group.length, position, query.dtype)[:, :, None, None]
            sinks = None if extras.sinks is None else extras.sinks.view(self.geometry.kv_heads, -1, 1)
            block = held_key, held_value, mask
            attended = attention.attend(
                grouped, [lambda: block], scaling=extras.scaling, softcap=extras.softcap, sinks=sinks
            )
            return attended.flatten(1, 3)
        position = self._valid(self._taken(rows, "position", group), group.used)
        mask = sight.mask(group.length, position, torch.float32)[:, :, None, None]
        attended, received = attention.attend_judged(
            grouped, [lambda: (held_key, mask)], [lambda: held_value], judges=0, extras=extras, largest=False
        )
        total = self._taken(rows, "score", group) + received
        scores.index_put_((group.pages,), self._pages_first(total))
        if self.method.evicts_while_decoding:
            self._evict(layer, group, position, total, positions)
        return attended.flatten(1, 3)

    def _taken(self, rows: torch.Tensor, name: str, group: Decodes) -> torch.Tensor:
        return self._slots_first(self.layout.take(rows, name, group.pages))

    def _evict(
        self, layer: int, group: Decodes, position: torch.Tensor, total: torch.Tensor, positions: torch.Tensor
    ) -> None:
        """Make a hole in every head of the sequences that hold one token more than they may keep."""
        safe = (position < 0) | (position > group.length - self.method.newest_tokens)
        victim = total.masked_fill(safe, torch.inf).argmin(-1)
        over = group.used[:, :, 0] > self.method.kept_tokens
        spots = (
            group.pages.gather(1, victim // self.page_tokens),
            victim % self.page_tokens,
            self._heads.expand_as(victim),
        )
        positions.index_put_(spots, torch.where(over, -1, positions[spots]).to(torch.int32))
        self._holes[layer, group.sequences] = victim

    def _attend_chunk(
        self,
        layer: int,
        chunk: Chunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        keys, values, positions, scores = self.layout.views(self.pool.storage[layer])
        for view, new in ((keys, key), (values, value), (positions, chunk.position[:, None].to(torch.int32))):
            view.index_put_(chunk.own, new.expand(-1, self.geometry.kv_heads, *new.shape[2:]))
        scores.index_put_(chunk.own, torch.zeros((), device=scores.device))
        rows = self.pool.storage[layer]
        names = (field.name for field in self.layout.fields)
        stored = [self._slots_first(self.layout.take(rows, name, chunk.pages[None])) for name in names]
        count = int(chunk.own[0].shape[0])
        slots = torch.arange(stored[0].shape[2], device=query.device)
        mask = Sight(extras.sliding_window).mask(chunk.position[:, None], slots, torch.float32)[None, None, None]
        attended, received = attention.attend_judged(
            attention.by_head(query, self.geometry.kv_heads),
            [lambda: (stored[0], mask)],
            [lambda: stored[1]],
            judges=chunk.judges,
            extras=extras,
            largest=False,
        )
        if chunk.judges < count:
            stored[3] = stored[3] + received
            scores.index_put_((chunk.pages[None],), self._pages_first(stored[3]))
        if chunk.ends:
            self._compact(layer, chunk, stored)
        return attention.by_token(attended)

    def _compact(self, layer: int, chunk: Chunk, stored: list[torch.Tensor]) -> None:
        """At the end of the prompt: move what stays into the first slots."""
        kept, newest = self.method.kept_tokens, self.method.newest_tokens
        length = int(chunk.position[-1]) + 1
        older = self.method.smoothed(stored[3][0, :, : length - newest])
        best = older.topk(kept - newest, -1).indices.sort(-1).values
        last = torch.arange(length - newest, length, device=best.device).expand(best.shape[0], -1)
        index = torch.cat([best, last], -1)
        slots = torch.arange(kept, device=best.device)
        spots = chunk.pages[slots // self.page_tokens], slots % self.page_tokens
        for view, old in zip(self.layout.views(self.pool.storage[layer]), stored, strict=True):
            wide = index if old.dim() == 3 else index[..., None].expand(-1, -1, old.shape[-1])
            view.index_put_(spots, old[0].gather(1, wide).transpose(0, 1))

    @staticmethod
    def _slots_first(pages: torch.Tensor) -> torch.Tensor:
        """``(b, blocks, page_tokens, heads, ...)`` as ``(b, heads, slots, ...)``."""
        return pages.flatten(1, 2).transpose(1, 2)

    def _pages_first(self, slots: torch.Tensor) -> torch.Tensor:
        """The reverse of :meth:`_slots_first`."""
        flat = slots.transpose(1, 2)
        return flat.reshape(flat.shape[0], -1, self.page_tokens, *flat.shape[2:])

    @staticmethod
    def _valid(position: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """Positions ``(b, heads, slots)`` with -1 where a slot is not in use."""
        slots = torch.arange(position.shape[-1], device=position.device)
        return torch.where(slots < used, position, -1)

    def commit(self, plan: ScoredPlan) -> None:
        """Advance the lengths; free the pages of what was dropped at the end of a prompt."""
        for entry in plan.entries:
            sequence = entry.sequence
            row = sequence.row
            before, sequence.length = sequence.length, sequence.length + entry.new_tokens
            slots = before - int(self._tables.dropped[row])
            if before < entry.prompt_tokens or before == 0:
                ends = sequence.length >= entry.prompt_tokens and sequence.length > self.method.kept_tokens
                slots = self.method.kept_tokens if ends else slots + entry.new_tokens
            else:
                slots = slots + 1 if self._most_slots is None else min(slots + 1, self._most_slots)
            self._tables.dropped[row] = sequence.length - slots
            held = int(self._tables.counts[row])
            needed = -(-slots // self.page_tokens)
            if self._tables.dropped[row] and held > needed:
                self.pool.give(self._tables.remove(row, needed, held))
                sequence.pages -= held - needed
