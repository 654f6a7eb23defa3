"""A step of SGLang without its model: its real pools, allocator and attention backend on a CPU, fed random tensors.

FlashAttention is stood in for by torch; Triton's kernels run in the interpreter. Everything else is SGLang's own code.
"""

import math
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

HEADS, GROUP, SIZE = 2, 2, 64
DTYPE = torch.float32
CONTEXT = 512
SLOTS = 1024
REQUESTS = 6


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: tuple[int, int],
    rows: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention aligned at the ends, and its log sums ``(heads, tokens)``; ``rows`` finds keys and values."""
    out = torch.zeros_like(q)
    lse = torch.zeros(q.shape[1], q.shape[0])
    for row, length in enumerate(lengths.tolist()):
        part = slice(int(cu_seqlens_q[row]), int(cu_seqlens_q[row + 1]))
        new = part.stop - part.start
        if not new:
            continue
        key, value = rows(row, length)
        key, value = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q[part].float(), key.float()) * scale
        place = torch.arange(length - new, length)[:, None]
        slot = torch.arange(length)[None]
        seen = slot <= place
        if window[0] >= 0:
            seen &= slot >= place - window[0]
        scores = scores.masked_fill(~seen, -math.inf)
        out[part] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value.float()).to(q.dtype)
        lse[:, part] = scores.logsumexp(-1)
    return out, lse


def paged(**given: Any) -> Any:
    """``flash_attn_with_kvcache``."""
    table, pages = given["page_table"], given["k_cache"].shape[1]

    def rows(row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.arange(length)
        where = table[row, place // pages].long(), place % pages
        return given["k_cache"][where], given["v_cache"][where]

    out, lse = attend(
        given["q"], given["k_cache"], given["v_cache"], given["cu_seqlens_q"], given["cache_seqlens"],
        given["softmax_scale"], given["window_size"], rows,
    )  # fmt: skip
    return (out, lse) if given["return_softmax_lse"] else out


def dense(**given: Any) -> Any:
    """``flash_attn_varlen_func``."""
    sums = given["cu_seqlens_k"]

    def rows(row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = slice(int(sums[row]), int(sums[row]) + length)
        return given["k"][part], given["v"][part]

    out, _ = attend(
        given["q"], given["k"], given["v"], given["cu_seqlens_q"], sums.diff(), given["softmax_scale"], (-1, -1), rows
    )
    if given.get("out") is not None:
        given["out"].copy_(out)
    return out if given.get("out") is None else given["out"]


def parts(fresh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of ``(tokens, heads, size)``."""
    keys = HEADS * GROUP
    return fresh[:, :keys], fresh[:, keys : keys + HEADS], fresh[:, keys + HEADS :]


class Mode:
    """A forward mode."""

    def __init__(self, decoding: bool) -> None:
        self.decoding = decoding

    def __getattr__(self, name: str) -> Any:
        if name in {"is_decode_or_idle", "is_decode"}:
            return lambda: self.decoding
        if name in {"is_extend", "is_extend_or_draft_extend_or_mixed"}:
            return lambda **_: not self.decoding
        if name.startswith("is_"):
            return lambda **_: False
        raise AttributeError(name)


@dataclass
class Rig:
    """SGLang's pieces for one method.

    Attributes:
        page: tokens of a page.
        runner: what a backend is built from.
    """

    page: int
    layers: int = 1
    runner: Any = None
    lengths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
        from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

        self.requests = ReqToTokenPool(REQUESTS, CONTEXT, "cpu", False)
        self.pool = self._pool()
        if self.page == 1:
            self.allocator = TokenToKVPoolAllocator(SLOTS, DTYPE, "cpu", self.pool, False)
        else:
            self.allocator = PagedTokenToKVPoolAllocator(SLOTS, self.page, DTYPE, "cpu", self.pool, False)
        args = types.SimpleNamespace(
            speculative_algorithm=None, disaggregation_mode="null", enable_dp_attention=False, dp_size=1, pp_size=1,
            tp_size=1,
            dcp_size=1, is_embedding=False, chunked_prefill_size=128, kv_cache_dtype="auto", disable_radix_cache=True,
            radix_cache_backend="kvload", speculative_eagle_topk=None, enable_deterministic_inference=False,
            enable_prefill_cp=False, max_running_requests=REQUESTS,
            cuda_graph_config=types.SimpleNamespace(prefill=types.SimpleNamespace(backend="disabled")),
        )  # fmt: skip
        from sglang.srt.configs.model_config import AttentionArch

        model = types.SimpleNamespace(
            is_encoder_decoder=False, context_len=CONTEXT, attention_arch=AttentionArch.MHA, head_dim=SIZE,
            v_head_dim=SIZE, is_local_attention_model=False, get_num_kv_heads=lambda _: HEADS,
            get_total_num_kv_heads=lambda: HEADS,
            hf_text_config=types.SimpleNamespace(num_attention_heads=HEADS * GROUP),
        )  # fmt: skip
        self.runner = types.SimpleNamespace(
            server_args=args, model_config=model, sliding_window_size=None, use_mla_backend=False, device="cpu",
            req_to_token_pool=self.requests, token_to_kv_pool=self.pool, kv_cache_dtype=DTYPE, dtype=DTYPE,
            kv_cache_dtype_str="auto", page_size=self.page, token_to_kv_pool_allocator=self.allocator,
            ps=types.SimpleNamespace(attn_cp_size=1, tp_size=1), is_draft_worker=False,
        )  # fmt: skip

    def _pool(self) -> Any:
        """Built the way SGLang's configurator does, hooks included."""
        from sglang.srt.mem_cache import kv_cache_configurator as module
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        configurator = types.SimpleNamespace(
            kv_cache_dtype_str="auto", post_capture_kv_active=False, pool_page_size=self.page, kv_cache_dtype=DTYPE,
            model_config=types.SimpleNamespace(get_num_kv_heads=lambda _: HEADS, head_dim=SIZE, v_head_dim=SIZE),
            layer_info=types.SimpleNamespace(num_effective_layers=self.layers, start_layer=0, end_layer=self.layers),
            device="cpu",
        )  # fmt: skip
        return module.KVCacheConfigurator._build_mha_kv_pool(
            configurator, max_total_num_tokens=SLOTS, mha_pool_class=MHATokenToKVPool, quant_method=None
        )

    def layer(self) -> Any:
        """A ``RadixAttention``, as far as backends look at it."""
        return types.SimpleNamespace(
            tp_q_head_num=HEADS * GROUP, tp_k_head_num=HEADS, tp_v_head_num=HEADS, head_dim=SIZE, qk_head_dim=SIZE,
            v_head_dim=SIZE, scaling=SIZE**-0.5, layer_id=0, logit_cap=0.0, sliding_window_size=-1,
            is_cross_attention=False, k_scale=None, v_scale=None,
        )  # fmt: skip


def batch(
    rig: Rig, requests: list[int], starts: list[int], stops: list[int], prompts: list[int], decoding: bool
) -> Any:
    """A ``ForwardBatch`` whose slots stand in the request table already."""
    table = rig.requests.req_to_token
    locations = torch.cat([table[r, a:b] for r, a, b in zip(requests, starts, stops, strict=True)]).long()
    lengths = torch.tensor(stops)
    return types.SimpleNamespace(
        batch_size=len(requests), forward_mode=Mode(decoding), req_pool_indices=torch.tensor(requests),
        seq_lens=lengths, seq_lens_cpu=lengths, seq_lens_sum=int(lengths.sum()), out_cache_loc=locations,
        extend_prefix_lens=torch.tensor(starts), extend_prefix_lens_cpu=starts,
        extend_seq_lens=lengths - torch.tensor(starts),
        extend_seq_lens_cpu=(np.array(stops) - np.array(starts)).tolist(),
        orig_seq_lens=torch.maximum(lengths, torch.tensor(prompts)), spec_info=None, encoder_lens=None,
        positions=torch.zeros(len(locations)), global_num_tokens_cpu=None, extend_num_tokens=len(locations),
    )  # fmt: skip


class Bag:
    """A published configuration in which nothing is switched on."""

    attn_tp_size = tp_size = attn_dcp_size = 1
    attn_dcp_rank = 0
    max_running_requests = REQUESTS

    def __getattr__(self, name: str) -> Any:
        return NOTHING if name in {"features", "kernel", "mamba", "deterministic"} else None


NOTHING = Bag()


def publish() -> None:
    """Stand in for the configuration that SGLang publishes in each of its processes."""
    from sglang.srt import runtime_context

    def bag(*_: Any) -> Bag:
        return NOTHING

    def alone(_: Any, name: str, __: Any) -> int:
        return 0 if name.endswith("rank") else 1

    type(runtime_context._CONTEXT).config_bag = bag
    type(runtime_context._PARALLEL)._v = alone
