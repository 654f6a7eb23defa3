"""Packed pages for caches that store every token on its own: kernels of ``int8``, ``int4``, ``k8v4`` and ``k4v2``.

Pages are those of :mod:`kvload.servers.kernels.formats`, 64 tokens each. Generated tokens are attended to by the decode
kernels, over pages as they are; a prompt's chunk unpacks what came before it, once a layer.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from kvload.servers.kernels import attention
from kvload.servers.kernels.api import KernelSet, Step
from kvload.servers.kernels.attention import AttentionExtras, Sight
from kvload.servers.kernels.formats import PAGE_TOKENS, page_format
from kvload.servers.kernels.layout import CacheGeometry
from kvload.servers.kernels.reference.tokens import Chunk, Group, Slots, TokenCodec
from kvload.servers.kernels.triton.launch import PackedKernels
from kvload.servers.kernels.triton.shapes import NATIVE, Chunks, DecodePlan, Heads, Work, refusals


@dataclass
class Context:
    """What a chunk with context needs in every layer.

    Attributes:
        chunks: the one sequence, for the kernels.
        held: its pages, the chunk's included.
        tokens: of the sequence, the chunk's included.
        mask: of the chunk's queries over them.
    """

    chunks: Chunks
    held: Work
    tokens: int
    mask: torch.Tensor


class Settled:
    """A decoding step in memory that stays in place.

    Args:
        rows: most sequences.
        blocks: most pages of a sequence.
        device: where it is.
    """

    def __init__(self, rows: int, blocks: int, device: torch.device) -> None:
        self.tokens = torch.arange(rows, device=device)
        self.table = torch.zeros(rows, blocks, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self.slots = torch.full((2, rows), -1, device=device)

    def holds(self, rows: int, blocks: int) -> bool:
        """Whether so large a step fits."""
        return rows <= self.table.shape[0] and blocks <= self.table.shape[1]

    def write(self, step: Step[Group, Chunk, Slots], rows: int) -> Step[Group, Chunk, Slots]:
        """Take a step in; the sequences that it has fewer than ``rows`` are of length 0, and are not stored."""
        group = step.decodes[0]
        count, blocks = group.pages.shape
        self.table[:count, :blocks] = group.pages
        self.lengths[:count] = group.lengths
        self.lengths[count:rows] = 0
        self.slots[0, :count], self.slots[1, :count] = step.writes.pages, step.writes.slots
        # Page -1, slot 0: a negative place, which the kernels skip.
        self.slots[0, count:rows], self.slots[1, count:rows] = -1, 0
        settled = Group(
            self.tokens[:rows], self.table[:rows], self.lengths[:rows], group.key_position, group.query_position, 0
        )
        return Step([settled], [], Slots(self.slots[0, :rows], self.slots[1, :rows]))


class PackedTokenKernels(KernelSet[Group, Chunk, Slots]):
    """Stores into packed pages and reads them as they are.

    Args:
        geometry: shape of the model's keys and values.
        codec: whose numbers the pages hold.
    """

    name = "triton"
    stores_first = True
    unpacks: ClassVar[bool] = False
    capturable: ClassVar[bool] = True
    page_tokens = PAGE_TOKENS

    def __init__(self, geometry: CacheGeometry, codec: TokenCodec) -> None:
        super().__init__(geometry)
        fmt = page_format(codec.packed_format or "", geometry.head_dim)
        self.kernels = PackedKernels(fmt, _heads(geometry), geometry.device, codec.rotation_seed)
        self.page_bytes = geometry.kv_heads * fmt.run_bytes
        self._plan: DecodePlan | None = None
        self._query = torch.empty(0)
        self._settled: Settled | None = None
        self._settlements = 0

    @classmethod
    def obstacle(cls, geometry: CacheGeometry, method: Any) -> str | None:
        """See the base class: they need a GPU (or Triton's interpreter), a page format, and plain attention."""
        if geometry.device.type != "cuda" and NATIVE:
            return "they need a GPU"
        if method.packed_format is None:
            return "they have no pages for this method"
        if geometry.scaling is None:
            return "the model's layers add something to plain causal attention"
        try:
            fmt = page_format(method.packed_format, geometry.head_dim)
        except ValueError as error:
            return str(error)
        found = refusals(fmt, _heads(geometry))
        if method.rotation_seed is not None and geometry.head_dim & (geometry.head_dim - 1):
            found.append(f"with a rotation at head size {geometry.head_dim}")
        return f"they do not run {'; nor '.join(found)}" if found else None

    def bind(self, storage: torch.Tensor) -> None:
        """See the base class."""
        super().bind(storage)
        planes, pages, _ = storage.shape
        self._pages = storage.view(planes, pages, self.geometry.kv_heads, self.kernels.fmt.run_bytes)

    def begin(self, step: Step[Group, Chunk, Slots]) -> None:
        """Where tokens go, how the decoding sequences' work is split, and what chunks read."""
        self._slots = step.writes.pages * PAGE_TOKENS + step.writes.slots
        self._contexts = {id(chunk): self._context(chunk) for chunk in step.prefills if chunk.context is not None}
        self._group = step.decodes[0] if step.decodes else None
        if self._group is not None:
            self._table, self._lengths = self._group.pages.int(), self._group.lengths.int()
            if self._plan is None or len(self._plan.packed) < len(self._lengths):
                self._plan = self.kernels.new_plan(max(16, 2 * len(self._lengths)))
                self._settlements += 1
            self.kernels.plan(self._plan, self._lengths)

    def settle(self, step: Step[Group, Chunk, Slots], rows: int) -> tuple[Step[Group, Chunk, Slots], int]:
        """See the base class; the memory grows by doubling."""
        blocks = step.decodes[0].pages.shape[1]
        if self._settled is None or not self._settled.holds(rows, blocks):
            most = (0, 0) if self._settled is None else tuple(self._settled.table.shape)
            self._settled = Settled(
                max(rows, most[0]), max(64, most[1], 1 << (blocks - 1).bit_length()), self.geometry.device
            )
            self._settlements += 1
        if self._plan is None or len(self._plan.packed) < rows:
            self._plan = self.kernels.new_plan(max(16, rows))
            self._settlements += 1
        return self._settled.write(step, rows), self._settlements

    def _context(self, chunk: Chunk) -> Context:
        assert chunk.context is not None  # noqa: S101  begin asks for no others
        tokens = chunk.before + len(chunk.position)
        ints = torch.tensor([[chunk.before], [tokens], [0]], dtype=torch.int32, device=self.geometry.device)
        position = torch.arange(tokens, device=self.geometry.device)
        return Context(
            Chunks(chunk.context.pages.int(), ints[0], ints[1], ints[2]),
            self.kernels.held([tokens]),
            tokens,
            Sight().mask(chunk.position[:, None], position, self.geometry.dtype)[None, None, None],
        )

    def prepare(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Heads side by side, as the kernels read them; the rotation is theirs."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        self._query = query
        return query, key, value

    def store(self, layer: int, step: Step[Group, Chunk, Slots], key: torch.Tensor, value: torch.Tensor) -> None:
        """Write every token into its slot, and turn the generated tokens' queries on the way."""
        del step
        if self._group is None:
            self.kernels.store(key, value, self._pages[layer], self._slots)
            return
        self._queries = self._query.index_select(0, self._group.tokens)
        if not self.kernels.rotated:
            self.kernels.store(key, value, self._pages[layer], self._slots)
            return
        turned = torch.empty_like(self._queries)
        self.kernels.store(key, value, self._pages[layer], self._slots, self._queries, turned)
        self._queries = turned

    def attend_decode(
        self,
        layer: int,
        group: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """A generated token reads itself as stored, with all others."""
        del group, query, key, value, extras
        assert self._plan is not None  # noqa: S101  begin has made it
        out = torch.empty_like(self._queries)
        self.kernels.decode(self._plan, self._queries, self._pages[layer], self._table, self._lengths, out)
        return out

    def attend_prefill(
        self,
        layer: int,
        chunk: Chunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """A prompt's chunk sees itself exactly and earlier chunks as stored."""
        own_key, own_value = key[chunk.tokens], value[chunk.tokens]
        grouped = attention.by_head(query[chunk.tokens], self.geometry.kv_heads)
        context = self._contexts.get(id(chunk))
        if context is None:
            both = (x.transpose(0, 1)[None] for x in (own_key, own_value))
            return attention.by_token(attention.causal(grouped, next(both), next(both), extras.scaling))
        keys, values = (
            torch.empty(context.tokens, *own_key.shape[1:], dtype=own_key.dtype, device=own_key.device)
            for _ in range(2)
        )
        self.kernels.dequantise(
            own_key, own_value, self._pages[layer], context.chunks, context.held, context.chunks.rows, keys, values
        )
        block = keys.transpose(0, 1)[None], values.transpose(0, 1)[None], context.mask
        attended = attention.attend(grouped, [lambda: block], scaling=extras.scaling, softcap=None, sinks=None)
        return attention.by_token(attended)


def _heads(geometry: CacheGeometry) -> Heads:
    return Heads(geometry.query_heads, geometry.kv_heads, geometry.head_dim, geometry.dtype, geometry.scaling or 1.0)
