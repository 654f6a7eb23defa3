"""Pages of two precisions with tables of their own for every layer and head: ``leankv``."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from kvload.servers.embedded.account.base import PagedSequence, StepEntry
from kvload.servers.embedded.account.heads import HeadAccount
from kvload.servers.embedded.account.tables import Ints
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.paged import PagedCache, Plan
from kvload.servers.embedded.compression.leankv import LeanKV
from kvload.servers.kernels.api import Step
from kvload.servers.kernels.layout import CacheGeometry
from kvload.servers.kernels.reference.heads import HIGH, LOW, Group, HeadKernels


class HeadCache(PagedCache[HeadAccount, Group, Group, None]):
    """A cache of pages that each hold tokens of one head in one layer, at one of two precisions.

    Args:
        geometry: shape of the model's keys and values.
        method: precisions and thresholds.
        total_bytes: upper bound on the pool.
        chunk_tokens: most tokens of one prompt in one step.
        kernels: the set that stores and attends.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        method: LeanKV,
        total_bytes: int,
        chunk_tokens: int,
        kernels: type[HeadKernels] = HeadKernels,
    ) -> None:
        del chunk_tokens
        self.method = method
        self._levels = kernels(geometry, method)
        high, low = self._levels.high_level.tokens, self._levels.low_level.tokens
        super().__init__(
            geometry,
            self._levels,
            partial(HeadAccount, layers=geometry.layers, heads=geometry.kv_heads, high_tokens=high, low_tokens=low),
            total_bytes,
            planes=1,
            # Half of what it is: there are many small operations to a batch, so that larger batches pay.
            read_bytes=high * geometry.head_dim * 4,
        )

    @property
    def page_heads(self) -> int:
        """Every head has pages of its own."""
        return 1

    def _plan(
        self, entries: Sequence[StepEntry], rows: Ints, lengths: Ints, new: Ints, first: Ints
    ) -> Step[Group, Group, None]:
        del lengths
        tables = self.account.tables
        single = (new == 1) & (tables.prompts[rows] > 0)
        members = np.flatnonzero(single)
        sizes = tables.counts[rows].sum((-1, -2)).max(-1)
        decodes = [
            self._group(entries, members[part], first[members[part]])
            for part in batches(sizes[members], self.scratch_blocks)
        ]
        chunks = [
            self._group(entries, np.array([index]), first[index] + np.arange(new[index]))
            for index in np.flatnonzero(~single).tolist()
        ]
        return Step(decodes, chunks, None)

    def _group(self, entries: Sequence[StepEntry], chosen: Ints, tokens: Ints) -> Group:
        tables = self.account.tables
        picked = [entries[index] for index in chosen.tolist()]
        rows = np.array([entry.sequence.row for entry in picked])
        ends = [tables.ends(rows, end, self.pool.null_page).swapaxes(0, 1) for end in (HIGH, LOW)]
        counts = tables.tokens[rows].swapaxes(0, 1)
        return Group(
            sequences=chosen.tolist(),
            tokens=self._tensor(tokens),
            pages=(self._tensor(ends[HIGH]), self._tensor(ends[LOW])),
            counts=(self._tensor(counts[..., HIGH]), self._tensor(counts[..., LOW])),
            length=self._tensor(np.array([[entry.sequence.length] for entry in picked])),
            prompt=self._tensor(np.array([[entry.prompt_tokens] for entry in picked])),
        )

    def _after_prefill(self, layer: int, plan: Plan[Group, Group, None], number: int) -> None:
        """At the end of the prompt: keep, push down a level or forget each token of each head."""
        entry = plan.entries[plan.prefills[number].sequences[0]]
        length = entry.sequence.length + entry.new_tokens
        if length >= entry.prompt_tokens:
            for head in range(self.geometry.kv_heads):
                self._sort(layer, head, entry.sequence, length)

    def _sort(self, layer: int, head: int, sequence: PagedSequence, length: int) -> None:
        kernels, row = self._levels, np.array([sequence.row])
        pages = self._tensor(self.account.tables.ends(row, HIGH, self.pool.null_page)[0, layer, head])
        share = kernels.shares(pages, length)
        newest = torch.arange(length, device=share.device) >= length - self.method.buffer
        kept = newest | (share >= self.method.high)
        lower = ~kept & (share >= self.method.low)
        moved = kernels.take_tokens(pages, kept), kernels.lowered(kernels.take_tokens(pages, lower))
        counts = int(kept.sum()), int(lower.sum())
        self.pool.clear(self.account.settle(sequence, layer, head, *counts))
        for level, parts in zip((kernels.high_level, kernels.low_level), moved, strict=True):
            slots = np.arange(counts[level.end])
            pages_now = self.account.tables.ends(row, level.end, self.pool.null_page)[0, layer, head]
            spots = self._tensor(pages_now[slots // level.tokens]), self._tensor(slots % level.tokens)
            kernels.write(level, spots, tuple(parts))

    def commit(self, plan: Plan[Group, Group, None]) -> None:
        """Take over how many tokens of generated text each head holds now, then finish the step."""
        for group in plan.decodes:
            rows = np.array([plan.entries[index].sequence.row for index in group.sequences])
            counts = torch.stack(group.counts, -1).cpu().numpy().swapaxes(0, 1)
            self.account.tables.tokens[rows] = counts
        super().commit(plan)
