"""Attention over what is kept: SGLang's FlashAttention backend, over shifted page tables, and kernels beside it.

A decoding step is the replay of a captured graph, before which :meth:`EvictionBackend.init_forward_metadata_out_graph`
runs. All that the graph's kernels read lies in tensors that the backend owns and fills there; the kernels that score
and compact are launched in every captured step and decide on the device whether there is anything to do.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from sglang.kernels.ops.attention.flash_attention import flash_attn_with_kvcache
from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from kvload.servers.kernels.triton import eviction as kernels
from kvload.servers.plugins.counting import WorkerCounts
from kvload.servers.plugins.sglang import limits
from kvload.servers.plugins.sglang.eviction.policy import chosen
from kvload.servers.plugins.sglang.selection import BACKEND, current
from kvload.servers.plugins.vllm.eviction.policy import Policy
from kvload.servers.plugins.vllm.eviction.steps import NO_PROMPT

logger = logging.getLogger("kvload.sglang")


@dataclass
class Step:
    """What the layers of one step share.

    Attributes:
        rows: for the kernels; the page table of all slots by position, those that are gone included.
        table, held: ``(R, slots)`` and ``(R,)`` int32: page tables that begin at the first kept slot, and how many of
            their slots hold tokens.
        held_sums: ``(R + 1,)`` running sums of ``held``; None while generating.
        schedule: FlashAttention's own, made once for all layers; None where it is left to each.
        window: of FlashAttention: tokens to the left and to the right.
        most_new, most_held: upper bounds on a row's queries and on the slots that it reads.
        scratch: int32, for compaction; None where nothing is compacted.
    """

    rows: kernels.Rows
    table: torch.Tensor
    held: torch.Tensor
    held_sums: torch.Tensor | None
    schedule: torch.Tensor | None
    window: tuple[int, int]
    most_new: int
    most_held: int
    scratch: torch.Tensor | None


@dataclass
class Buffers:
    """What captured graphs read, for their largest batch."""

    rows: torch.Tensor
    table: torch.Tensor
    schedule: torch.Tensor
    scratch: torch.Tensor | None


class EvictionBackend(FlashAttentionBackend):
    """FlashAttention 3 with a policy of eviction.

    Args:
        model_runner: SGLang's, its pools built.

    Raises:
        ContractError: SGLang's configuration or its model does not go with the method.
    """

    def __init__(self, model_runner: Any) -> None:
        self._policy: Policy = chosen()
        limits.check(current().method, model_runner, refused(model_runner, self._policy))
        super().__init__(model_runner)
        table = model_runner.req_to_token_pool.req_to_token
        self._prompts = torch.full((table.shape[0],), NO_PROMPT, dtype=torch.int32, device=table.device)
        self._step: Step | None = None
        self._buffers: Buffers | None = None
        self._scores: torch.Tensor | None = getattr(self.token_to_kv_pool, "kvload_scores", None)
        self._counts: WorkerCounts | None = None
        if self._policy.scores:
            programs = self.token_to_kv_pool.layer_num * self.num_kv_heads
            self._counts = WorkerCounts(str(current()), programs, table.device, logger.info)
        sight = self._policy.sight
        self._window = (-1, -1) if sight is None or sight >= self.max_context_len else (sight - 1, 0)
        logger.info("kvload eviction: %s over FlashAttention 3, slot by slot", current())

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Allocate what graphs read; see the base class."""
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        device = self.device
        self._buffers = Buffers(
            torch.zeros(4, max_bs, dtype=torch.int32, device=device),
            torch.zeros(max_bs, self.max_num_pages, dtype=torch.int32, device=device),
            # FlashAttention 3's: one semaphore, and four numbers for each of the rows, which come in fours.
            torch.zeros(1 + -(-max_bs // 4) * 4 * 4, dtype=torch.int32, device=device),
            self._new_scratch(max_bs),
        )

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """One step without a graph; see the base class."""
        super().init_forward_metadata(forward_batch)
        self._step = self._plan(forward_batch, None)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """One step of a graph; runs before each capture and each replay, see the base class."""
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        self._step = self._plan(forward_batch, self._buffers)

    def _compute_scheduler_metadata(self, *arguments: Any, **options: Any) -> None:
        """None for all slots: :meth:`_plan` makes one for those that are kept."""
        return

    def _new_scratch(self, rows: int) -> torch.Tensor | None:
        if not self._policy.scores:
            return None
        shape = rows, self.num_kv_heads, 2 * self._policy.most_kept
        return torch.zeros(shape, dtype=torch.int32, device=self.device)

    def _plan(self, batch: Any, buffers: Buffers | None) -> Step:
        """Which slots a step reads, which queries judge, what is compacted: all of it on the device."""
        # A policy reckons with tensors as it does with numbers.
        policy: Any = self._policy
        metadata, count = self.forward_metadata, batch.batch_size
        decoding = batch.forward_mode.is_decode_or_idle()
        slots = batch.req_pool_indices[:count]
        after = metadata.cache_seqlens_int32[:count]
        if decoding:
            before = after - 1
        else:
            before = batch.extend_prefix_lens[:count].to(torch.int32)
            self._remember_prompts(batch, slots, before)
        prompt = self._prompts[slots]
        first = policy.first_kept(before, prompt) * policy.block
        last = policy.first_kept(after, prompt) * policy.block
        if buffers is None:
            table = torch.zeros_like(metadata.page_table)
            held = torch.empty_like(after)
            scratch = self._new_scratch(count)
        else:
            for row, values in zip(buffers.rows[:3, :count], (prompt, first, last), strict=True):
                row.copy_(values)
            prompt, first, last, held = buffers.rows[:, :count]
            table = buffers.table[:count]
            scratch = buffers.scratch
        rows = kernels.Rows(
            metadata.page_table, after, metadata.cu_seqlens_q, prompt, first.contiguous(), last.contiguous()
        )
        kernels.shift(rows, 1, table, held)
        if self._counts is not None:
            self._counts.tell()
        return Step(
            rows,
            table,
            held,
            None if decoding else torch.nn.functional.pad(torch.cumsum(held, 0, dtype=torch.int32), (1, 0)),
            self._schedule(count, held, metadata, buffers) if decoding else None,
            # While generating, the kept slots are the window.
            (-1, -1) if decoding else self._window,
            1 if decoding else metadata.max_seq_len_q,
            policy.most_kept + policy.block if decoding and policy.scores else metadata.max_seq_len_k,
            scratch if policy.scores and (policy.judges is None or not decoding) else None,
        )

    def _remember_prompts(self, batch: Any, slots: torch.Tensor, before: torch.Tensor) -> None:
        """Prompt lengths by request slot, when the first chunk of a prompt comes: later ones may end beyond it.

        Slot 0 is nobody's: SGLang tries itself out there.
        """
        lengths = batch.orig_seq_lens
        if lengths is not None:
            new = (before == 0) & (slots > 0)
            self._prompts[slots] = torch.where(new, lengths[: len(slots)].to(torch.int32), self._prompts[slots])

    def _schedule(self, count: int, held: torch.Tensor, metadata: Any, buffers: Buffers | None) -> torch.Tensor | None:
        """FlashAttention's schedule for the slots that are kept."""
        longest = max(metadata.max_seq_len_k, 1)
        made: torch.Tensor | None = super()._compute_scheduler_metadata(count, longest, held, metadata.cu_seqlens_q)
        if made is None or buffers is None:
            return made
        fixed = buffers.schedule[: made.shape[0]]
        fixed.copy_(made)
        return fixed

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **others: Any
    ) -> torch.Tensor:
        """Attend, add scores, compact; see the base class."""
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, others)

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **others: Any
    ) -> torch.Tensor:
        """Attend, add scores, compact; see the base class."""
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, others)

    def _attend(
        self, q: Any, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool, others: dict[str, Any]
    ) -> torch.Tensor:
        limits.check_layer(current().method, layer, others.get("sinks"))
        step, policy, metadata = self._step, self._policy, self.forward_metadata
        if step is None:
            raise RuntimeError("attention before its metadata")
        pool = self.token_to_kv_pool
        if k is not None and save_kv_cache:
            pool.set_kv_buffer(layer, KVWriteLoc(batch.out_cache_loc, None), k, v, layer.k_scale, layer.v_scale)
        keys, values = pool.get_kv_buffer(layer.layer_id)
        heads, size = layer.tp_k_head_num, layer.head_dim
        query = q.contiguous().view(-1, layer.tp_q_head_num, size)
        given = getattr(batch, "_attn_output", None)
        sums = {} if step.held_sums is None else {"cu_seqlens_k_new": step.held_sums}
        wants_sums = policy.scores or policy.sight is not None
        result = flash_attn_with_kvcache(
            q=query,
            k_cache=keys.view(-1, 1, heads, size),
            v_cache=values.view(-1, 1, heads, size),
            page_table=step.table,
            cache_seqlens=step.held,
            cu_seqlens_q=metadata.cu_seqlens_q,
            max_seqlen_q=step.most_new,
            softmax_scale=layer.scaling,
            causal=True,
            window_size=step.window,
            softcap=layer.logit_cap,
            return_softmax_lse=wants_sums,
            num_splits=self.num_splits,
            out=None if given is None else given.view(-1, layer.tp_q_head_num, size),
            ver=self.fa_impl_ver,
            scheduler_metadata=step.schedule,
            **sums,
        )
        if not wants_sums:
            alone: torch.Tensor = result
            return alone.view(-1, layer.tp_q_head_num * size)
        out: torch.Tensor
        out, lse, *_ = result
        self._after(query, out, lse, layer, keys.unsqueeze(2), values.unsqueeze(2), step)
        return out.view(-1, layer.tp_q_head_num * size)

    def _after(
        self,
        query: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        layer: Any,
        keys: torch.Tensor,
        values: torch.Tensor,
        step: Step,
    ) -> None:
        """The first tokens for those that have left them behind; scores; compaction.

        Args:
            keys, values: ``(slots, kv_heads, 1, head_size)``.
        """
        policy = self._policy
        if policy.sight is not None:
            pages = kernels.Pages(keys, values, keys[..., 0])
            kernels.add_start(
                query, out, lse, pages, step.rows,
                scale=layer.scaling, start=policy.start, recent=policy.sight, most_new=step.most_new,
            )  # fmt: skip
            return
        if step.scratch is None or self._counts is None or self._scores is None:
            return
        scores = self._scores[layer.layer_id - self.token_to_kv_pool.start_layer]
        pages = kernels.Pages(keys, values, scores.T.unsqueeze(2))
        kernels.score(
            query, pages, step.rows, lse,
            scale=layer.scaling, judges=policy.judges, most_new=step.most_new, most_held=step.most_held,
        )  # fmt: skip
        kernels.compact(
            pages, step.rows, step.scratch, self._counts.on_device,
            judges=policy.judges, newest=policy.newest, smoothing=policy.smoothing, most_held=step.most_held,
        )  # fmt: skip


def refused(runner: Any, policy: Policy) -> list[str]:
    """What eviction does not go with, besides what no method does."""
    args = runner.server_args
    found = [
        (not args.disable_radix_cache, "with prefixes shared (--disable-radix-cache): compaction rewrites slots"),
        (args.radix_cache_backend != BACKEND, f"without --radix-cache-backend {BACKEND}, which frees slots"),
        (
            policy.scores and args.tp_size > runner.model_config.get_total_num_kv_heads(),
            "over more GPUs than KV heads: those with the same head would choose by different queries",
        ),
        (runner.page_size != 1, f"with pages of {runner.page_size} tokens (--page-size 1)"),
        (
            policy.scores and not hasattr(runner.token_to_kv_pool, "kvload_scores"),
            "over a pool without room for scores",
        ),
    ]
    return [reason for wrong, reason in found if wrong]
