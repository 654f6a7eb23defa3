"""Attention over packed pages on a GPU: kvload's kernels for decoding, vLLM's FlashAttention for prompts.

A decoding step may be the replay of a captured graph, in which no Python runs but :meth:`PackedBuilder.build`; what the
layers' kernels read therefore lies in tensors that vLLM or the builder owns and fills before every step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import get_current_vllm_config
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
)
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.utils import split_decodes_and_prefills

from kvload.servers.kernels.formats import PAGE_TOKENS, PageFormat
from kvload.servers.kernels.triton.launch import PackedKernels
from kvload.servers.kernels.triton.shapes import DecodePlan, Heads
from kvload.servers.plugins import prompts
from kvload.servers.plugins.prompts import Flash, Prompts
from kvload.servers.plugins.vllm import contract
from kvload.servers.plugins.vllm.eviction.limits import check_layer
from kvload.servers.plugins.vllm.packed import limits
from kvload.servers.plugins.vllm.packed.rings import STARTS, new_rings
from kvload.servers.plugins.vllm.packed.spec import chosen_format, packed_spec, rotation_seed, runs
from kvload.servers.plugins.vllm.selection import current

logger = init_logger("vllm.kvload")


class PackedBackend(AttentionBackend):
    """Packed pages under the name ``CUSTOM``."""

    @staticmethod
    def get_name() -> str:
        """The member of vLLM's table that this class stands for."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["PackedImpl"]:
        """The attention."""
        return PackedImpl

    @staticmethod
    def get_builder_cls() -> type["PackedBuilder"]:
        """The metadata."""
        return PackedBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """A page."""
        return [PAGE_TOKENS]

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, cache_dtype_str: str = "auto"
    ) -> tuple[int, ...]:
        """Bytes; ``head_size`` is the packed one of :func:`packed_spec` (vLLM 0.26 asks, later ones do not)."""
        return num_blocks, num_kv_heads, block_size * 2 * head_size

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[Any, ...]:
        """Blocks of heads of tokens (asked from vLLM 0.32 on)."""
        from vllm.v1.kv_cache_interface import KVCacheLayout

        return (KVCacheLayout.LBHNC,)

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """Pages of bytes."""
        return packed_spec(spec)

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Decoders."""
        return bool(attn_type == AttentionType.DECODER)

    @classmethod
    def supports_kv_cache_dtype(cls, kv_cache_dtype: Any) -> bool:
        """vLLM's own setting stays at its default."""
        return kv_cache_dtype in {None, "auto", "float16", "bfloat16"}

    @classmethod
    def supports_compute_capability(cls, capability: Any) -> bool:
        """From Ampere on."""
        return bool(capability.major >= 8)

    @classmethod
    def supports_kv_connector(cls) -> bool:
        """Nobody else reads these pages."""
        return False


@dataclass
class Step:
    """What the layers of one step share.

    Attributes:
        tokens: in the step.
        decodes: rows with one new token, the first ones.
        table, lengths: vLLM's, of all rows.
        slot_mapping: vLLM's, of all tokens.
        slots: request slots of all rows; None where the method has no window.
        plan: of the decoding rows.
        prompts: the other rows; None for none.
    """

    tokens: int
    decodes: int
    table: torch.Tensor
    lengths: torch.Tensor
    slot_mapping: torch.Tensor
    slots: torch.Tensor | None
    plan: DecodePlan
    ring_from: torch.Tensor
    prompts: Prompts | None


class Shared:
    """What all layers of this process use: kernels, and memory for dequantised context.

    Args:
        fmt: of the pages.
        heads: of a layer on this rank.
        config: a ``VllmConfig``.
        device: of the layers.
    """

    one: "Shared | None" = None

    def __init__(self, fmt: PageFormat, heads: Heads, config: Any, device: torch.device) -> None:
        self.heads = heads
        try:
            self.kernels = PackedKernels(fmt, heads, device, rotation_seed())
        except ValueError as error:
            raise contract.ContractError(str(error)) from None
        self.scratch_tokens = max(config.model_config.max_model_len, config.scheduler_config.max_num_batched_tokens)
        shape = 2, self.scratch_tokens, heads.kv_heads, heads.head_size
        self.scratch = torch.empty(shape, dtype=heads.dtype, device=device)

    @classmethod
    def get(cls, fmt: PageFormat, heads: Heads, config: Any, device: torch.device) -> "Shared":
        """This process's; layers of several shapes are refused."""
        if cls.one is None:
            cls.one = cls(fmt, heads, config, device)
        elif cls.one.heads != heads:
            contract.refuse(current().method, ["with a model whose layers have attention of several shapes"])
        return cls.one


class PackedBuilder(AttentionMetadataBuilder):
    """Makes a :class:`Step` of vLLM's batch."""

    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    supports_update_block_table = False

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        older = () if vllm_config.use_v2_model_runner else ("on vLLM's older model runner (V1)",)
        limits.check(vllm_config, *older)
        if Shared.one is None:
            raise contract.ContractError("vLLM builds attention metadata before its layers")
        self._shared = Shared.one
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=False)
        graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        self._most = max(vllm_config.scheduler_config.max_num_seqs, graphs)
        self._dump = vllm_config.scheduler_config.max_num_seqs
        self._plan = self._shared.kernels.new_plan(self._most)
        self._shared.kernels.warm(vllm_config.scheduler_config.max_num_batched_tokens)
        self._slots = torch.full((self._most,), self._dump, dtype=torch.int32, device=device)
        self._ring_from = torch.zeros(self._dump + 1, dtype=torch.int32, device=device)
        fmt = self._shared.kernels.fmt
        window = f"; window {vllm_config.scheduler_config.max_num_seqs} rings" if fmt.window else ""
        if get_tensor_model_parallel_rank() == 0:
            logger.info(
                "kvload packed: %s, pages of %d bytes, %.1f bytes a token, layer and KV head%s",
                current(), kv_cache_spec.page_size_bytes, fmt.token_bytes, window,
            )  # fmt: skip

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Step:
        """One step; see the base class. Runs on the host before every step, a graph's replay included."""
        batch = common_attn_metadata
        decodes, prefills, _, _ = split_decodes_and_prefills(batch, decode_threshold=1)
        window = self._shared.kernels.fmt.window
        if window:
            slots = batch.rswa_prefix_lens
            # No slots: vLLM tries itself out, or captures a graph.
            real = 0 if slots is None else min(len(slots), batch.num_reqs)
            self._slots[real : batch.num_reqs] = self._dump
            if slots is not None:
                self._slots[:real].copy_(slots[:real])
            STARTS.copy_to(self._ring_from)
        lengths = batch.seq_lens[: batch.num_reqs]
        if decodes:
            self._shared.kernels.plan(self._plan, lengths[:decodes], self._slots, self._ring_from)
        return Step(
            tokens=batch.num_actual_tokens,
            decodes=decodes,
            table=batch.block_table_tensor,
            lengths=lengths,
            slot_mapping=batch.slot_mapping,
            slots=self._slots[: batch.num_reqs] if window else None,
            plan=self._plan,
            ring_from=self._ring_from,
            prompts=self._prompts(batch, decodes) if prefills else None,
        )

    def _prompts(self, batch: Any, decodes: int) -> Prompts:
        """The rows behind the decoding ones. Such a step is never a graph's."""
        first = batch.query_start_loc_cpu.numpy()[decodes : batch.num_reqs + 1].astype(np.int64)
        stops = batch.seq_lens_cpu_upper_bound.numpy()[decodes : batch.num_reqs].astype(np.int64)
        slots = self._slots[decodes : batch.num_reqs] if self._shared.kernels.fmt.window else None
        table = batch.block_table_tensor[decodes:]
        try:
            return prompts.plan(
                self._shared.kernels, table, stops - np.diff(first), stops, slots, self._shared.scratch_tokens
            )
        except ValueError as error:
            raise contract.ContractError(f"{error} (--max-model-len)") from None


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
        config = get_current_vllm_config()
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads = num_kv_heads or num_heads
        device = torch.device("cuda", torch.cuda.current_device())
        fmt = chosen_format(head_size)
        heads = Heads(num_heads, self.num_kv_heads, head_size, config.model_config.dtype, scale)
        self._shared = Shared.get(fmt, heads, config, device)
        self.ring = new_rings(config, fmt, self.num_kv_heads, heads.dtype, device) if fmt.window else None
        self._flash_version = fa_utils.get_flash_attn_version(head_size=head_size)

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
        """Prompts first, while rings hold what came before them; then store; then decode over what is stored."""
        if attn_metadata is None:
            return output.fill_(0)
        step, kernels = attn_metadata, self._shared.kernels
        query, key, value = (x[: step.tokens] for x in (query, key, value))
        out = output[: step.tokens].view(step.tokens, self.num_heads, self.head_size)
        pages = runs(kv_cache)
        one = slice(0, step.decodes)
        several = slice(step.decodes, None)
        if step.prompts is not None:
            prompts.attend(
                kernels,
                step.prompts,
                query[several],
                key[several],
                value[several],
                pages,
                out[several],
                self._shared.scratch,
                self.ring,
                step.ring_from,
                Flash(self._flash),
            )
        rotated = query[one]
        slots = None if step.slots is None else step.slots[one]
        if self.ring is None:
            if kernels.rotated and step.decodes:
                rotated = torch.empty_like(rotated, memory_format=torch.contiguous_format)
                kernels.store(key, value, pages, step.slot_mapping[: step.tokens], query[one], rotated)
            else:
                kernels.store(key, value, pages, step.slot_mapping[: step.tokens])
        else:
            new = step.prompts
            if new is not None and new.filled is not None:
                kernels.store_chunks(key[several], value[several], pages, new.chunks, new.filled, self.ring)
            if step.decodes and slots is not None:
                kernels.append(key[one], value[one], pages, step.table, step.lengths[one], self.ring, slots)
        if step.decodes:
            kernels.decode(step.plan, rotated, pages, step.table, step.lengths[one], out[one], self.ring, slots)
        return output

    def _flash(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        most_queries: int,
        most_keys: int,
    ) -> None:
        """Causal attention of several sequences, aligned at their ends."""
        fa_utils.flash_attn_varlen_func(
            q=query,
            k=key,
            v=value,
            out=out,
            cu_seqlens_q=queries,
            cu_seqlens_k=keys,
            max_seqlen_q=most_queries,
            max_seqlen_k=most_keys,
            softmax_scale=self.scale,
            causal=True,
            fa_version=self._flash_version,
        )
