"""Pages of two precisions with tables of their own for every layer and head: ``leankv``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.head_tables import HIGH, LOW, HeadTables
from kvload.servers.embedded.cache.paged import PagedCache, PagedSequence
from kvload.servers.embedded.cache.pool import PagePool
from kvload.servers.embedded.cache.tables import Ints
from kvload.servers.embedded.compression.leankv import PAGE_ALIGNMENT, LeanKV, Precision
from kvload.servers.kernels import attention
from kvload.servers.kernels.attention import AttentionExtras, Sight
from kvload.servers.kernels.layout import PageLayout

Pair = tuple[torch.Tensor, torch.Tensor]
SCORE, POSITION = 0, 1


@dataclass
class Level:
    """One precision in the cache.

    Attributes:
        end: the end of the tables its pages are at.
        precision: how its tokens are encoded.
        tokens: of a page.
        layout: of a page.
    """

    end: int
    precision: Precision
    tokens: int
    layout: PageLayout


@dataclass
class Group:
    """Some sequences of one step: many with one generated token, or one with a part of its prompt.

    Attributes:
        entries: which of the step's sequences.
        tokens: rows of the packed batch.
        pages: of each end, ``(layers, b, heads, n)``.
        counts: tokens of each end before the step, and after it as layers are carried out, ``(layers, b, heads)``.
        length: ``(b, 1)`` tokens before the step.
        prompt: ``(b, 1)`` length of the prompt.
    """

    entries: Ints
    tokens: torch.Tensor
    pages: Pair
    counts: Pair
    length: torch.Tensor
    prompt: torch.Tensor


@dataclass
class HeadPlan:
    """One step."""

    entries: Sequence[StepEntry]
    decodes: list[Group]
    chunks: list[Group]


class HeadCache(PagedCache):
    """A cache of pages that each hold tokens of one head in one layer, at one of two precisions.

    While a prompt is read all its tokens are at high precision; a chunk sees itself exactly and earlier chunks as
    stored. A generated token is stored first, at high precision, and read as stored.

    Args:
        geometry: shape of the model's keys and values.
        method: precisions and thresholds.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
    """

    def __init__(self, geometry: CacheGeometry, method: LeanKV, total_bytes: int, chunk_tokens: int) -> None:
        self.method = method
        self.chunk_tokens = chunk_tokens
        page_bytes = method.page_bytes(geometry.head_dim)
        self._high, self._low = (
            self._level(end, precision, page_bytes, geometry.head_dim)
            for end, precision in ((HIGH, method.high_precision), (LOW, method.low_precision))
        )
        super().__init__(geometry, PagePool(total_bytes, page_bytes, 1, geometry.device))
        self._rows = self.pool.storage[0]
        self._fresh: list[Ints] = []
        self._page_tokens = np.array([self._high.tokens, self._low.tokens])
        self._heads_of_all = geometry.layers * geometry.kv_heads
        self._tables = HeadTables(geometry.layers, geometry.kv_heads)
        self._grouped = geometry.kv_heads, geometry.query_heads // geometry.kv_heads, 1, geometry.head_dim
        # Twice the others' share: there are many small operations to a batch, so that larger batches pay.
        self.limit_scratch(max(1, 2 * self.scratch_bytes // (2 * self._high.tokens * geometry.head_dim * 4)))

    @staticmethod
    def _level(end: int, precision: Precision, page_bytes: int, head_dim: int) -> Level:
        tokens = precision.page_tokens(page_bytes, head_dim)
        layout = PageLayout(precision.fields(tokens, head_dim), page_bytes, PAGE_ALIGNMENT)
        return Level(end, precision, tokens, layout)

    def limit_scratch(self, blocks: int) -> None:
        """Read at most this many pages at once, but always one of each head."""
        self._scratch_blocks = blocks

    @property
    def page_heads(self) -> int:
        """Every head has pages of its own."""
        return 1

    @property
    def pool_tokens(self) -> int:
        """Tokens that fit at high precision: how many more there are room for depends on the text."""
        return self.pool.pages // self._heads_of_all * self._high.tokens

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        return PagedSequence(self._tables.open(), self.pool.page_bytes)

    def close(self, sequence: PagedSequence) -> None:
        """Free all pages of a sequence; closing twice is harmless."""
        if not sequence.closed:
            sequence.closed = True
            sequence.pages = 0
            self.pool.give(self._tables.close(sequence.row))

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """Every token at high precision, and a first page of low precision in every head."""
        del prompt_tokens
        return self._heads_of_all * (length // self._high.tokens + 2)

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Room for the prompt's tokens at high precision; for a generated one, a free slot of either precision."""
        row = sequence.row
        needed = self._tables.tokens[row].copy()
        needed[..., HIGH] += new_tokens
        needed[..., LOW] += 1
        missing = np.maximum(0, -(-needed // self._page_tokens) - self._tables.counts[row])
        total = int(missing.sum())
        if not total:
            return True
        pages = self.pool.take(total)
        if pages is None:
            return False
        self._fresh.append(pages)
        split = int(missing[..., HIGH].sum())
        self._tables.append(row, missing[..., HIGH], HIGH, pages[:split])
        self._tables.append(row, missing[..., LOW], LOW, pages[split:])
        sequence.pages += total
        return True

    def plan(self, entries: Sequence[StepEntry]) -> HeadPlan:
        """Tables of the step's sequences for all layers."""
        if self._fresh:
            self.pool.clear(np.concatenate(self._fresh))
            self._fresh.clear()
        rows = np.array([entry.sequence.row for entry in entries], dtype=np.int64)
        new = np.array([entry.new_tokens for entry in entries], dtype=np.int64)
        single = (new == 1) & (self._tables.prompts[rows] > 0)
        members = np.flatnonzero(single)
        sizes = self._tables.counts[rows].sum((-1, -2)).max(-1)
        starts = np.cumsum(new) - new
        decodes = [
            self._group(entries, members[part], starts[members[part]])
            for part in batches(sizes[members], self._scratch_blocks)
        ]
        chunks = [
            self._group(entries, np.array([index]), starts[index] + np.arange(new[index]))
            for index in np.flatnonzero(~single).tolist()
        ]
        return HeadPlan(entries, decodes, chunks)

    def _group(self, entries: Sequence[StepEntry], chosen: Ints, tokens: Ints) -> Group:
        picked = [entries[index] for index in chosen.tolist()]
        rows = np.array([entry.sequence.row for entry in picked])
        ends = [self._tables.ends(rows, end, self.pool.null_page).swapaxes(0, 1) for end in (HIGH, LOW)]
        counts = self._tables.tokens[rows].swapaxes(0, 1)
        return Group(
            entries=chosen,
            tokens=self._tensor(tokens),
            pages=(self._tensor(ends[HIGH]), self._tensor(ends[LOW])),
            counts=(self._tensor(counts[..., HIGH]), self._tensor(counts[..., LOW])),
            length=self._tensor(np.array([[entry.sequence.length] for entry in picked])),
            prompt=self._tensor(np.array([[entry.prompt_tokens] for entry in picked])),
        )

    def _tensor(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.geometry.device, non_blocking=True)

    def attend(
        self,
        layer: int,
        plan: HeadPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Store, attend, add up what each token received; at a prompt's end, sort its tokens by significance."""
        out = torch.empty_like(query)
        for group in plan.decodes:
            new = [x.index_select(0, group.tokens) for x in (query, key, value)]
            self._store_single(layer, group, new[1], new[2])
            out[group.tokens] = self._attend_singles(layer, group, new[0], extras)
        for group in plan.chunks:
            new = [x.index_select(0, group.tokens) for x in (query, key, value)]
            out[group.tokens] = self._attend_chunk(layer, group, new[0], new[1], new[2], extras)
            entry = plan.entries[int(group.entries[0])]
            length = entry.sequence.length + entry.new_tokens
            if length >= entry.prompt_tokens:
                self._sort(layer, entry.sequence, length)
        return out

    def _meta(self, level: Level, pages: torch.Tensor) -> torch.Tensor:
        """Scores and positions of pages ``(b, heads, n)`` as ``(b, heads, slots, 2)``."""
        return level.layout.take(self._rows, "meta", pages).flatten(2, 3)

    def _judged(self, position: torch.Tensor, length: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """How many judging queries saw the tokens at these positions, of a sequence of this length."""
        first = torch.maximum(position, prompt - self.method.buffer)
        return (prompt - first).clamp_(min=0) + length - torch.maximum(position, prompt)

    def _weakest(self, level: Level, layer: int, group: Group) -> Pair:
        """Significance and slot of the least significant token behind the buffer, ``(b, heads)`` each."""
        meta = self._meta(level, group.pages[level.end][layer])
        position = meta[..., POSITION]
        length, prompt = group.length[..., None], group.prompt[..., None]
        mean = meta[..., SCORE] / self._judged(position, length, prompt)
        slots = torch.arange(position.shape[-1], device=position.device)
        old = (slots < group.counts[level.end][layer][..., None]) & (position <= length - self.method.buffer)
        found = mean.masked_fill_(~old, torch.inf).min(-1)
        return found.values, found.indices

    def _spots(self, level: Level, layer: int, group: Group, slots: torch.Tensor) -> Pair:
        pages = group.pages[level.end][layer].gather(2, (slots // level.tokens)[..., None])[..., 0]
        return pages, slots % level.tokens

    def _store_single(self, layer: int, group: Group, key: torch.Tensor, value: torch.Tensor) -> None:
        """One page event a head: the new token overwrites the weakest one, pushes it down a level, or is appended."""
        high_mean, high_slot = self._weakest(self._high, layer, group)
        low_mean, low_slot = self._weakest(self._low, layer, group)
        forget = self.method.low / group.length
        prune = (high_mean < forget) & (high_mean < low_mean)
        demote = ~prune & (high_mean < self.method.high / group.length)
        replace = demote & (low_mean < forget)
        high_count, low_count = (counts[layer] for counts in group.counts)
        victim = self._spots(self._high, layer, group, torch.where(prune | demote, high_slot, 0))
        freed = self._spots(self._high, layer, group, torch.where(prune | demote, high_slot, high_count))
        target = self._spots(self._low, layer, group, torch.where(replace, low_slot, low_count))
        target = torch.where(demote, target[0], self.pool.waste_page), target[1]
        old = [view[victim] for view in self._high.layout.views(self._rows)]
        precision = self._high.precision
        moved = self._low.precision.encode(precision.decode_key(old[0], old[1]), precision.decode_value(old[2], old[3]))
        self._write(self._low, target, (*moved, old[4]))
        meta = torch.zeros((*high_count.shape, 2), device=key.device)
        meta[..., POSITION] = group.length
        self._write(self._high, freed, (*precision.encode(key, value), meta))
        high_count += ~(prune | demote)
        low_count += demote & ~replace

    def _write(self, level: Level, spots: Pair, parts: tuple[torch.Tensor, ...]) -> None:
        for view, part in zip(level.layout.views(self._rows), parts, strict=True):
            view.index_put_(spots, part)

    def _attend_singles(self, layer: int, group: Group, query: torch.Tensor, extras: AttentionExtras) -> torch.Tensor:
        sight = Sight(extras.sliding_window)
        keys: list[Callable[[], Pair]] = []
        values: list[Callable[[], torch.Tensor]] = []
        metas = []
        for level in (self._high, self._low):
            pages = group.pages[level.end][layer]
            meta = self._meta(level, pages)
            slots = torch.arange(meta.shape[2], device=meta.device)
            position = meta[..., POSITION].masked_fill(slots >= group.counts[level.end][layer][..., None], -1)
            mask = sight.mask(group.length[..., None], position, torch.float32)[:, :, None, None]
            self._add_blocks(level, pages, mask, keys, values)
            metas.append((level, pages, meta))
        attended, received = attention.attend_judged(
            query.view(-1, *self._grouped), keys, values, judges=0, extras=extras, largest=True
        )
        column = 0
        for level, pages, meta in metas:
            meta[..., SCORE] += received[..., column : column + meta.shape[2]]
            column += meta.shape[2]
            level.layout.view(self._rows, "meta").index_put_((pages,), meta.view(*pages.shape, level.tokens, 2))
        return attended.flatten(1, 3)

    def _add_blocks(
        self,
        level: Level,
        pages: torch.Tensor,
        mask: torch.Tensor,
        keys: list[Callable[[], Pair]],
        values: list[Callable[[], torch.Tensor]],
    ) -> None:
        """Readers of pages ``(b, heads, n)``, a bounded number at a time."""
        step = max(1, self._scratch_blocks // (pages.shape[0] * pages.shape[1]))
        for start in range(0, pages.shape[2], step):
            part = pages[:, :, start : start + step]
            seen = mask[..., start * level.tokens : (start + part.shape[2]) * level.tokens]
            keys.append(partial(self._keys, level, part, seen))
            values.append(partial(self._values, level, part))

    def _keys(self, level: Level, pages: torch.Tensor, mask: torch.Tensor) -> Pair:
        data, scale = (level.layout.take(self._rows, x, pages).flatten(2, 3) for x in ("key", "key_scale"))
        return level.precision.decode_key(data, scale), mask

    def _values(self, level: Level, pages: torch.Tensor) -> torch.Tensor:
        data, scale = (level.layout.take(self._rows, x, pages) for x in ("value", "value_scale"))
        return level.precision.decode_value(data[..., : level.tokens, :].flatten(2, 3), scale.flatten(2, 3))

    def _attend_chunk(
        self,
        layer: int,
        group: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        level = self._high
        sight = Sight(extras.sliding_window)
        length, count = int(group.length), len(query)
        position = torch.arange(length, length + count, device=query.device)
        stored = group.pages[HIGH][layer][..., : -(-length // level.tokens)]
        slots = torch.arange(stored.shape[-1] * level.tokens, device=query.device)
        earlier = torch.where(slots < length, slots, -1)
        keys: list[Callable[[], Pair]] = []
        values: list[Callable[[], torch.Tensor]] = []
        mask = sight.mask(position[:, None], earlier, torch.float32)[None, None, None]
        self._add_blocks(level, stored, mask, keys, values)
        own = sight.mask(position[:, None], position, torch.float32)[None, None, None]
        keys.append(lambda: (key.transpose(0, 1)[None], own))
        values.append(lambda: value.transpose(0, 1)[None])
        judges = min(count, max(0, int(group.prompt) - self.method.buffer - length))
        attended, received = attention.attend_judged(
            attention.by_head(query, self.geometry.kv_heads), keys, values, judges=judges, extras=extras, largest=True
        )
        if stored.shape[-1] and judges < count:
            meta = self._meta(level, stored)
            meta[..., SCORE] += received[..., : meta.shape[2]]
            level.layout.view(self._rows, "meta").index_put_((stored,), meta.view(*stored.shape, level.tokens, 2))
        meta = torch.stack([received[0, :, len(slots) :].T, position[:, None].expand(-1, key.shape[1]).float()], -1)
        pages = group.pages[HIGH][layer][0][:, position // level.tokens].T
        self._write(level, (pages, (position % level.tokens)[:, None]), (*level.precision.encode(key, value), meta))
        group.counts[HIGH][layer] += count
        return attention.by_token(attended)

    def _sort(self, layer: int, sequence: PagedSequence, length: int) -> None:
        """At the end of the prompt: keep, push down a level or forget each token of each head, and free the surplus."""
        for head in range(self.geometry.kv_heads):
            pages = self._tables.ends(np.array([sequence.row]), HIGH, self.pool.null_page)[0, layer, head]
            rows = self._rows[self._tensor(pages)]
            parts = [view[:, : self._high.tokens].flatten(0, 1)[:length] for view in self._high.layout.views(rows)]
            position = torch.arange(length, device=rows.device)
            whole = torch.full((), length, device=rows.device)
            share = parts[4][:, SCORE] / self._judged(position, whole, whole) * length
            newest = position >= length - self.method.buffer
            kept = newest | (share >= self.method.high)
            lower = ~kept & (share >= self.method.low)
            self._move(layer, sequence, head, [part[kept] for part in parts], [part[lower] for part in parts])

    def _move(
        self,
        layer: int,
        sequence: PagedSequence,
        head: int,
        kept: list[torch.Tensor],
        lower: list[torch.Tensor],
    ) -> None:
        tables, row = self._tables, sequence.row
        counts = len(kept[0]), len(lower[0])
        surplus = tables.take_back(row, layer, head, HIGH, -(-counts[HIGH] // self._high.tokens))
        missing = max(0, -(-counts[LOW] // self._low.tokens) - int(tables.counts[row, layer, head, LOW]))
        where = np.zeros(tables.counts.shape[1:3], dtype=np.int64)
        where[layer, head] = missing
        tables.append(row, where, LOW, surplus[:missing])
        self.pool.clear(surplus[:missing])
        self.pool.give(surplus[missing:])
        sequence.pages -= len(surplus) - missing
        tables.tokens[row, layer, head] = counts
        precision = self._high.precision
        moved = self._low.precision.encode(
            precision.decode_key(lower[0], lower[1]), precision.decode_value(lower[2], lower[3])
        )
        for level, parts in ((self._high, tuple(kept)), (self._low, (*moved, lower[4]))):
            slots = np.arange(counts[level.end])
            pages = tables.ends(np.array([row]), level.end, self.pool.null_page)[0, layer, head]
            spots = self._tensor(pages[slots // level.tokens]), self._tensor(slots % level.tokens)
            self._write(level, spots, parts)

    def commit(self, plan: HeadPlan) -> None:
        """Advance the lengths and the counts of tokens; give back pages that no next token can need."""
        for group in plan.decodes:
            rows = np.array([plan.entries[index].sequence.row for index in group.entries.tolist()])
            counts = torch.stack(group.counts, -1).cpu().numpy().swapaxes(0, 1)
            self._tables.tokens[rows] = counts
        for entry in plan.entries:
            sequence = entry.sequence
            reading = not self._tables.prompts[sequence.row]
            sequence.length += entry.new_tokens
            if reading and sequence.length >= entry.prompt_tokens:
                self._tables.prompts[sequence.row] = entry.prompt_tokens
            elif reading:
                self._tables.tokens[sequence.row, :, :, HIGH] = sequence.length
            self._give_back(sequence)

    def _give_back(self, sequence: PagedSequence) -> None:
        row = sequence.row
        needed = self._tables.tokens[row] // self._page_tokens + 1
        over = np.argwhere(self._tables.counts[row] > needed)
        for layer, head, end in over.tolist():
            pages = self._tables.take_back(row, layer, head, end, int(needed[layer, head, end]))
            self.pool.give(pages)
            sequence.pages -= len(pages)
