"""Attention over packed pages: kvload's kernels for generated tokens, SGLang's FlashAttention for prompts.

A decoding step is the replay of a captured graph, before which :meth:`PackedBackend.init_forward_metadata_out_graph`
runs; what the graph's kernels read lies in tensors that SGLang's backend or this one owns and fills there.
"""

import logging
import math
from typing import Any

import numpy as np
import torch
from sglang.kernels.ops.attention.flash_attention import flash_attn_varlen_func
from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend

from kvload.servers.kernels.formats import PAGE_TOKENS, RING_TOKENS
from kvload.servers.kernels.triton.launch import PackedKernels
from kvload.servers.kernels.triton.shapes import Heads
from kvload.servers.plugins import prompts
from kvload.servers.plugins.prompts import Flash, Prompts
from kvload.servers.plugins.sglang import limits
from kvload.servers.plugins.sglang.packed.formats import rotation_seed
from kvload.servers.plugins.sglang.packed.pool import PackedPool
from kvload.servers.plugins.sglang.selection import current
from kvload.servers.plugins.vllm import contract

logger = logging.getLogger("kvload.sglang")


class PackedBackend(FlashAttentionBackend):
    """FlashAttention's metadata, over pages of 64 tokens, and attention of kvload's own.

    Args:
        model_runner: SGLang's, its pools built.

    Raises:
        ContractError: SGLang's configuration or its model does not go with the method.
    """

    def __init__(self, model_runner: Any) -> None:
        limits.check(current().method, model_runner, refused(model_runner))
        super().__init__(model_runner)
        pool = model_runner.token_to_kv_pool
        fmt, device = pool.format, pool.pages[0].device
        scaling = self.head_dim**-0.5
        heads = Heads(self.num_attention_heads, self.num_kv_heads, self.head_dim, model_runner.dtype, scaling)
        try:
            self._kernels = PackedKernels(fmt, heads, device, rotation_seed())
            rows = model_runner.req_to_token_pool.req_to_token.shape[0]
            self._work = self._kernels.new_plan(rows - 1)
        except ValueError as error:
            raise contract.ContractError(str(error)) from None
        args = model_runner.server_args
        self._kernels.warm(args.chunked_prefill_size)
        room = max(self.max_context_len, args.chunked_prefill_size)
        shape = 2, room, heads.kv_heads, heads.head_size
        self._scratch = torch.empty(shape, dtype=heads.dtype, device=device)
        # Row 0 of SGLang's request table is nobody's: a graph's padding rows point there.
        self._slots = torch.zeros(rows, dtype=torch.int32, device=device)
        self._ring_from = torch.zeros(rows, dtype=torch.int32, device=device)
        self._rings: list[torch.Tensor] = []
        if fmt.window:
            ring = rows, heads.kv_heads, 2, RING_TOKENS, heads.head_size
            self._rings = [torch.zeros(ring, dtype=heads.dtype, device=device) for _ in range(pool.layer_num)]
        self._prompts: Prompts | None = None
        self._flashes: dict[float, Flash] = {}
        window = f"; window {rows} rings" if fmt.window else ""
        logger.info(
            "kvload packed: %s, pages of %d bytes, %.1f bytes a token, layer and KV head%s",
            current(), fmt.run_bytes * heads.kv_heads, fmt.token_bytes, window,
        )  # fmt: skip

    def _compute_scheduler_metadata(self, *arguments: Any, **options: Any) -> None:
        """FlashAttention serves prompts alone, which need none."""
        return

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """One step without a graph; see the base class."""
        super().init_forward_metadata(forward_batch)
        self._plan(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """One step of a graph; runs before each capture and each replay, see the base class."""
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        self._plan(forward_batch)

    def _plan(self, batch: Any) -> None:
        """A step's split of work, and what its prompts need."""
        count, metadata = batch.batch_size, self.forward_metadata
        slots = self._slots[:count]
        slots.copy_(batch.req_pool_indices[:count])
        lengths = metadata.cache_seqlens_int32[:count]
        if batch.forward_mode.is_decode_or_idle():
            self._prompts = None
            self._kernels.plan(self._work, lengths, slots, self._ring_from)
            return
        starts = np.array(batch.extend_prefix_lens_cpu[:count], dtype=np.int64)
        stops = starts + np.array(batch.extend_seq_lens_cpu[:count], dtype=np.int64)
        rings = slots if self._rings else None
        self._prompts = prompts.plan(self._kernels, metadata.page_table, starts, stops, rings, self._scratch.shape[1])

    def _flash(self, scaling: float) -> Flash:
        found = self._flashes.get(scaling)
        if found is None:

            def call(
                query: torch.Tensor,
                key: torch.Tensor,
                value: torch.Tensor,
                out: torch.Tensor,
                queries: torch.Tensor,
                keys: torch.Tensor,
                most_queries: int,
                most_keys: int,
            ) -> None:
                got = flash_attn_varlen_func(
                    q=query.contiguous(),
                    k=key,
                    v=value,
                    cu_seqlens_q=queries,
                    cu_seqlens_k=keys,
                    max_seqlen_q=most_queries,
                    max_seqlen_k=most_keys,
                    softmax_scale=scaling,
                    causal=True,
                    out=out,
                )
                if got.data_ptr() != out.data_ptr():
                    out.copy_(got)

            found = self._flashes[scaling] = Flash(call)
        return found

    def _ring(self, layer: Any) -> torch.Tensor | None:
        return self._rings[layer.layer_id - self.token_to_kv_pool.start_layer] if self._rings else None

    def _views(self, q: Any, k: Any, v: Any, layer: Any, sinks: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values ``(tokens, heads, head_size)``.

        Raises:
            ContractError: the layer wants another attention.
        """
        limits.check_layer(current().method, layer, sinks)
        if k is None or v is None or not math.isclose(layer.scaling, self._kernels.heads.scaling, rel_tol=1e-6):
            contract.refuse(current().method, ["with shared keys and values, or scores scaled by the model"])
        size = self._kernels.heads.head_size
        return (
            q.view(-1, layer.tp_q_head_num, size),
            k.view(-1, layer.tp_k_head_num, size),
            v.view(-1, layer.tp_v_head_num, size),
        )

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **others: Any
    ) -> torch.Tensor:
        """Prompts attend while rings hold what came before them; then they are stored."""
        query, key, value = self._views(q, k, v, layer, others.get("sinks"))
        found, kernels, ring = self._prompts, self._kernels, self._ring(layer)
        if found is None:
            raise RuntimeError("attention before its metadata")
        pages = self.token_to_kv_pool.layer(layer.layer_id)
        given = getattr(forward_batch, "_attn_output", None)
        out = (
            torch.empty_like(query, memory_format=torch.contiguous_format) if given is None else given.view(query.shape)
        )
        prompts.attend(
            kernels,
            found,
            query,
            key,
            value,
            pages,
            out,
            self._scratch,
            ring,
            self._ring_from,
            self._flash(layer.scaling),
        )
        if ring is None:
            kernels.store(key, value, pages, forward_batch.out_cache_loc)
        elif found.filled is not None:
            kernels.store_chunks(key, value, pages, found.chunks, found.filled, ring)
        return out.view(-1, layer.tp_q_head_num * kernels.heads.head_size)

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **others: Any
    ) -> torch.Tensor:
        """Store, then attend over what is stored."""
        query, key, value = self._views(q, k, v, layer, others.get("sinks"))
        kernels, ring, metadata = self._kernels, self._ring(layer), self.forward_metadata
        pages = self.token_to_kv_pool.layer(layer.layer_id)
        count = len(query)
        lengths, table, slots = metadata.cache_seqlens_int32[:count], metadata.page_table, self._slots[:count]
        if ring is not None:
            kernels.append(key, value, pages, table, lengths, ring, slots)
        elif kernels.rotated:
            rotated = torch.empty_like(query, memory_format=torch.contiguous_format)
            kernels.store(key, value, pages, forward_batch.out_cache_loc, query, rotated)
            query = rotated
        else:
            kernels.store(key, value, pages, forward_batch.out_cache_loc)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        kernels.decode(self._work, query, pages, table, lengths, out, ring, None if ring is None else slots)
        return out.view(-1, layer.tp_q_head_num * kernels.heads.head_size)


def refused(runner: Any) -> list[str]:
    """What packed pages do not go with, besides what no method does."""
    args, pool = runner.server_args, runner.token_to_kv_pool
    window = isinstance(pool, PackedPool) and pool.format.window
    found = [
        (not isinstance(pool, PackedPool), f"over a pool of another kind ({type(pool).__name__})"),
        (runner.page_size != PAGE_TOKENS, f"with pages of {runner.page_size} tokens (--page-size {PAGE_TOKENS})"),
        (window and not args.disable_radix_cache, "with prefixes shared (--disable-radix-cache): rings are not"),
        (window and args.max_running_requests is None, "without --max-running-requests: each has a ring"),
    ]
    return [reason for wrong, reason in found if wrong]
