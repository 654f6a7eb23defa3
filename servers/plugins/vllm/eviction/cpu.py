"""Attention over what is kept, for vLLM's CPU build: torch, one row after the other, in the manner of a reference."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from kvload.servers.kernels import attention, eviction
from kvload.servers.kernels.attention import Sight
from kvload.servers.plugins.vllm import layout
from kvload.servers.plugins.vllm.eviction import limits, steps
from kvload.servers.plugins.vllm.eviction.manager import eviction_spec
from kvload.servers.plugins.vllm.eviction.policy import chosen
from kvload.servers.plugins.vllm.eviction.steps import StepRows
from kvload.servers.plugins.vllm.eviction.wraps import Batch


class EvictionBackend(AttentionBackend):
    """Takes the place of ``CPU_ATTN``, whose name vLLM looks a CPU's backend up by."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]

    @staticmethod
    def get_name() -> str:
        """The member of vLLM's table that this class stands for."""
        return "CPU_ATTN"

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Any multiple of 16."""
        return [MultipleOf(16)]

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
        """Room for scores behind each page."""
        return eviction_spec(spec)

    @staticmethod
    def get_impl_cls() -> type["EvictionImpl"]:
        """The attention."""
        return EvictionImpl

    @staticmethod
    def get_builder_cls() -> type["EvictionBuilder"]:
        """The metadata."""
        return EvictionBuilder


@dataclass
class EvictionStep:
    """What the layers of one step share.

    Attributes:
        rows: arithmetic of the rows.
        first_query: place of each row's first query in the batch, and behind the last row's last.
        tables: ``(rows, blocks)`` blocks of each row by position; entries of blocks that are gone are stale.
    """

    rows: StepRows
    first_query: list[int]
    tables: torch.Tensor


class EvictionBuilder(AttentionMetadataBuilder):
    """Makes an :class:`EvictionStep` of vLLM's batch."""

    _cudagraph_support = AttentionCGSupport.NEVER

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        limits.check(vllm_config)
        self._policy = chosen(kv_cache_spec.block_size)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> EvictionStep:
        """One step; see the base class."""
        batch = common_attn_metadata
        first = batch.query_start_loc_cpu.numpy().astype(np.int64)
        after = batch.seq_lens.numpy()[: batch.num_reqs].astype(np.int64)
        prompts = Batch.prompts if Batch.prompts is not None else np.zeros(0, dtype=np.int64)
        new = first[1 : batch.num_reqs + 1] - first[: batch.num_reqs]
        return EvictionStep(steps.plan(self._policy, after, new, prompts), first.tolist(), batch.block_table_tensor)


class EvictionImpl(AttentionImpl):
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
        limits.check_layer(others, options)
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads = num_kv_heads or num_heads

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Write the step's keys and values ``(tokens, heads, head_size)`` where vLLM put their tokens."""
        keys, values = layout.keys_and_values(kv_cache, self.head_size)
        real = slot_mapping >= 0
        slots = slot_mapping[real].long()
        count = len(slot_mapping)
        where = slots // keys.shape[2], slots % keys.shape[2]
        keys[where[0], :, where[1]] = key[:count][real].to(keys.dtype)
        values[where[0], :, where[1]] = value[:count][real].to(values.dtype)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: EvictionStep | None,
        output: torch.Tensor,
        *others: Any,
        **options: Any,
    ) -> torch.Tensor:
        """Attend, add scores, compact; see the base class."""
        if attn_metadata is None:
            return output.fill_(0)
        out = output.view(-1, self.num_heads, self.head_size)
        rows = attn_metadata.rows
        for row in range(len(rows.after)):
            if rows.after[row] > rows.before[row]:
                part = slice(attn_metadata.first_query[row], attn_metadata.first_query[row + 1])
                out[part] = self._row(rows, row, attn_metadata.tables[row], query[part], kv_cache)
        return output

    def _row(
        self, rows: StepRows, row: int, table: torch.Tensor, query: torch.Tensor, kv_cache: torch.Tensor
    ) -> torch.Tensor:
        policy, block = rows.policy, rows.policy.block
        before, after, first = int(rows.before[row]), int(rows.after[row]), int(rows.first_before[row])
        start = min(policy.start_blocks, first)
        places = torch.cat([torch.arange(start), torch.arange(first, -(-after // block))])
        slots = (places[:, None] * block + torch.arange(block)).flatten()
        slots = slots[slots < after]
        held = table[slots // block].long(), slots % block
        keys, values = layout.keys_and_values(kv_cache, self.head_size)
        key, value = (view[held[0], :, held[1]].transpose(0, 1)[None] for view in (keys, values))
        position = torch.arange(before, after)[:, None]
        mask = Sight(recent=policy.sight, sinks=policy.start).mask(position, slots, torch.float32)[None, None, None]
        queries = attention.by_head(query.to(key.dtype), self.num_kv_heads)
        out = attention.attend(queries, [lambda: (key, value, mask)], scaling=self.scale, softcap=None, sinks=None)
        judge = slice(int(rows.judge_from[row]) - before, int(rows.judge_to[row]) - before)
        if policy.scores and judge.stop > judge.start:
            weights = eviction.received(queries[:, :, :, judge], key, mask[..., judge, :], self.scale)
            self._add(rows, row, kv_cache, held, slots, weights)
        if policy.scores and rows.first_after[row] > first:
            self._compact(rows, row, kv_cache, held, slots)
        return attention.by_token(out)

    def _scores(self, rows: StepRows, kv_cache: torch.Tensor) -> torch.Tensor:
        heads, tokens = self.num_kv_heads, rows.policy.block
        offset = 2 * heads * tokens * self.head_size * kv_cache.element_size()
        return layout.padding(kv_cache, offset, heads, tokens)

    def _add(
        self,
        rows: StepRows,
        row: int,
        kv_cache: torch.Tensor,
        held: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        """Add weights ``(heads, slots)`` to the scores; slots that were not scored before begin with them."""
        scores = self._scores(rows, kv_cache)
        old = torch.where(slots < int(rows.scored_before[row]), scores[held[0], :, held[1]].T, 0.0)
        scores[held[0], :, held[1]] = (old + weights).T

    def _compact(
        self,
        rows: StepRows,
        row: int,
        kv_cache: torch.Tensor,
        held: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
    ) -> None:
        """Give up the dying blocks: their survivors take the places of dropped tokens."""
        policy = rows.policy
        count = int(rows.compact_to[row]) - int(slots[0])
        dying = int(rows.first_after[row] - rows.first_before[row]) * policy.block
        scores = self._scores(rows, kv_cache)
        older = scores[held[0], :, held[1]].T[:, : count - policy.newest]
        stay = eviction.survivors(eviction.mean_over_neighbours(older, policy.smoothing), count - dying - policy.newest)
        source, target = eviction.moves(stay, dying, count - policy.newest)
        heads = torch.arange(self.num_kv_heads)[:, None]
        for view in (*layout.keys_and_values(kv_cache, self.head_size), scores):
            view[held[0][target], heads, held[1][target]] = view[held[0][source], heads, held[1][source]]
