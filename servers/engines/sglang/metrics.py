"""SGLang's metrics (0.5), by the names it gives them; its preemptions are called retractions."""

from kvload.servers.engines.metrics import EngineMetrics, Source

METRICS = EngineMetrics(
    "sglang:",
    {
        # With --enable-priority-scheduling requests of each priority are told beside all of them.
        "running": (Source("num_running_reqs", parted_by="priority"),),
        "waiting": (Source("num_queue_reqs", parted_by="priority"),),
        "cache_usage": (Source("token_usage", "mean"),),
        "pool_tokens": (Source("max_total_num_tokens"),),
        "preemptions": (Source("num_retracted_requests_total"), Source("num_retracted_reqs", only_zero=True)),
        "prefix_queries": (Source("prompt_tokens_total"),),
        "prefix_hits": (Source("cached_tokens_total"),),
        "prompt_tokens": (Source("prompt_tokens_total"),),
        "generation_tokens": (Source("generation_tokens_total"),),
        "requests": (Source("num_requests_total"),),
        "queue_s": (Source("queue_time_seconds_sum"),),
        "prefill_s": (Source("per_stage_req_latency_seconds_sum", labels={"stage": "prefill_forward"}),),
    },
    # The size of the pool comes from every rank (srt/observability/metrics_collector.py), the rest from the first one,
    # or from all with --enable-metrics-for-all-schedulers.
    shared=frozenset({"tp_rank", "pp_rank", "moe_ep_rank"}),
)
