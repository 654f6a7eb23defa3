"""What of vLLM packed pages do not go with: refused before a request is served, all reasons at once."""

from typing import Any

from kvload.servers.plugins.vllm import contract
from kvload.servers.plugins.vllm.selection import current


def check(config: Any, *more: str) -> None:
    """Refuse a configuration.

    Args:
        config: a ``VllmConfig``.
        more: problems found elsewhere, each as the rest of 'does not run ...'.

    Raises:
        ContractError: names every problem.
    """
    parallel, cache = config.parallel_config, config.cache_config
    found = [
        (
            config.speculative_config is not None,
            "with speculative decoding: a page could be packed with rejected tokens",
        ),
        (config.kv_transfer_config is not None, "with a KV connector"),
        (cache.cache_dtype not in {"auto", "bfloat16", "float16"}, f"with --kv-cache-dtype {cache.cache_dtype}"),
        (getattr(parallel, "decode_context_parallel_size", 1) > 1, "with decode context parallelism"),
        (getattr(parallel, "prefill_context_parallel_size", 1) > 1, "with prefill context parallelism"),
        (getattr(parallel, "pipeline_parallel_size", 1) > 1, "with pipeline parallelism"),
        (getattr(parallel, "enable_dbo", False), "with dual batch overlap"),
        (config.model_config.runner_type != "generate", "with a model that does not generate"),
        (getattr(config.model_config, "is_encoder_decoder", False), "with an encoder-decoder model"),
    ]
    contract.refuse(current().method, [*(reason for wrong, reason in found if wrong), *more])
