"""Pages of tokens that are stored each on its own: ``none``, ``int8``, ``k8v4``, ``fp8-e4m3``, ``streamingllm`` ..."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from kvload.servers.embedded.account.base import StepEntry
from kvload.servers.embedded.account.tables import Ints
from kvload.servers.embedded.account.tokens import TokenAccount
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.paged import PagedCache
from kvload.servers.embedded.compression.base import TokenMethod
from kvload.servers.kernels.api import Step
from kvload.servers.kernels.layout import CacheGeometry
from kvload.servers.kernels.reference.tokens import Chunk, Group, Slots, TokenKernels

_NOTHING = torch.empty(0)


class TokenCache(PagedCache[TokenAccount, Group, Chunk, Slots]):
    """A cache whose page holds the keys and the values of ``page_tokens`` tokens of all heads, in every layer.

    Args:
        geometry: shape of the model's keys and values.
        method: how tokens are encoded and how long they stay.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
        kernels: the set that stores and attends.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        method: TokenMethod,
        total_bytes: int,
        chunk_tokens: int,
        kernels: type[TokenKernels] = TokenKernels,
    ) -> None:
        made = kernels(geometry, method)
        self.page_tokens = made.page_tokens
        super().__init__(
            geometry,
            made,
            partial(
                TokenAccount,
                page_tokens=self.page_tokens,
                sink_tokens=method.sink_tokens,
                recent_tokens=method.recent_tokens,
                chunk_tokens=chunk_tokens,
            ),
            total_bytes,
            planes=geometry.layers,
            read_bytes=2 * self.page_tokens * geometry.kv_heads * geometry.head_dim * 4,
        )

    def _plan(
        self, entries: Sequence[StepEntry], rows: Ints, lengths: Ints, new: Ints, first: Ints
    ) -> Step[Group, Chunk, Slots]:
        tables = self.account.tables
        owner = np.repeat(np.arange(len(entries)), new)
        slot = np.arange(len(owner)) - first[owner] + (lengths - tables.dropped[rows])[owner]
        pages = tables.pages[rows[owner], slot // self.page_tokens]
        single = (new == 1) & (lengths > 0)
        members = np.flatnonzero(single)
        decodes = []
        sizes = self._blocks_of(rows, lengths + 1)[members]
        for part in batches(sizes, self.scratch_blocks) if self.kernels.unpacks else [slice(None)][: len(members)]:
            chosen = members[part]
            decodes.append(self._group(rows[chosen], lengths[chosen] + 1, first[chosen], lengths[chosen, None]))
        chunks = []
        for index in np.flatnonzero(~single).tolist():
            one = slice(index, index + 1)
            tokens = first[index] + np.arange(new[index])
            queries = lengths[index] + np.arange(new[index])
            # Kernels that read pages as they are find the chunk's own tokens there as well.
            stored = lengths[one] if self.kernels.unpacks else lengths[one] + new[one]
            context = self._group(rows[one], stored, tokens, queries[None]) if lengths[index] else None
            rows_of = slice(int(first[index]), int(first[index] + new[index]))
            chunks.append(Chunk(rows_of, self._tensor(queries), context, int(lengths[index])))
        return Step(decodes, chunks, Slots(self._tensor(pages), self._tensor(slot % self.page_tokens)))

    def _blocks_of(self, rows: Ints, lengths: Ints) -> Ints:
        stored: Ints = lengths - self.account.tables.dropped[rows]
        return -(-stored // self.page_tokens)

    def _group(self, rows: Ints, lengths: Ints, tokens: Ints, queries: Ints) -> Group:
        """Sequences that read what they store below ``lengths``, with queries at ``(b, t)`` positions."""
        tables = self.account.tables
        blocks = int(self._blocks_of(rows, lengths).max())
        if not self.kernels.unpacks:
            pages, stored = tables.pages[rows, :blocks], lengths - tables.dropped[rows]
            return Group(self._tensor(tokens), self._tensor(pages), self._tensor(stored), _NOTHING, _NOTHING, blocks)
        slots = np.arange(blocks * self.page_tokens)
        # Dropped pages lay between the sinks' and the window's: slots behind the sinks' pages are later positions.
        positions = slots + np.where(slots >= self.account.sink_slots, tables.dropped[rows, None], 0)
        positions = np.where(positions < lengths[:, None], positions, -1)
        return Group(
            tokens=self._tensor(tokens),
            pages=self._tensor(tables.pages[rows, :blocks]),
            lengths=self._tensor(lengths - tables.dropped[rows]),
            key_position=self._tensor(positions)[:, None, None, None, :],
            query_position=self._tensor(queries)[:, None, None, :, None],
            step=max(1, self.scratch_blocks // len(rows)),
        )
