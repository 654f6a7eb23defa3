"""What of vLLM eviction does not go with: refused before a request is served, all reasons at once."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvload.servers.plugins.vllm import contract
from kvload.servers.plugins.vllm.eviction.policy import chosen
from kvload.servers.plugins.vllm.selection import current

LAYER_OPTIONS = {
    "alibi_slopes": "with position biases (ALiBi)",
    "sliding_window": "with layers that have a sliding window of their own",
    "logits_soft_cap": "with a cap on attention scores",
    "kv_sharing_target_layer_name": "with layers that share keys and values",
    "sinks": "with learned attention sinks",
}
"""Arguments of vLLM's attention layers that must be empty, and what they stand for."""

_POSITIONAL = ("alibi_slopes", "sliding_window", "kv_cache_dtype", "logits_soft_cap", "attn_type")


def problems(config: Any) -> list[str]:
    """What in vLLM's configuration stands in the way, each as the rest of 'does not run ...'.

    Args:
        config: a ``VllmConfig``.
    """
    parallel, cache = config.parallel_config, config.cache_config
    ranks, heads = parallel.tensor_parallel_size, config.model_config.get_total_num_kv_heads()
    found = [
        (
            chosen(cache.block_size).scores and ranks > heads,
            f"on {ranks} GPUs with {heads} KV heads: GPUs that hold the same head would choose by different queries",
        ),
        (config.speculative_config is not None, "with speculative decoding: rejected tokens cannot be taken back"),
        (config.kv_transfer_config is not None, "with a KV connector: compacted blocks mean nothing elsewhere"),
        (cache.enable_prefix_caching, "with prefix caching (--no-enable-prefix-caching): compaction rewrites blocks"),
        (cache.cache_dtype not in {"auto", "bfloat16", "float16"}, f"with --kv-cache-dtype {cache.cache_dtype}"),
        (getattr(parallel, "decode_context_parallel_size", 1) > 1, "with decode context parallelism"),
        (getattr(parallel, "prefill_context_parallel_size", 1) > 1, "with prefill context parallelism"),
        (getattr(parallel, "pipeline_parallel_size", 1) > 1, "with pipeline parallelism"),
        (getattr(parallel, "enable_dbo", False), "with dual batch overlap"),
        (config.model_config.runner_type != "generate", "with a model that does not generate"),
        (getattr(config.model_config, "is_encoder_decoder", False), "with an encoder-decoder model"),
    ]
    return [reason for wrong, reason in found if wrong]


def check(config: Any, *more: str) -> None:
    """Refuse a configuration.

    Args:
        more: problems found elsewhere.

    Raises:
        ContractError: names every problem.
    """
    contract.refuse(current().method, [*problems(config), *more])


def check_layer(positional: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuse what a layer asks of its attention beyond plain softmax.

    Args:
        positional: arguments of the implementation after ``num_kv_heads``.
        options: by name.

    Raises:
        ContractError: names every problem.
    """
    given = {**dict(zip(_POSITIONAL, positional, strict=False)), **options}
    contract.refuse(
        current().method, [text for name, text in LAYER_OPTIONS.items() if given.get(name) not in {None, 0}]
    )
