"""The one skeleton of all caches: an account of pages, their memory, and the kernels that work on it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from kvload.servers.embedded.account.base import PageAccount, PagedSequence, StepEntry
from kvload.servers.embedded.account.tables import Ints
from kvload.servers.embedded.cache.pool import PagePool
from kvload.servers.kernels.api import Decode, KernelSet, Prefill, Step, Writes
from kvload.servers.kernels.attention import AttentionExtras
from kvload.servers.kernels.layout import CacheGeometry

Books = TypeVar("Books", bound=PageAccount)

# On a CPU a block should stay in the caches next to the cores; on a GPU it should fill the device.
CPU_SCRATCH_BYTES = 8 << 20
GPU_SCRATCH_BYTES = 256 << 20


@dataclass
class Plan(Step[Decode, Prefill, Writes]):
    """One step: what the kernels are given, and whose it is."""

    entries: Sequence[StepEntry]


class PagedCache(ABC, Generic[Books, Decode, Prefill, Writes]):
    """A cache of one structure; see :class:`kvload.servers.embedded.cache.api.KVCache`.

    A structure adds how a step is planned: which pages are written and read.

    Args:
        geometry: shape of the model's keys and values.
        kernels: stores and attends.
        account: makes the books for a number of pages of so many bytes (over all planes).
        total_bytes: upper bound on the pool.
        planes: arrays of pages with the same ids: one a layer, or one for all.
        read_bytes: bytes of one page unpacked, in scratch memory.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        kernels: KernelSet[Decode, Prefill, Writes],
        account: Callable[[int, int], Books],
        total_bytes: int,
        *,
        planes: int,
        read_bytes: int,
    ) -> None:
        self.geometry = geometry
        self.kernels = kernels
        self.planes = planes
        page_bytes = kernels.page_bytes * planes
        self.account = account(total_bytes // page_bytes, page_bytes)
        self.pool = PagePool(self.account.pages, kernels.page_bytes, planes, geometry.device)
        kernels.bind(self.pool.storage)
        scratch = CPU_SCRATCH_BYTES if geometry.device.type == "cpu" else GPU_SCRATCH_BYTES
        self.limit_scratch(max(1, scratch // read_bytes))

    def limit_scratch(self, blocks: int) -> None:
        """Read at most this many pages at once."""
        self.scratch_blocks = blocks
        self.kernels.limit_scratch(blocks)

    @property
    def total_bytes(self) -> int:
        """Bytes of the pool."""
        return self.account.total_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages in use."""
        return self.account.allocated_bytes

    @property
    def kernels_name(self) -> str:
        """Which kernels store and attend."""
        return self.kernels.name

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in one plane: what memory is given out in."""
        return self.kernels.page_bytes

    @property
    def page_heads(self) -> int:
        """KV heads that share a page."""
        return self.geometry.kv_heads

    @property
    def pool_tokens(self) -> int:
        """Tokens that fit when stored as the method stores a long sequence."""
        return self.account.pool_tokens

    def open(self) -> PagedSequence:
        """A new, empty sequence."""
        return self.account.open()

    def close(self, sequence: PagedSequence) -> None:
        """Free all pages of a sequence; closing twice is harmless."""
        self.account.close(sequence)

    def fits(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a request of this size could ever be served with the whole pool to itself."""
        return self.account.fits(prompt_tokens, max_new_tokens)

    def admits(self, prompt_tokens: int) -> bool:
        """Whether the free pages hold a prompt of this length now, with headroom for a first decode step."""
        return self.account.admits(prompt_tokens)

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Take the pages that ``new_tokens`` more tokens need at most; False (and nothing taken) if there are none."""
        return self.account.reserve(sequence, new_tokens)

    def plan(self, entries: Sequence[StepEntry]) -> Plan[Decode, Prefill, Writes]:
        """Index tensors of one step over these sequences, in this order of the packed batch."""
        self.pool.clear(self.account.fresh_pages())
        rows = np.array([entry.sequence.row for entry in entries], dtype=np.int64)
        lengths = np.array([entry.sequence.length for entry in entries], dtype=np.int64)
        new = np.array([entry.new_tokens for entry in entries], dtype=np.int64)
        step = self._plan(entries, rows, lengths, new, np.cumsum(new) - new)
        self.kernels.begin(step)
        return Plan(step.decodes, step.prefills, step.writes, entries)

    @abstractmethod
    def _plan(
        self, entries: Sequence[StepEntry], rows: Ints, lengths: Ints, new: Ints, first: Ints
    ) -> Step[Decode, Prefill, Writes]:
        """What the kernels are given.

        Args:
            rows: of the sequences in the account's tables.
            lengths: tokens stored before the step.
            new: tokens of the step.
            first: row of each sequence's first token in the packed batch.
        """

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.geometry.device, non_blocking=True)

    def attend(
        self,
        layer: int,
        plan: Plan[Decode, Prefill, Writes],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Store this step's keys and values and attend over all that the queries may see; see ``api.KVCache``."""
        kernels = self.kernels
        out = torch.empty_like(query)
        query, key, value = kernels.prepare(query, key, value)
        if kernels.stores_first:
            kernels.store(layer, plan, key, value)
        for group in plan.decodes:
            out[group.tokens] = kernels.attend_decode(layer, group, query, key, value, extras)
        for number, chunk in enumerate(plan.prefills):
            out[chunk.tokens] = kernels.attend_prefill(layer, chunk, query, key, value, extras)
            self._after_prefill(layer, plan, number)
        if not kernels.stores_first:
            kernels.store(layer, plan, key, value)
        return kernels.finish(out)

    def _after_prefill(self, layer: int, plan: Plan[Decode, Prefill, Writes], number: int) -> None:
        """A chunk of a prompt has been computed and stored in a layer."""

    def commit(self, plan: Plan[Decode, Prefill, Writes]) -> None:
        """Finish the step."""
        self.account.advance(plan.entries)
