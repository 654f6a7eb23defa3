"""Tokens kept by the attention they received, each head its own: ``h2o`` and ``snapkv``."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from kvload.servers.embedded.account.base import PagedSequence, StepEntry
from kvload.servers.embedded.account.scored import ScoredAccount
from kvload.servers.embedded.account.tables import Ints
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.paged import PagedCache
from kvload.servers.embedded.compression.base import ScoredMethod
from kvload.servers.kernels.api import Step
from kvload.servers.kernels.layout import CacheGeometry
from kvload.servers.kernels.reference.scored import Chunk, Decodes, ScoredKernels


class ScoredCache(PagedCache[ScoredAccount, Decodes, Chunk, None]):
    """A cache whose slots hold different tokens in different heads, as many in each.

    Scratch memory is bounded, but always takes all that one sequence holds.

    Args:
        geometry: shape of the model's keys and values.
        method: which tokens stay.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
        kernels: the set that stores and attends.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        method: ScoredMethod,
        total_bytes: int,
        chunk_tokens: int,
        kernels: type[ScoredKernels] = ScoredKernels,
    ) -> None:
        del chunk_tokens
        self.method = method
        self._scored = kernels(geometry, method)
        self.page_tokens = self._scored.page_tokens
        super().__init__(
            geometry,
            self._scored,
            partial(
                ScoredAccount,
                page_tokens=self.page_tokens,
                kept_tokens=method.kept_tokens,
                evicts_while_decoding=method.evicts_while_decoding,
                evicts_at_once=method.evicts_at_once,
            ),
            total_bytes,
            planes=geometry.layers,
            read_bytes=2 * self.page_tokens * geometry.kv_heads * geometry.head_dim * geometry.dtype.itemsize,
        )

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        sequence = super().open()
        self._scored.make_room(len(self.account.tables.counts))
        return sequence

    def _plan(
        self, entries: Sequence[StepEntry], rows: Ints, lengths: Ints, new: Ints, first: Ints
    ) -> Step[Decodes, Chunk, None]:
        decodes, chunks = [], []
        prompts = np.array([entry.prompt_tokens for entry in entries], dtype=np.int64)
        single = (new == 1) & (lengths >= prompts) & (lengths > 0)
        members = np.flatnonzero(single)
        slots = lengths - self.account.tables.dropped[rows]
        for part in batches(slots[members] // self.page_tokens + 1, self.scratch_blocks):
            chosen = members[part]
            decodes.append(self._decodes(rows[chosen], lengths[chosen], slots[chosen], first[chosen]))
        for index in np.flatnonzero(~single).tolist():
            start, count = int(first[index]), int(new[index])
            chunks.append(
                self._chunk(int(rows[index]), int(lengths[index]), slice(start, start + count), int(prompts[index]))
            )
        return Step(decodes, chunks, None)

    def _decodes(self, rows: Ints, lengths: Ints, slots: Ints, tokens: Ints) -> Decodes:
        most = self.account.most_slots
        full = slots >= most if most is not None else np.zeros(len(slots), dtype=bool)
        used = np.where(full, slots, slots + 1)
        beyond = np.maximum(0, lengths - self.method.kept_tokens)
        blocks = np.arange(-(-int(used.max()) // self.page_tokens))
        inside = blocks < self.account.tables.counts[rows, None]
        pages = np.where(inside, self.account.tables.pages[rows][:, : len(blocks)], self.pool.null_page)
        return Decodes(
            tokens=self._tensor(tokens),
            sequences=self._tensor(rows),
            pages=self._tensor(pages),
            slots=self._tensor(np.where(full, 0, slots))[:, None],
            full=torch.from_numpy(full)[:, None].to(self.geometry.device) if full.any() else None,
            holes=self._tensor(beyond % self.method.evicts_at_once),
            evicts=self._tensor((used == (most or 0)) & ((beyond + 1) % self.method.evicts_at_once == 0))[:, None],
            length=self._tensor(lengths)[:, None, None],
            used=self._tensor(used)[:, None, None],
        )

    def _chunk(self, row: int, length: int, tokens: slice, prompt: int) -> Chunk:
        count = tokens.stop - tokens.start
        position = length + np.arange(count)
        judging = self.method.judging_queries
        pages = self.account.tables.row(row)
        kept = self.account.kept_of(length + count)
        return Chunk(
            tokens=tokens,
            position=self._tensor(position),
            own=(self._tensor(pages[position // self.page_tokens]), self._tensor(position % self.page_tokens)),
            judges=0 if judging is None else min(count, max(0, prompt - judging - length)),
            kept=kept if length + count >= prompt and kept < length + count else None,
            pages=self._tensor(pages),
        )
