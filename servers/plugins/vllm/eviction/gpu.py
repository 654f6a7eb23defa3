"""Attention over what is kept, on a GPU: vLLM's FlashAttention, over shifted block tables, and kernels beside it.

A decoding step may be the replay of a captured graph, in which no Python runs but :meth:`EvictionBuilder.build`. So all
that the layers' kernels read lies in tensors that the builder owns and fills before every step, and the kernels that
score and compact are launched in every captured step and decide on the device whether there is anything to do.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.config import get_current_vllm_config
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)

from kvload.servers.kernels.triton import eviction as kernels
from kvload.servers.plugins.counting import WorkerCounts
from kvload.servers.plugins.vllm import layout
from kvload.servers.plugins.vllm.eviction import limits, steps
from kvload.servers.plugins.vllm.eviction.manager import eviction_spec
from kvload.servers.plugins.vllm.eviction.policy import Policy, chosen
from kvload.servers.plugins.vllm.eviction.steps import StepRows
from kvload.servers.plugins.vllm.selection import current

logger = init_logger("vllm.kvload")


class EvictionBackend(FlashAttentionBackend):
    """FlashAttention under the name ``CUSTOM``, less what eviction does not go with."""

    @staticmethod
    def get_name() -> str:
        """The member of vLLM's table that this class stands for."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["EvictionImpl"]:
        """The attention."""
        return EvictionImpl

    @staticmethod
    def get_builder_cls() -> type["EvictionBuilder"]:
        """The metadata."""
        return EvictionBuilder

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """Room for scores behind each page."""
        return eviction_spec(spec)

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Decoders."""
        return bool(attn_type == AttentionType.DECODER)

    @classmethod
    def supports_kv_cache_dtype(cls, kv_cache_dtype: Any) -> bool:
        """Those of two bytes."""
        return kv_cache_dtype in {None, "auto", "float16", "bfloat16"}

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Not the model's own."""
        return False

    @classmethod
    def supports_sink(cls) -> bool:
        """Not the model's own."""
        return False

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Eviction is defined for causal attention."""
        return False

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """Likewise."""
        return False

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        """Not tried."""
        return False

    @classmethod
    def supports_rswa(cls) -> bool:
        """Another method of eviction."""
        return False


class Step:
    """What the layers of one step share beyond FlashAttention's own metadata.

    Attributes:
        policy: of eviction.
        rows: for the kernels.
        most_new, most_held: upper bounds on a row's queries and on the slots it reads.
        scores: whether any row has a query that gives scores.
        compacts: whether tokens move in any row.
    """

    def __init__(
        self, policy: Policy, rows: kernels.Rows, most_new: int, most_held: int, *, scores: bool, compacts: bool
    ) -> None:
        self.policy, self.rows = policy, rows
        self.most_new, self.most_held = most_new, most_held
        self.scores, self.compacts = scores, compacts
        self.scratch: torch.Tensor | None = None
        self.counts: torch.Tensor | None = None


class EvictionBuilder(FlashAttentionMetadataBuilder):
    """FlashAttention's metadata for shifted block tables, and the :class:`Step` beside it."""

    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    supports_update_block_table = False

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        older = () if vllm_config.use_v2_model_runner else ("on vLLM's older model runner (V1)",)
        limits.check(vllm_config, *older)
        self._policy = chosen(kv_cache_spec.block_size)
        most = max(vllm_config.scheduler_config.max_num_seqs, self.max_cudagraph_size or 0) + 1
        # Tokens computed after the step, first queries, prompts, blocks gone before and after it: copied at once.
        self._given = torch.zeros(5, most + 1, dtype=torch.int32, device=device)
        self._held = torch.zeros(most, dtype=torch.int32, device=device)
        self._table: torch.Tensor | None = None
        self._scratch = self._counts = None
        if self._policy.scores:
            room = self._policy.most_kept
            self._scratch = torch.zeros(most, kv_cache_spec.num_kv_heads, 2 * room, dtype=torch.int32, device=device)
            programs = len(layer_names) * kv_cache_spec.num_kv_heads
            self._counts = WorkerCounts(str(current()), programs, device, logger.info)
        # Every rank compacts its own heads, at the same steps: one of them tells.
        self._tells = get_tensor_model_parallel_rank() == 0
        if self._tells:
            logger.info(
                "kvload eviction: %s over FlashAttention %s, blocks of %d tokens, pages of %d bytes",
                current(), "3" if self.aot_schedule else "2", kv_cache_spec.block_size, kv_cache_spec.page_size_bytes,
            )  # fmt: skip

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> FlashAttentionMetadata:
        """One step; see the base class. Runs on the host before every step, a graph's replay included."""
        batch = common_attn_metadata
        count = batch.num_reqs
        prompts = batch.rswa_prefix_lens
        # No prompts: vLLM tries itself out, or captures a graph. No row is a request then.
        is_dummy = prompts is None
        first = batch.query_start_loc_cpu.numpy()[: count + 1]
        new = np.diff(first).astype(np.int64)
        if is_dummy:
            after = np.zeros(count, dtype=np.int64) + new
            rows = steps.plan(self._policy, after, new, np.zeros(0, dtype=np.int64))
        else:
            after = batch.seq_lens_cpu_upper_bound.numpy()[:count].astype(np.int64)
            rows = steps.plan(self._policy, after, new, prompts.numpy())
        on_device = self._rows(batch, rows, first)
        table, held = self._shifted(on_device)
        most_held = batch.max_seq_len if is_dummy else max(1, int(rows.held.max()))
        # FlashAttention drops a window that no key of a batch is outside of, and then schedules for another kernel than
        # the one a graph has captured: it is never told of a batch that short.
        longest = max(most_held, (self._policy.sight or 0) + 1)
        changed = {"block_table_tensor": table, "seq_lens": held, "max_seq_len": longest}
        metadata = super().build(0, replace(batch, **changed), fast_build)
        scores = self._policy.scores and (is_dummy or rows.judging)
        compacts = self._policy.scores and (is_dummy or rows.compacting)
        step = Step(self._policy, on_device, batch.max_query_len, most_held, scores=scores, compacts=compacts)
        if self._counts is not None:
            step.scratch, step.counts = self._scratch, self._counts.on_device
            if self._tells:
                self._counts.tell()
        metadata.eviction = step
        return metadata

    def _rows(self, batch: Any, rows: StepRows, first: Any) -> kernels.Rows:
        """Copy a step's arithmetic into the tensors that graphs read."""
        count = len(rows.after)
        given = torch.empty(self._given.shape, dtype=torch.int32, pin_memory=self.device.type == "cuda")
        host = given.numpy()
        host[0, :count], host[1, : count + 1], host[2, :count] = rows.after, first, rows.prompt
        host[3, :count], host[4, :count] = rows.first_before, rows.first_after
        self._given.copy_(given, non_blocking=True)
        after, queries, prompt, before, later = self._given
        return kernels.Rows(
            batch.block_table_tensor, after[:count], queries[: count + 1], prompt[:count], before[:count], later[:count]
        )

    def _shifted(self, rows: kernels.Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Block tables that begin at the first kept block, and the lengths that go with them."""
        count = rows.after.shape[0]
        if self._table is None:
            # As wide as vLLM's own: FlashAttention takes the width as a bound on the length.
            self._table = torch.zeros(
                self._held.shape[0], rows.table.shape[1], dtype=torch.int32, device=rows.table.device
            )
        table, held = self._table[:count], self._held[:count]
        kernels.shift(rows, self._policy.block, table, held)
        return table, held

    def use_cascade_attention(self, *arguments: Any, **options: Any) -> bool:
        """Never: a common prefix is not common once it is compacted."""
        return False


class EvictionImpl(FlashAttentionImpl):
    """Attention of one layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        limits.check_layer(arguments[4:], options)
        super().__init__(*arguments, **options)
        config = get_current_vllm_config()
        sight = chosen(config.cache_config.block_size).sight
        # FlashAttention's schedule is made for the layers' window, and a window that never ends is none.
        if sight is not None and sight < config.model_config.max_model_len:
            self.sliding_window = (sight - 1, 0)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend, add scores, compact; see the base class."""
        step: Step | None = None if attn_metadata is None else attn_metadata.eviction
        if step is None or not (step.scores or step.compacts or step.policy.sight):
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
            return output
        policy = step.policy
        tokens = attn_metadata.num_actual_tokens
        queries, out = query[:tokens], output.view(-1, self.num_heads, self.head_size)[:tokens]
        lse = self._attend(queries, kv_cache, attn_metadata, out)
        pages = self._pages(kv_cache, policy)
        if policy.sight is not None:
            kernels.add_start(
                queries, out, lse, pages, step.rows,
                scale=self.scale, start=policy.start, recent=policy.sight, most_new=step.most_new,
            )  # fmt: skip
        if step.scores:
            kernels.score(
                queries, pages, step.rows, lse,
                scale=self.scale, judges=policy.judges, most_new=step.most_new, most_held=step.most_held,
            )  # fmt: skip
        if step.compacts and step.scratch is not None and step.counts is not None:
            held = step.most_held if step.most_new > 1 else min(step.most_held, policy.most_kept + policy.block)
            kernels.compact(
                pages, step.rows, step.scratch, step.counts,
                judges=policy.judges, newest=policy.newest, smoothing=policy.smoothing, most_held=held,
            )  # fmt: skip
        return output

    def _attend(self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: Any, out: torch.Tensor) -> torch.Tensor:
        """FlashAttention as its own backend calls it, and the log sums ``(query heads, tokens)`` it computes."""
        keys, values = (
            canonicalize_singleton_dim_strides(view.transpose(1, 2))
            for view in layout.keys_and_values(kv_cache, self.head_size)
        )
        lse: torch.Tensor
        _, lse = fa_utils.flash_attn_varlen_func(
            q=query,
            k=keys,
            v=values,
            out=out,
            cu_seqlens_q=metadata.query_start_loc,
            max_seqlen_q=metadata.max_query_len,
            seqused_k=metadata.seq_lens,
            max_seqlen_k=metadata.max_seq_len,
            softmax_scale=self.scale,
            causal=True,
            window_size=list(self.sliding_window),
            block_table=metadata.block_table,
            scheduler_metadata=metadata.scheduler_metadata,
            fa_version=self.vllm_flash_attn_version,
            num_splits=metadata.max_num_splits,
            return_softmax_lse=True,
        )
        return lse

    def _pages(self, kv_cache: torch.Tensor, policy: Policy) -> kernels.Pages:
        keys, values = layout.keys_and_values(kv_cache, self.head_size)
        if not policy.scores:
            return kernels.Pages(keys, values, keys[..., 0])
        heads, block = self.num_kv_heads, policy.block
        offset = 2 * heads * block * self.head_size * kv_cache.element_size()
        return kernels.Pages(keys, values, layout.padding(kv_cache, offset, heads, block))
