"""Room for scores beside keys and values, counted in the size of the pool."""

from typing import Any

import torch

from kvload.servers.plugins.sglang.eviction.policy import chosen

SCORE_BYTES = 4


def with_scores(original: Any, configurator: Any, *arguments: Any, **options: Any) -> Any:
    """Around the building of the pool: a float32 for each slot, layer and KV head.

    Heads come before slots: a request's slots mostly lie side by side, and so do then the scores that one head reads.
    """
    pool = original(configurator, *arguments, **options)
    if chosen().scores:
        slots = pool.k_buffer[0].shape[0]
        shape = pool.layer_num, pool.head_num, slots
        pool.kvload_scores = torch.zeros(shape, dtype=torch.float32, device=pool.device)
    return pool


def with_score_bytes(original: Any, sizes: Any, kvc: Any, num_layers: int) -> int:
    """Around the bytes of a token in all layers."""
    from sglang.srt.runtime_context import get_parallel

    cell: int = original(sizes, kvc, num_layers)
    if not chosen().scores:
        return cell
    return cell + SCORE_BYTES * num_layers * int(kvc.model_config.get_num_kv_heads(get_parallel().attn_tp_size))
