"""Packed pages behind a window of full precision: ``kivi-*`` and ``gear-*``."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.block_plan import (
    BlockPlan,
    ChunkWrites,
    Group,
    Part,
    Seam,
    SideWrites,
    Spots,
    Writes,
)
from kvload.servers.embedded.cache.paged import PagedCache, PagedSequence
from kvload.servers.embedded.cache.pool import PagePool
from kvload.servers.embedded.cache.tables import BlockTables, Ints
from kvload.servers.embedded.compression.base import BlockMethod, PageShape
from kvload.servers.kernels import attention
from kvload.servers.kernels.attention import AttentionExtras, Block, Load, Sight
from kvload.servers.kernels.layout import Field, PageLayout


class BlockCache(PagedCache):
    """A cache with four tables for each sequence: packed keys, packed values, and the window's keys and values.

    A token at position ``p`` of the window is in slot ``p % window_tokens`` of its table. The step's own tokens are
    attended to as they are, and stored, and packed, afterwards.

    Args:
        geometry: shape of the model's keys and values.
        method: how blocks are packed and when.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
    """

    def __init__(self, geometry: CacheGeometry, method: BlockMethod, total_bytes: int, chunk_tokens: int) -> None:
        self.method = method
        self.chunk_tokens = chunk_tokens
        self.page_tokens = method.page_tokens
        shape = PageShape(self.page_tokens, geometry.kv_heads, geometry.head_dim, geometry.dtype)
        self._keys = PageLayout(method.key_fields(shape))
        self._values = PageLayout(method.value_fields(shape))
        page_bytes = max(self._keys.page_bytes, self._values.page_bytes)
        token = (geometry.kv_heads, geometry.head_dim)
        self.window_page_tokens = max(1, page_bytes // Field("data", geometry.dtype, token).bytes)
        self._window = PageLayout((Field("data", geometry.dtype, (self.window_page_tokens, *token)),), page_bytes)
        pool = PagePool(total_bytes, self._window.page_bytes, geometry.layers, geometry.device)
        super().__init__(geometry, pool)
        self._packed_keys, self._packed_values, self._window_keys, self._window_values = (
            BlockTables() for _ in range(4)
        )
        self._tables = self._packed_keys, self._packed_values, self._window_keys, self._window_values
        self._fresh: list[Ints] = []
        self._workspace = attention.Workspace()
        self._grouped = geometry.kv_heads, geometry.query_heads // geometry.kv_heads, 1, geometry.head_dim
        decoded = 2 * self.page_tokens * geometry.kv_heads * geometry.head_dim * 4
        self.limit_scratch(max(1, self.scratch_bytes // decoded))

    def limit_scratch(self, blocks: int) -> None:
        """Read at most this many pages at once."""
        self._scratch_blocks = blocks

    @property
    def pool_tokens(self) -> int:
        """Length of the sequence that fills the pool."""
        window = self.method.window_tokens
        left = self.pool.pages - 2 * -(-window // self.window_page_tokens)
        return max(0, left // 2 * self.page_tokens) + window

    def open(self) -> PagedSequence:
        """A new, empty sequence: the same row in all four tables."""
        rows = [table.open() for table in self._tables]
        return PagedSequence(rows[0], self.pool.page_bytes * self.pool.planes)

    def close(self, sequence: PagedSequence) -> None:
        """Free all pages of a sequence; closing twice is harmless."""
        if not sequence.closed:
            sequence.closed = True
            sequence.pages = 0
            for table in self._tables:
                self.pool.give(table.close(sequence.row))

    def _packed_lengths(self, lengths: Ints) -> tuple[Ints, Ints]:
        """How many keys and how many values are packed of sequences of these lengths."""
        window = self.method.window_tokens
        keys = lengths // window * window
        return keys, np.maximum(0, lengths - window) if self.method.sliding_values else keys

    def _pages_held(self, length: int, window_keys: int, window_values: int) -> Ints:
        """Pages of each table, for a sequence of this length with so many tokens in its windows."""
        keys, values = (int(part[0]) for part in self._packed_lengths(np.array([length])))
        per_page = np.array([self.page_tokens, self.page_tokens, self.window_page_tokens, self.window_page_tokens])
        held: Ints = -(-np.array([keys, values, window_keys, window_values]) // per_page)
        return held

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """Everything packed that can be, and full windows."""
        del prompt_tokens
        window = min(length, self.method.window_tokens)
        return int(self._pages_held(length, window, window).sum())

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Pages for what is packed in this step and for what stays in the windows."""
        before, after, window = sequence.length, sequence.length + new_tokens, self.method.window_tokens
        # A single token is stored in the window before the window is packed; a chunk is packed on its way.
        keys = before % window + 1 if new_tokens == 1 and before else max(before % window, after % window)
        values = min(after, window) if self.method.sliding_values else keys
        missing = self._pages_held(after, keys, values)
        missing -= [int(table.counts[sequence.row]) for table in self._tables]
        missing = np.maximum(0, missing)
        pages = self.pool.take(int(missing.sum()))
        if pages is None:
            return False
        if len(pages):
            self._fresh.append(pages)
            sequence.pages += len(pages)
            for table, some in zip(self._tables, np.split(pages, np.cumsum(missing)[:-1]), strict=True):
                table.append(sequence.row, some)
        return True

    def plan(self, entries: Sequence[StepEntry]) -> BlockPlan:
        """Index tensors of the step."""
        if self._fresh:
            self.pool.clear(np.concatenate(self._fresh))
            self._fresh.clear()
        rows = np.array([entry.sequence.row for entry in entries], dtype=np.int64)
        lengths = np.array([entry.sequence.length for entry in entries], dtype=np.int64)
        new = np.array([entry.new_tokens for entry in entries], dtype=np.int64)
        first = np.cumsum(new) - new
        single = (new == 1) & (lengths > 0)
        members = np.flatnonzero(single)
        groups = []
        # What is read at once: packed pages, windows, and a page where one overlaps the other.
        sizes = lengths // self.page_tokens + 2
        for part in batches(sizes[members], self._scratch_blocks):
            chosen = members[part]
            tokens = self._tensor(first[chosen])
            groups.append(self._group(rows[chosen], lengths[chosen], tokens, lengths[chosen, None]))
        chunks = []
        for index in np.flatnonzero(~single).tolist():
            start, count, length = int(first[index]), int(new[index]), int(lengths[index])
            rows_of = slice(start, start + count)
            positions = length + np.arange(count)
            groups.append(self._group(rows[index : index + 1], lengths[index : index + 1], rows_of, positions[None]))
            prompt = length < entries[index].prompt_tokens
            chunks.append(self._chunk_writes(int(rows[index]), length, rows_of, prompt))
        singles = self._single_writes(rows[members], lengths[members], first[members]) if len(members) else None
        return BlockPlan(entries, groups, singles, chunks)

    def _tensor(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.geometry.device, non_blocking=True)

    def _padded(self, table: BlockTables, rows: Ints, columns: Ints) -> Ints:
        """Entries of a table, ``columns`` broadcasting against ``(b, n)``; the page of zeros where there is none."""
        inside = columns < table.counts[rows, None]
        found = table.pages[rows[:, None], np.where(inside, columns, 0)]
        padded: Ints = np.where(inside, found, self.pool.null_page)
        return padded

    def _group(self, rows: Ints, lengths: Ints, tokens: torch.Tensor | slice, queries: Ints) -> Group:
        keys, values = self._packed_lengths(lengths)
        step = max(1, self._scratch_blocks // len(rows))
        packed = window = seam = None
        if int(values.max()):
            columns = np.arange(-(-int(values.max()) // self.page_tokens))[None]
            position = np.arange(columns.size * self.page_tokens)[None]
            packed = Part(
                self._tensor(self._padded(self._packed_keys, rows, columns)),
                self._tensor(self._padded(self._packed_values, rows, columns)),
                self._position(position, position < values[:, None]),
                step,
            )
        if int((keys - values).max()):
            start = values // self.page_tokens
            columns = start[:, None] + np.arange(int((-(-keys // self.page_tokens) - start).max()))
            position = (start * self.page_tokens)[:, None] + np.arange(columns.shape[1] * self.page_tokens)
            slots = position % self.method.window_tokens
            seam = Seam(
                self._tensor(self._padded(self._packed_keys, rows, columns)),
                self._tensor(self._padded(self._window_values, rows, slots // self.window_page_tokens)),
                self._position(position, (position >= values[:, None]) & (position < keys[:, None])),
                step,
                value_slots=self._tensor(slots % self.window_page_tokens),
            )
        if int((lengths - keys).max()):
            columns = np.arange(-(-int((lengths - keys).max()) // self.window_page_tokens))[None]
            position = keys[:, None] + np.arange(columns.size * self.window_page_tokens)
            window = Part(
                self._tensor(self._padded(self._window_keys, rows, columns)),
                self._tensor(self._padded(self._window_values, rows, columns)),
                self._position(position, position < lengths[:, None]),
                step,
            )
        return Group(tokens, self._tensor(queries)[:, None, None, :, None], packed, seam, window)

    def _position(self, position: Ints, counts: npt.NDArray[np.bool_]) -> torch.Tensor:
        return self._tensor(np.where(counts, position, -1))[:, None, None, None, :]

    def _spots(self, table: BlockTables, row: Ints, slots: Ints, per_page: int) -> Spots:
        pages = table.pages[row, slots // per_page]
        return self._tensor(pages), self._tensor(slots % per_page)

    def _single_writes(self, rows: Ints, lengths: Ints, tokens: Ints) -> Writes:
        window, per_page = self.method.window_tokens, self.window_page_tokens
        slots = lengths % window
        leaving = np.flatnonzero(lengths >= window) if self.method.sliding_values else np.zeros(0, dtype=np.int64)
        full = np.flatnonzero((lengths + 1) % window == 0)
        every = np.arange(window)[None]
        pages = (lengths[full] + 1 - window)[:, None] // self.page_tokens + np.arange(window // self.page_tokens)
        both = () if self.method.sliding_values else (self._packed_values,)
        packed = [table.pages[rows[full, None], pages].ravel() for table in (self._packed_keys, *both)]
        return Writes(
            tokens=self._tensor(tokens),
            keys=self._spots(self._window_keys, rows, slots, per_page),
            values=self._spots(self._window_values, rows, slots, per_page),
            leaving=self._tensor(leaving),
            left=self._spots(self._packed_values, rows[leaving], lengths[leaving] - window, self.page_tokens),
            full_keys=self._spots(self._window_keys, rows[full, None], every, per_page),
            full_values=self._spots(self._window_values, rows[full, None], every, per_page),
            packed_keys=self._tensor(packed[0]),
            packed_values=self._tensor(packed[-1]),
        )

    def _chunk_writes(self, row: int, length: int, tokens: slice, prompt: bool) -> ChunkWrites:
        ends = np.array([length, length + tokens.stop - tokens.start])
        keys, values = self._packed_lengths(ends)
        return ChunkWrites(
            tokens,
            prompt,
            self._side_writes(row, ends, keys, self._packed_keys, self._window_keys),
            self._side_writes(row, ends, values, self._packed_values, self._window_values),
        )

    def _side_writes(
        self, row: int, ends: Ints, packed: Ints, packed_table: BlockTables, window_table: BlockTables
    ) -> SideWrites:
        rows = np.array([row])
        before, after = ends.tolist()
        start, stop = packed.tolist()
        window, per_page = self.method.window_tokens, self.window_page_tokens
        held = np.arange(start, min(stop, before))
        kept = np.arange(max(stop, before), after)
        return SideWrites(
            held=self._spots(window_table, rows, held % window, per_page),
            packed=stop - start,
            pages=self._spots(packed_table, rows, np.arange(start, stop), self.page_tokens),
            kept=slice(max(stop, before) - before, after - before),
            spots=self._spots(window_table, rows, kept % window, per_page),
        )

    def attend(
        self,
        layer: int,
        plan: BlockPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """New tokens see themselves and the window exactly, and what was packed before as it is packed."""
        sight = Sight(extras.sliding_window)
        sinks = None if extras.sinks is None else extras.sinks.view(self.geometry.kv_heads, -1, 1)
        out = torch.empty_like(query)
        for group in plan.groups:
            own_key, own_value = key[group.tokens], value[group.tokens]
            alone = isinstance(group.tokens, slice)
            if isinstance(group.tokens, slice):
                grouped = attention.by_head(query[group.tokens], self.geometry.kv_heads)
                own_key, own_value = own_key.transpose(0, 1)[None], own_value.transpose(0, 1)[None]
            else:
                grouped = query.index_select(0, group.tokens).view(-1, *self._grouped)
                own_key, own_value = own_key.unsqueeze(2), own_value.unsqueeze(2)
            blocks = self._blocks(layer, group, sight, query.dtype)
            if not blocks and extras.softcap is None and sinks is None and sight.sees_all(grouped.shape[3]):
                attended = attention.causal(grouped, own_key, own_value, extras.scaling)
            else:
                own = own_key, own_value, _own_mask(group, sight, query.dtype)
                blocks.append(lambda own=own: own)  # type: ignore[misc]
                attended = attention.attend(
                    grouped,
                    blocks,
                    scaling=extras.scaling,
                    softcap=extras.softcap,
                    sinks=sinks,
                    together=self._workspace if group.read_at_once else None,
                )
            out[group.tokens] = attention.by_token(attended) if alone else attended.flatten(1, 3)
        if plan.singles is not None:
            self._write_singles(layer, plan.singles, key, value)
        for chunk in plan.chunks:
            self._write_chunk(layer, chunk, key[chunk.tokens], value[chunk.tokens])
        return out

    def _blocks(self, layer: int, group: Group, sight: Sight, dtype: torch.dtype) -> list[Load]:
        rows = self.pool.storage[layer]
        query = group.query_position
        found: list[Load] = []
        if group.packed is not None:
            for start in range(0, group.packed.keys.shape[1], group.packed.step):
                found.append(partial(self._packed_block, rows, group.packed, start, query, sight, dtype))
        if group.seam is not None:
            found.append(partial(self._seam_block, rows, group.seam, query, sight, dtype))
        if group.window is not None:
            found.append(partial(self._window_block, rows, group.window, query, sight, dtype))
        return found

    def _packed_block(
        self, rows: torch.Tensor, part: Part, start: int, query: torch.Tensor, sight: Sight, dtype: torch.dtype
    ) -> Block:
        keys, values = (pages[:, start : start + part.step] for pages in (part.keys, part.values))
        first = start * self.page_tokens
        mask = part.masks.get((sight, start))
        if mask is None:
            position = part.position[..., first : first + keys.shape[1] * self.page_tokens]
            mask = part.masks[sight, start] = sight.mask(query, position, dtype)
        return self._unpacked_keys(rows, keys), self._unpacked_values(rows, values), mask

    def _unpacked_keys(self, rows: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        decoded = self.method.decode_keys(self._keys.views(rows.index_select(0, pages.flatten())))
        return decoded.reshape(pages.shape[0], -1, *decoded.shape[2:]).transpose(1, 2)

    def _unpacked_values(self, rows: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        decoded = self.method.decode_values(self._values.views(rows.index_select(0, pages.flatten())))
        return decoded.reshape(pages.shape[0], -1, *decoded.shape[2:]).transpose(1, 2)

    def _seam_block(
        self, rows: torch.Tensor, seam: Seam, query: torch.Tensor, sight: Sight, dtype: torch.dtype
    ) -> Block:
        values = self._window.view(rows, "data")[seam.values, seam.value_slots]
        return self._unpacked_keys(rows, seam.keys), values.transpose(1, 2), _mask(seam, query, sight, dtype)

    def _window_block(
        self, rows: torch.Tensor, part: Part, query: torch.Tensor, sight: Sight, dtype: torch.dtype
    ) -> Block:
        taken = (self._window.take(rows, "data", pages) for pages in (part.keys, part.values))
        keys, values = (tokens.flatten(1, 2).transpose(1, 2) for tokens in taken)
        return keys, values, _mask(part, query, sight, dtype)

    def _write_singles(self, layer: int, writes: Writes, key: torch.Tensor, value: torch.Tensor) -> None:
        rows = self.pool.storage[layer]
        window = self._window.view(rows, "data")
        if len(writes.leaving):
            pages, slots = (spot[writes.leaving] for spot in writes.values)
            encoded = self.method.encode_values(window[pages, slots], prompt=False)
            for view, part in zip(self._values.views(rows), encoded, strict=True):
                view.index_put_(writes.left, part)
        window.index_put_(writes.keys, key[writes.tokens])
        window.index_put_(writes.values, value[writes.tokens])
        if len(writes.packed_keys):
            keys = self._paged(window[writes.full_keys])
            self._put(rows, self._keys, writes.packed_keys, self.method.encode_keys(keys, prompt=False))
            if not self.method.sliding_values:
                values = self._paged(window[writes.full_values])
                self._put(rows, self._values, writes.packed_values, self.method.encode_values(values, prompt=False))

    def _write_chunk(self, layer: int, chunk: ChunkWrites, key: torch.Tensor, value: torch.Tensor) -> None:
        rows = self.pool.storage[layer]
        window = self._window.view(rows, "data")
        for writes, new, layout in ((chunk.keys, key, self._keys), (chunk.values, value, self._values)):
            if writes.packed:
                tokens = torch.cat([window[writes.held], new])[: writes.packed]
                if layout is self._values and self.method.sliding_values:
                    encoded = self.method.encode_values(tokens, prompt=chunk.prompt)
                    for view, part in zip(layout.views(rows), encoded, strict=True):
                        view.index_put_(writes.pages, part)
                else:
                    encode = self.method.encode_keys if layout is self._keys else self.method.encode_values
                    pages = writes.pages[0][:: self.page_tokens]
                    self._put(rows, layout, pages, encode(self._paged(tokens), prompt=chunk.prompt))
            window.index_put_(writes.spots, new[writes.kept])

    def _paged(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.reshape(-1, self.page_tokens, *tokens.shape[-2:])

    def _put(
        self, rows: torch.Tensor, layout: PageLayout, pages: torch.Tensor, parts: tuple[torch.Tensor, ...]
    ) -> None:
        for view, part in zip(layout.views(rows), parts, strict=True):
            view.index_put_((pages,), part)

    def commit(self, plan: BlockPlan) -> None:
        """Advance the lengths and free the pages of windows that were packed."""
        for entry in plan.entries:
            sequence = entry.sequence
            sequence.length += entry.new_tokens
            kept = -(-(sequence.length % self.method.window_tokens) // self.window_page_tokens)
            shrinking = self._tables[2:3] if self.method.sliding_values else self._tables[2:]
            for table in shrinking:
                count = int(table.counts[sequence.row])
                if count > kept:
                    self.pool.give(table.remove(sequence.row, kept, count))
                    sequence.pages -= count - kept


def _mask(part: Part, query: torch.Tensor, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
    mask = part.masks.get((sight, 0))
    if mask is None:
        mask = part.masks[sight, 0] = sight.mask(query, part.position, dtype)
    return mask


def _own_mask(group: Group, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
    mask = group.own.get((sight, 0))
    if mask is None:
        query = group.query_position
        own = query.transpose(3, 4)
        mask = group.own[sight, 0] = sight.mask(query, own, dtype)
    return mask
