"""The embedded engine's metrics; see ``embedded/core/metrics.py``."""

from kvload.servers.engines.metrics import EngineMetrics, Source

METRICS = EngineMetrics(
    "kvload:",
    {
        "running": (Source("num_requests_running"),),
        "waiting": (Source("num_requests_waiting"),),
        "cache_usage": (Source("kv_cache_usage_perc", "mean"),),
        "pool_tokens": (Source("cache_config_info", info=("kv_cache_size_tokens",)),),
        "preemptions": (Source("num_preemptions_total"),),
        "prompt_tokens": (Source("prompt_tokens_total"),),
        "generation_tokens": (Source("generation_tokens_total"),),
        "requests": (Source("request_success_total"),),
        "queue_s": (Source("request_queue_time_seconds_sum"),),
        "prefill_s": (Source("request_prefill_time_seconds_sum"),),
        "decode_s": (Source("request_decode_time_seconds_sum"),),
    },
)
