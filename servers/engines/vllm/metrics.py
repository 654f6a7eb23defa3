"""vLLM's metrics (0.6 to 0.33), by the names it gives them."""

from kvload.servers.engines.metrics import EngineMetrics, Source

METRICS = EngineMetrics(
    "vllm:",
    {
        "running": (Source("num_requests_running"),),
        "waiting": (Source("num_requests_waiting"),),
        "cache_usage": (Source("kv_cache_usage_perc", "mean"), Source("gpu_cache_usage_perc", "mean")),
        # What one engine holds, told for each (from 0.32 on); or blocks and their size. Of several engines behind one
        # front end that adds up the blocks of all, and tells the sum for each (v1/engine/core_client.py).
        "pool_tokens": (
            Source("cache_config_info", info=("kv_cache_size_tokens",)),
            Source("cache_config_info", info=("num_gpu_blocks", "block_size"), told_whole=True),
        ),
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
    pools=("engine",),
)
