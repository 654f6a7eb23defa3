"""vLLM's metrics (0.6 to 0.33), by the names it gives them."""

from kvload.servers.engines.metrics import EngineMetrics, Source

METRICS = EngineMetrics(
    "vllm:",
    {
        "running": (Source("num_requests_running"),),
        "waiting": (Source("num_requests_waiting"),),
        "cache_usage": (Source("kv_cache_usage_perc", "mean"), Source("gpu_cache_usage_perc", "mean")),
        "pool_tokens": (Source("cache_config_info", info="kv_cache_size_tokens"),),
        "preemptions": (Source("num_preemptions_total"), Source("num_preemptions")),
        "prefix_queries": (Source("prefix_cache_queries_total"), Source("prefix_cache_queries")),
        "prefix_hits": (Source("prefix_cache_hits_total"), Source("prefix_cache_hits")),
        "prompt_tokens": (Source("prompt_tokens_total"),),
        "generation_tokens": (Source("generation_tokens_total"),),
        "requests": (Source("request_success_total"),),
        "queue_s": (Source("request_queue_time_seconds_sum"),),
        "prefill_s": (Source("request_prefill_time_seconds_sum"),),
        "decode_s": (Source("request_decode_time_seconds_sum"),),
    },
    # Older releases tell blocks and their size but not the tokens they hold.
    pool_blocks=("num_gpu_blocks", "block_size"),
)
