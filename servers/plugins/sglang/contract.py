"""What of SGLang the plugin relies on, checked before anything is hooked.

SGLang promises no stable interface here. Methods run in the release below; on any other the plugin refuses to start
rather than to corrupt a cache.
"""

import re
from typing import TYPE_CHECKING

from kvload.servers.plugins.vllm.contract import ContractError, Expected, check_function

if TYPE_CHECKING:
    from kvload.servers.plugins.sglang.table import Row

KNOWN: tuple[tuple[int, int, int], ...] = ((0, 5, 17),)
"""Releases of SGLang whose source the plugin was written against."""

FLASH = "sglang.srt.layers.attention.flashattention_backend:FlashAttentionBackend"
POOL = "sglang.srt.mem_cache.kv_cache_configurator:KVCacheConfigurator._build_mha_kv_pool"
CELL = "sglang.srt.model_executor.pool_configurator:DefaultPoolConfigurator._compute_cell_size"

EXPECTED = (
    Expected("sglang.srt.plugins.hook_registry:HookRegistry.register", ("target", "hook", "hook_type")),
    Expected("sglang.srt.plugins.hook_registry:HookRegistry.apply_hooks", ()),
    Expected("sglang.srt.server_args:add_attention_backend_choices", ("choices",)),
    Expected("sglang.srt.layers.attention.attention_registry:register_attention_backend", ("name",)),
    Expected(f"{FLASH}.init_forward_metadata", ("self", "forward_batch")),
    Expected(f"{FLASH}.init_forward_metadata_out_graph", ("self", "forward_batch", "in_capture")),
    Expected(f"{FLASH}.init_cuda_graph_state", ("self", "max_bs", "max_num_tokens")),
    Expected(
        f"{FLASH}._compute_scheduler_metadata", ("self", "batch_size", "max_seq_len_k", "cache_seqlens", "cu_seqlens_q")
    ),
    Expected(f"{FLASH}.forward_decode", ("self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache")),
    Expected(f"{FLASH}.forward_extend", ("self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache")),
    Expected(POOL, ("self", "max_total_num_tokens", "mha_pool_class", "quant_method")),
    Expected(CELL, ("self", "kvc", "num_layers")),
)
"""What every method relies on; a row of the table adds its own."""


def release_of(version: str) -> tuple[int, int, int]:
    """``0.5.17.post1`` as ``(0, 5, 17)``.

    Raises:
        ContractError: it does not begin with three numbers.
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        raise ContractError(f"SGLang's version '{version}' is not a release; kvload's plugin knows {known()}")
    return int(match[1]), int(match[2]), int(match[3])


def known() -> str:
    """The releases in words."""
    return ", ".join(".".join(map(str, release)) for release in KNOWN)


def check(row: "Row") -> None:
    """Hold the installed SGLang against what the plugin and a method rely on.

    Raises:
        ContractError: says what is different, and which releases are known.
    """
    import sglang

    version = sglang.__version__
    if release_of(version) not in KNOWN:
        raise ContractError(
            f"the method {row.method} runs inside SGLang {known()}; this is {version}. "
            "Use one of those, or start SGLang without the method"
        )
    for expected in (*EXPECTED, *row.expects):
        check_function(expected, version, "SGLang")
