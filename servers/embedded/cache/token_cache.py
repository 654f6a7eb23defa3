"""Pages of tokens that are stored each on its own: ``none``, ``int8``, ``int4``, ``fp8-e4m3``, ``streamingllm``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.paged import PagedCache, PagedSequence
from kvload.servers.embedded.cache.pool import PagePool
from kvload.servers.embedded.cache.tables import BlockTables, Ints
from kvload.servers.embedded.compression.base import PageShape, TokenMethod
from kvload.servers.kernels import attention
from kvload.servers.kernels.attention import AttentionExtras, Block, Load, Sight
from kvload.servers.kernels.layout import PageLayout
from kvload.servers.kernels.quantise import random_hadamard


@dataclass
class Group:
    """Some sequences' queries of one step, with the pages they read.

    Attributes:
        tokens: rows of the packed batch, ``(b,)``: one query of each sequence, or all of one sequence's.
        key_rows: ``(b, blocks)`` half pages of the keys; the values' follow each directly.
        key_position: ``(b, 1, 1, 1, slots)`` logical positions, -1 where there is no token.
        query_position: ``(b, 1, 1, t, 1)``.
        step: blocks read at once.
        masks: masks of this step, by what the layer lets a query see and the first block they cover.
    """

    tokens: torch.Tensor
    key_rows: torch.Tensor
    key_position: torch.Tensor
    query_position: torch.Tensor
    step: int
    masks: dict[tuple[Sight, int], torch.Tensor] = field(default_factory=dict)


@dataclass
class Chunk:
    """Several new tokens of one sequence.

    Attributes:
        tokens: its rows of the packed batch.
        position: ``(t,)`` logical positions.
        context: what was stored of the sequence before; None for nothing.
        masks: masks of the chunk over itself, by what the layer lets a query see.
    """

    tokens: slice
    position: torch.Tensor
    context: Group | None
    masks: dict[Sight, torch.Tensor] = field(default_factory=dict)


@dataclass
class TokenPlan:
    """One step: where its tokens are written and what they read.

    Attributes:
        entries: the sequences of the step.
        rows, slots: half page and slot where each token's key is written.
        decodes: sequences with one new token.
        chunks: the other sequences, each with several new tokens or its first.
    """

    entries: Sequence[StepEntry]
    rows: torch.Tensor
    slots: torch.Tensor
    decodes: list[Group]
    chunks: list[Chunk]


class TokenCache(PagedCache):
    """A cache whose page holds the keys and the values of ``page_tokens`` tokens of all heads, in every layer.

    Within a page the keys' fields come first and the values' fields, laid out the same, after them.

    Args:
        geometry: shape of the model's keys and values.
        method: how tokens are encoded and how long they stay.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
    """

    def __init__(self, geometry: CacheGeometry, method: TokenMethod, total_bytes: int, chunk_tokens: int) -> None:
        self.method = method
        self.page_tokens = method.page_tokens
        self.chunk_tokens = chunk_tokens
        shape = PageShape(self.page_tokens, geometry.kv_heads, geometry.head_dim, geometry.dtype)
        self.layout = PageLayout(method.fields(shape))
        pool = PagePool(total_bytes, 2 * self.layout.page_bytes, geometry.layers, geometry.device)
        super().__init__(geometry, pool)
        self._halves = pool.storage.view(geometry.layers, 2 * (pool.pages + 2), self.layout.page_bytes)
        self._tables = BlockTables()
        self._grouped = geometry.kv_heads, geometry.query_heads // geometry.kv_heads, 1, geometry.head_dim
        self._rotation = None
        if method.rotation_seed is not None:
            self._rotation = random_hadamard(geometry.head_dim, method.rotation_seed).to(geometry.device)
        self._sink_slots = -(-method.sink_tokens // self.page_tokens) * self.page_tokens
        decoded = 2 * self.page_tokens * geometry.kv_heads * geometry.head_dim * 4
        self.limit_scratch(max(1, self.scratch_bytes // decoded))

    def limit_scratch(self, blocks: int) -> None:
        """Read at most this many pages at once."""
        self._scratch_blocks = blocks
        # One buffer for all reads: fresh memory of this size costs more in page faults than the copy itself.
        self._scratch = torch.empty((2, blocks, self.layout.page_bytes), dtype=torch.uint8, device=self.geometry.device)

    @property
    def pool_tokens(self) -> int:
        """Tokens of a sequence of any length, in whole pages."""
        return self.pool.pages * self.page_tokens

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        sequence = PagedSequence(self._tables.open(), self.pool.page_bytes * self.pool.planes)
        self._tables.dropped[sequence.row] = 0
        return sequence

    def close(self, sequence: PagedSequence) -> None:
        """Free all pages of a sequence; closing twice is harmless."""
        if not sequence.closed:
            sequence.closed = True
            sequence.pages = 0
            self.pool.give(self._tables.close(sequence.row))

    def most_pages(self, prompt_tokens: int, length: int) -> int:
        """All its tokens', or those of the sinks, the window and one more chunk."""
        pages = -(-length // self.page_tokens)
        if self.method.recent_tokens is None:
            return pages
        chunk = max(1, min(self.chunk_tokens, prompt_tokens))
        kept = self._sink_slots + self.method.recent_tokens + chunk
        return min(pages, -(-kept // self.page_tokens) + 1)

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Take the pages that the tokens need beyond the room in the last page."""
        row = sequence.row
        room = int(self._tables.counts[row]) * self.page_tokens - (sequence.length - self._tables.dropped[row])
        missing = -(-(new_tokens - room) // self.page_tokens)
        if missing <= 0:
            return True
        pages = self.pool.take(missing)
        if pages is None:
            return False
        self._tables.append(row, pages)
        sequence.pages += missing
        return True

    def plan(self, entries: Sequence[StepEntry]) -> TokenPlan:
        """Index tensors of the step: where to write, what to read, who sees what."""
        rows = np.array([entry.sequence.row for entry in entries], dtype=np.int64)
        lengths = np.array([entry.sequence.length for entry in entries], dtype=np.int64)
        new = np.array([entry.new_tokens for entry in entries], dtype=np.int64)
        first = np.cumsum(new) - new
        owner = np.repeat(np.arange(len(entries)), new)
        slot = np.arange(len(owner)) - first[owner] + (lengths - self._tables.dropped[rows])[owner]
        pages = self._tables.pages[rows[owner], slot // self.page_tokens]
        single = (new == 1) & (lengths > 0)
        members = np.flatnonzero(single)
        decodes = [
            self._group(rows[part], lengths[part] + 1, first[part], lengths[part, None])
            for part in (
                members[part] for part in batches(self._blocks_of(rows, lengths + 1)[members], self._scratch_blocks)
            )
        ]
        chunks = []
        for index in np.flatnonzero(~single).tolist():
            one = slice(index, index + 1)
            tokens = first[index] + np.arange(new[index])
            queries = lengths[index] + np.arange(new[index])
            context = self._group(rows[one], lengths[one], tokens, queries[None]) if lengths[index] else None
            rows_of = slice(int(first[index]), int(first[index] + new[index]))
            chunks.append(Chunk(rows_of, self._tensor(queries), context))
        return TokenPlan(entries, self._tensor(2 * pages), self._tensor(slot % self.page_tokens), decodes, chunks)

    def _blocks_of(self, rows: Ints, lengths: Ints) -> Ints:
        stored: Ints = lengths - self._tables.dropped[rows]
        return -(-stored // self.page_tokens)

    def _group(self, rows: Ints, lengths: Ints, tokens: Ints, queries: Ints) -> Group:
        """Sequences that read what they store below ``lengths``, with queries at ``(b, t)`` positions."""
        blocks = int(self._blocks_of(rows, lengths).max())
        slots = np.arange(blocks * self.page_tokens)
        # Dropped pages lay between the sinks' and the window's: slots behind the sinks' pages are later positions.
        positions = slots + np.where(slots >= self._sink_slots, self._tables.dropped[rows, None], 0)
        positions = np.where(positions < lengths[:, None], positions, -1)
        return Group(
            tokens=self._tensor(tokens),
            key_rows=self._tensor(2 * self._tables.pages[rows, :blocks]),
            key_position=self._tensor(positions)[:, None, None, None, :],
            query_position=self._tensor(queries)[:, None, None, :, None],
            step=max(1, self._scratch_blocks // len(rows)),
        )

    def _tensor(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.geometry.device, non_blocking=True)

    def attend(
        self,
        layer: int,
        plan: TokenPlan,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Decodes read their own token as stored; a prompt's chunk sees itself exactly and earlier chunks as stored."""
        dtype = query.dtype
        if self._rotation is not None:
            query, key, value = (x.float() @ self._rotation for x in (query, key, value))
        self._store(layer, plan, key, value)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        sight = Sight(extras.sliding_window, self.method.recent_tokens, self.method.sink_tokens)
        sinks = None if extras.sinks is None else extras.sinks.view(self.geometry.kv_heads, -1, 1)
        plain = extras.softcap is None and sinks is None
        out = torch.empty_like(query)
        for group in plan.decodes:
            grouped = query.index_select(0, group.tokens).view(-1, *self._grouped)
            blocks = self._blocks(layer, group, sight, query.dtype)
            attended = attention.attend(grouped, blocks, scaling=extras.scaling, softcap=extras.softcap, sinks=sinks)
            out.index_copy_(0, group.tokens, attended.flatten(1, 3))
        for chunk in plan.chunks:
            grouped = attention.by_head(query[chunk.tokens], self.geometry.kv_heads)
            own_key, own_value = (x[chunk.tokens].transpose(0, 1)[None] for x in (key, value))
            if chunk.context is None and plain and sight.sees_all(len(chunk.position)):
                attended = attention.causal(grouped, own_key, own_value, extras.scaling)
            else:
                blocks = [] if chunk.context is None else self._blocks(layer, chunk.context, sight, query.dtype)
                own = (own_key, own_value, _own_mask(chunk, sight, query.dtype))
                blocks.append(lambda own=own: own)  # type: ignore[misc]
                attended = attention.attend(
                    grouped, blocks, scaling=extras.scaling, softcap=extras.softcap, sinks=sinks
                )
            out[chunk.tokens] = attention.by_token(attended)
        return out if self._rotation is None else (out.float() @ self._rotation.T).to(dtype)

    def _store(self, layer: int, plan: TokenPlan, key: torch.Tensor, value: torch.Tensor) -> None:
        both = zip(self.method.encode(key), self.method.encode(value), strict=True)
        for view, (keys, values) in zip(self.layout.views(self._halves[layer]), both, strict=True):
            view.index_put_((plan.rows, plan.slots), keys)
            view.index_put_((plan.rows + 1, plan.slots), values)

    def _blocks(self, layer: int, group: Group, sight: Sight, dtype: torch.dtype) -> list[Load]:
        """The stored keys and values of a group, a bounded number of pages at a time."""
        starts = range(0, group.key_rows.shape[1], group.step)
        return [partial(self._block, layer, group, start, sight, dtype) for start in starts]

    def _block(self, layer: int, group: Group, start: int, sight: Sight, dtype: torch.dtype) -> Block:
        rows = group.key_rows[:, start : start + group.step]
        mask = group.masks.get((sight, start))
        if mask is None:
            first = start * self.page_tokens
            positions = group.key_position[..., first : first + rows.shape[1] * self.page_tokens]
            mask = group.masks[sight, start] = sight.mask(group.query_position, positions, dtype)
        return self._read(layer, rows, dtype, 0), self._read(layer, rows + 1, dtype, 1), mask

    def _read(self, layer: int, rows: torch.Tensor, dtype: torch.dtype, side: int) -> torch.Tensor:
        """Half pages ``(b, blocks)`` as ``(b, kv_heads, blocks * page_tokens, head_dim)``."""
        taken = self._scratch[side, : rows.numel()]
        torch.index_select(self._halves[layer], 0, rows.flatten(), out=taken)
        decoded = self.method.decode(self.layout.views(taken), dtype)
        return decoded.reshape(rows.shape[0], -1, *decoded.shape[2:]).transpose(1, 2)

    def commit(self, plan: TokenPlan) -> None:
        """Advance the lengths and free the pages nobody will see again."""
        for entry in plan.entries:
            entry.sequence.length += entry.new_tokens
        if self.method.recent_tokens is not None:
            for entry in plan.entries:
                self._drop(entry.sequence, self.method.recent_tokens)

    def _drop(self, sequence: PagedSequence, recent: int) -> None:
        row = sequence.row
        first_seen = sequence.length - recent + 1
        stop = (first_seen - int(self._tables.dropped[row])) // self.page_tokens
        start = self._sink_slots // self.page_tokens
        if stop > start:
            self.pool.give(self._tables.remove(row, start, stop))
            self._tables.dropped[row] += (stop - start) * self.page_tokens
            sequence.pages -= stop - start


def _own_mask(chunk: Chunk, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
    mask = chunk.masks.get(sight)
    if mask is None:
        mask = sight.mask(chunk.position[:, None], chunk.position, dtype)[None, None, None]
        chunk.masks[sight] = mask
    return mask
