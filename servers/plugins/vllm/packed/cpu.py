"""Attention over packed pages for vLLM's CPU build: the torch reference, one row after the other.

It serves tests of everything but kernels and graphs: specification, scheduling, chunks, preemption, prefix caching.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from kvload.servers.kernels import packed
from kvload.servers.kernels.formats import PAGE_TOKENS, RING_TOKENS
from kvload.servers.kernels.quantise import random_hadamard
from kvload.servers.plugins.vllm.eviction.limits import check_layer
from kvload.servers.plugins.vllm.packed import limits
from kvload.servers.plugins.vllm.packed.spec import chosen_format, packed_spec, rotation_seed, runs
from kvload.servers.plugins.vllm.packed.wraps import Batch


class PackedBackend(AttentionBackend):
    """Takes the place of ``CPU_ATTN``, whose name vLLM looks a CPU's backend up by."""

    forward_includes_kv_cache_update = True
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]

    @staticmethod
    def get_name() -> str:
        """The member of vLLM's table that this class stands for."""
        return "CPU_ATTN"

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """A page."""
        return [PAGE_TOKENS]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[Any, ...]:
        """Blocks of heads of tokens."""
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Decoders."""
        return bool(attn_type == AttentionType.DECODER)

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """Pages of bytes."""
        return packed_spec(spec)

    @staticmethod
    def get_impl_cls() -> type["PackedImpl"]:
        """The attention."""
        return PackedImpl

    @staticmethod
    def get_builder_cls() -> type["PackedBuilder"]:
        """The metadata."""
        return PackedBuilder


@dataclass
class Step:
    """What the layers of one step share.

    Attributes:
        first: place of each row's first query in the batch, and behind the last row's last.
        lengths: of the rows' sequences, new tokens included.
        table: ``(rows, blocks)``.
        slot_mapping: where each token of the batch is stored.
        requests: names of the rows' requests; empty while vLLM tries itself out.
    """

    first: list[int]
    lengths: list[int]
    table: torch.Tensor
    slot_mapping: torch.Tensor
    requests: list[str]


@dataclass
class Ring:
    """The newest tokens of one request in one layer.

    Attributes:
        data: ``(kv_heads, 2, RING_TOKENS, head_size)``.
        start: first position that was written.
        stop: behind the last one.
    """

    data: torch.Tensor
    start: int = 0
    stop: int = field(default=-1)


class PackedBuilder(AttentionMetadataBuilder):
    """Makes a :class:`Step` of vLLM's batch."""

    _cudagraph_support = AttentionCGSupport.NEVER

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        limits.check(vllm_config)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Step:
        """One step; see the base class."""
        batch = common_attn_metadata
        return Step(
            batch.query_start_loc_cpu[: batch.num_reqs + 1].tolist(),
            batch.seq_lens[: batch.num_reqs].tolist(),
            batch.block_table_tensor,
            batch.slot_mapping,
            Batch.requests or [],
        )


class PackedImpl(AttentionImpl):
    """Attention of one layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        *others: Any,
        **options: Any,
    ) -> None:
        check_layer(others, options)
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads = num_kv_heads or num_heads
        self._format = chosen_format(head_size)
        seed = rotation_seed()
        self._turn = None if seed is None else random_hadamard(head_size, seed)
        self._rings: dict[str, Ring] = {}

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Step | None,
        output: torch.Tensor,
        *others: Any,
        **options: Any,
    ) -> torch.Tensor:
        """Store and attend; see the base class."""
        if attn_metadata is None:
            return output.fill_(0)
        step, pages = attn_metadata, runs(kv_cache)
        out = output.view(-1, self.num_heads, self.head_size)
        for row, length in enumerate(step.lengths):
            part = slice(step.first[row], step.first[row + 1])
            new = part.stop - part.start
            if not new:
                continue
            name = step.requests[row] if row < len(step.requests) else ""
            ring = self._ring(name, length - new, query.dtype)
            out[part] = self._row(
                pages,
                step.table[row].long(),
                step.slot_mapping[part],
                length,
                ring,
                query[part],
                key[part],
                value[part],
            )
            ring.stop = length
        for name in self._rings.keys() - set(step.requests):
            # A request that waits comes back from its first token on: what its ring held is of no use.
            del self._rings[name]
        return output

    def _ring(self, name: str, start: int, dtype: torch.dtype) -> Ring:
        """A request's ring, from ``start`` on where the request has just come, or come back."""
        ring = self._rings.get(name)
        if ring is None:
            shape = self.num_kv_heads, 2, RING_TOKENS, self.head_size
            ring = self._rings[name] = Ring(torch.zeros(shape if self._format.window else 0, dtype=dtype))
        if ring.stop != start:
            ring.start = start
        return ring

    def _row(
        self,
        pages: torch.Tensor,
        table: torch.Tensor,
        slots: torch.Tensor,
        length: int,
        ring: Ring,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        start, dtype = length - len(query), query.dtype
        window = ring.data if self._format.window else None
        stored_key, stored_value = key, value
        if self._turn is not None:
            stored_key, stored_value = key.float() @ self._turn, value.float() @ self._turn
        # A single token reads itself as stored, the tokens of a prompt each other as they are.
        single = len(query) == 1 and start > 0
        before = None if single else self._read(pages, table, start, window, ring.start)
        if window is not None:
            packed.store_windowed(self._format, pages, table, window, start, stored_key, stored_value)
        else:
            packed.store_tokens(self._format, pages, slots.long(), stored_key, stored_value)
        if before is None:
            keys, values = self._read(pages, table, length, window, ring.start)
        else:
            own = key.float().transpose(0, 1), value.float().transpose(0, 1)
            keys, values = (torch.cat([x, new], 1) for x, new in zip(before, own, strict=True))
        return packed.attend(query, keys, values, self.scale).to(dtype)

    def _read(
        self, pages: torch.Tensor, table: torch.Tensor, length: int, ring: torch.Tensor | None, ring_from: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = packed.load_sequence(self._format, pages, table, length, ring, ring_from)
        if self._turn is None:
            return keys, values
        return keys @ self._turn.T, values @ self._turn.T
