"""Packed pages behind a window of full precision: ``kivi-*`` and ``gear-*``."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from kvload.servers.embedded.account.base import StepEntry
from kvload.servers.embedded.account.blocks import BlockAccount
from kvload.servers.embedded.account.tables import BlockTables, Ints
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.paged import PagedCache
from kvload.servers.embedded.compression.base import BlockMethod
from kvload.servers.kernels.api import Step
from kvload.servers.kernels.layout import CacheGeometry
from kvload.servers.kernels.reference.blocks import (
    BlockKernels,
    ChunkWrites,
    Group,
    Part,
    Seam,
    SideWrites,
    Spots,
    StepWrites,
    Writes,
)


class BlockCache(PagedCache[BlockAccount, Group, Group, StepWrites]):
    """A cache with four tables for each sequence: packed keys, packed values, and the window's keys and values.

    Args:
        geometry: shape of the model's keys and values.
        method: how blocks are packed and when.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
        kernels: the set that stores and attends.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        method: BlockMethod,
        total_bytes: int,
        chunk_tokens: int,
        kernels: type[BlockKernels] = BlockKernels,
    ) -> None:
        del chunk_tokens
        made = kernels(geometry, method)
        super().__init__(
            geometry,
            made,
            partial(
                BlockAccount,
                page_tokens=made.page_tokens,
                window_tokens=method.window_tokens,
                window_page_tokens=made.window_page_tokens,
                sliding_values=method.sliding_values,
            ),
            total_bytes,
            planes=geometry.layers,
            read_bytes=2 * made.page_tokens * geometry.kv_heads * geometry.head_dim * 4,
        )

    def _plan(
        self, entries: Sequence[StepEntry], rows: Ints, lengths: Ints, new: Ints, first: Ints
    ) -> Step[Group, Group, StepWrites]:
        single = (new == 1) & (lengths > 0)
        members = np.flatnonzero(single)
        decodes = []
        # What is read at once: packed pages, windows, and a page where one overlaps the other.
        sizes = lengths // self.account.page_tokens + 2
        for part in batches(sizes[members], self.scratch_blocks):
            chosen = members[part]
            tokens = self._tensor(first[chosen])
            decodes.append(self._group(rows[chosen], lengths[chosen], tokens, lengths[chosen, None]))
        prefills, chunks = [], []
        for index in np.flatnonzero(~single).tolist():
            start, count, length = int(first[index]), int(new[index]), int(lengths[index])
            rows_of = slice(start, start + count)
            positions = length + np.arange(count)
            prefills.append(self._group(rows[index : index + 1], lengths[index : index + 1], rows_of, positions[None]))
            prompt = length < entries[index].prompt_tokens
            chunks.append(self._chunk_writes(int(rows[index]), length, rows_of, prompt))
        singles = self._single_writes(rows[members], lengths[members], first[members]) if len(members) else None
        return Step(decodes, prefills, StepWrites(singles, chunks))

    def _padded(self, table: BlockTables, rows: Ints, columns: Ints) -> Ints:
        """Entries of a table, ``columns`` broadcasting against ``(b, n)``; the page of zeros where there is none."""
        inside = columns < table.counts[rows, None]
        found = table.pages[rows[:, None], np.where(inside, columns, 0)]
        padded: Ints = np.where(inside, found, self.pool.null_page)
        return padded

    def _group(self, rows: Ints, lengths: Ints, tokens: torch.Tensor | slice, queries: Ints) -> Group:
        keys, values = self.account.packed_lengths(lengths)
        step = max(1, self.scratch_blocks // len(rows))
        packed = window = seam = None
        if int(values.max()):
            columns = np.arange(-(-int(values.max()) // self.account.page_tokens))[None]
            position = np.arange(columns.size * self.account.page_tokens)[None]
            packed = Part(
                self._tensor(self._padded(self.account.packed_keys, rows, columns)),
                self._tensor(self._padded(self.account.packed_values, rows, columns)),
                self._position(position, position < values[:, None]),
                step,
            )
        if int((keys - values).max()):
            start = values // self.account.page_tokens
            columns = start[:, None] + np.arange(int((-(-keys // self.account.page_tokens) - start).max()))
            position = (start * self.account.page_tokens)[:, None] + np.arange(
                columns.shape[1] * self.account.page_tokens
            )
            slots = position % self.account.window_tokens
            seam = Seam(
                self._tensor(self._padded(self.account.packed_keys, rows, columns)),
                self._tensor(self._padded(self.account.window_values, rows, slots // self.account.window_page_tokens)),
                self._position(position, (position >= values[:, None]) & (position < keys[:, None])),
                step,
                value_slots=self._tensor(slots % self.account.window_page_tokens),
            )
        if int((lengths - keys).max()):
            columns = np.arange(-(-int((lengths - keys).max()) // self.account.window_page_tokens))[None]
            position = keys[:, None] + np.arange(columns.size * self.account.window_page_tokens)
            window = Part(
                self._tensor(self._padded(self.account.window_keys, rows, columns)),
                self._tensor(self._padded(self.account.window_values, rows, columns)),
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
        window, per_page = self.account.window_tokens, self.account.window_page_tokens
        slots = lengths % window
        leaving = np.flatnonzero(lengths >= window) if self.account.sliding_values else np.zeros(0, dtype=np.int64)
        full = np.flatnonzero((lengths + 1) % window == 0)
        every = np.arange(window)[None]
        pages = (lengths[full] + 1 - window)[:, None] // self.account.page_tokens + np.arange(
            window // self.account.page_tokens
        )
        both = () if self.account.sliding_values else (self.account.packed_values,)
        packed = [table.pages[rows[full, None], pages].ravel() for table in (self.account.packed_keys, *both)]
        return Writes(
            tokens=self._tensor(tokens),
            keys=self._spots(self.account.window_keys, rows, slots, per_page),
            values=self._spots(self.account.window_values, rows, slots, per_page),
            leaving=self._tensor(leaving),
            left=self._spots(
                self.account.packed_values, rows[leaving], lengths[leaving] - window, self.account.page_tokens
            ),
            full_keys=self._spots(self.account.window_keys, rows[full, None], every, per_page),
            full_values=self._spots(self.account.window_values, rows[full, None], every, per_page),
            packed_keys=self._tensor(packed[0]),
            packed_values=self._tensor(packed[-1]),
        )

    def _chunk_writes(self, row: int, length: int, tokens: slice, prompt: bool) -> ChunkWrites:
        ends = np.array([length, length + tokens.stop - tokens.start])
        keys, values = self.account.packed_lengths(ends)
        return ChunkWrites(
            tokens,
            prompt,
            self._side_writes(row, ends, keys, self.account.packed_keys, self.account.window_keys),
            self._side_writes(row, ends, values, self.account.packed_values, self.account.window_values),
        )

    def _side_writes(
        self, row: int, ends: Ints, packed: Ints, packed_table: BlockTables, window_table: BlockTables
    ) -> SideWrites:
        rows = np.array([row])
        before, after = ends.tolist()
        start, stop = packed.tolist()
        window, per_page = self.account.window_tokens, self.account.window_page_tokens
        held = np.arange(start, min(stop, before))
        kept = np.arange(max(stop, before), after)
        return SideWrites(
            held=self._spots(window_table, rows, held % window, per_page),
            packed=stop - start,
            pages=self._spots(packed_table, rows, np.arange(start, stop), self.account.page_tokens),
            kept=slice(max(stop, before) - before, after - before),
            spots=self._spots(window_table, rows, kept % window, per_page),
        )
