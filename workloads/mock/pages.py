"""The small pages of the mock server: health, version, models and metrics, as vLLM has them."""

from dataclasses import dataclass

from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.steps import json_response


@dataclass
class Figures:
    """What a mock server counts: requests being answered and waiting, and totals since its start."""

    running: int = 0
    waiting: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0


def page(path: bytes, settings: MockSettings, figures: Figures) -> bytes | None:
    """The whole response to a GET; None where there is no such page."""
    if path == b"/health":
        return json_response("200 OK", {"status": "ok"})
    if path == b"/version":
        return json_response("200 OK", {"version": "kvload-mock"})
    if path == b"/v1/models":
        model = {"id": settings.model, "object": "model", "max_model_len": settings.max_model_len}
        return json_response("200 OK", {"object": "list", "data": [model]})
    if path == b"/metrics":
        numbers = {
            "num_requests_running": figures.running,
            "num_requests_waiting": figures.waiting,
            "kv_cache_usage_perc": figures.running / (settings.slots or max(figures.running, 1)),
            "num_preemptions_total": 0,
            "prompt_tokens_total": figures.prompt_tokens,
            "generation_tokens_total": figures.generation_tokens,
            "request_success_total": figures.requests,
        }
        if settings.prefix_block is not None:
            numbers["prefix_cache_queries_total"] = figures.prompt_tokens
            numbers["prefix_cache_hits_total"] = figures.cached_tokens
        text = "".join(f"vllm:{name} {value}\n" for name, value in numbers.items())
        return json_response("200 OK", None, raw=text.encode(), kind="text/plain; version=0.0.4")
    return None
