"""What an OpenAI-compatible server says about itself, whoever started it."""

from collections.abc import Mapping
from typing import Any

from kvload.errors import KvloadError, ServerError
from kvload.records import ServerInfo
from kvload.servers.watch.http import Answer, normalise_url, request
from kvload.servers.watch.prometheus import parse
from kvload.servers.watch.scrape import METRICS_LIMIT, engine_of, to_sample


def server_info(url: str, headers: Mapping[str, str] | None = None, *, timeout_s: float = 10.0) -> ServerInfo:
    """Ask a server for its model, engine, version and cache.

    Only ``/v1/models`` must answer; what else is missing stays None.

    Args:
        url: its address, with or without ``/v1``.
        headers: sent along, such as ``Authorization``.

    Raises:
        UsageError: the address is none.
        ServerError: nothing answers there, or no OpenAI-compatible server, or it serves no model.
    """
    base = normalise_url(url)
    model = first_model(base, headers, timeout_s=timeout_s)
    engine, pool_tokens, labels = _metrics(base, headers, timeout_s)
    said = _optional_json(base, "/server_info" if engine == "sglang" else "/version", headers, timeout_s)
    context = model.get("max_model_len")
    if pool_tokens is None and engine == "sglang":
        pool_tokens = _whole(said.get("max_total_num_tokens"))
    version = said.get("version")
    return ServerInfo(
        url=base,
        engine=engine,
        engine_version=version if isinstance(version, str) else None,
        model=str(model["id"]),
        method=_method(engine, said, labels),
        max_model_len=context if isinstance(context, int) else _whole(said.get("context_length")),
        pool_tokens=pool_tokens,
        prefix_cache=_prefix_cache(engine, said, labels),
        device=said["device"] if isinstance(said.get("device"), str) else None,
    )


def first_model(base: str, headers: Mapping[str, str] | None = None, *, timeout_s: float = 10.0) -> dict[str, Any]:
    """The first entry of ``/v1/models``.

    Raises:
        ServerError: there is none.
    """
    answer = request(f"{base}/v1/models", headers=headers, timeout_s=timeout_s)
    if answer.status in {401, 403}:
        raise ServerError(
            "the server wants an API key", where=base, hint="give it as a header: --header or OPENAI_API_KEY"
        )
    if not answer.ok:
        raise ServerError(
            f"/v1/models answered {answer.status}: no OpenAI-compatible server",
            where=base,
            hint="give the address without a path, as in http://127.0.0.1:8000",
        )
    listed = answer.json()
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list) or not data or not isinstance(data[0], dict) or "id" not in data[0]:
        raise ServerError("the server lists no model", where=f"{base}/v1/models")
    return dict(data[0])


def vocab_size(base: str, headers: Mapping[str, str] | None = None) -> int | None:
    """Tokens of the vocabulary, where the server's list of models says it (the embedded engine does)."""
    return _whole(first_model(base, headers).get("vocab_size"))


def _metrics(
    base: str, headers: Mapping[str, str] | None, timeout_s: float
) -> tuple[str | None, int | None, Mapping[str, str]]:
    answer = _optional(base, "/metrics", headers, timeout_s)
    if answer is None:
        return None, None, {}
    text = answer.text()
    samples = list(parse(text))
    engine = engine_of(samples)
    if engine is None:
        return None, None, {}
    pool = to_sample(text, engine, 0.0).pool_tokens
    labels = next((sample.labels for sample in samples if sample.name.endswith(":cache_config_info")), {})
    return engine, None if pool is None else int(pool), labels


def _method(engine: str | None, said: Mapping[str, Any], labels: Mapping[str, str]) -> str | None:
    """The method as the server states it: an engine's own dtype name comes as ``raw:``, and only as a claim."""
    if engine == "embedded":
        method = said.get("method")
        return method if isinstance(method, str) else None
    dtype = labels.get("cache_dtype") if engine == "vllm" else said.get("kv_cache_dtype")
    if not isinstance(dtype, str):
        return None
    return "none" if dtype in {"auto", "bfloat16", "float16", "bf16"} else f"raw:{dtype}"


def _prefix_cache(engine: str | None, said: Mapping[str, Any], labels: Mapping[str, str]) -> str | None:
    if engine == "sglang":
        disabled = said.get("disable_radix_cache")
        return None if not isinstance(disabled, bool) else "off" if disabled else "on"
    enabled = labels.get("enable_prefix_caching")
    return {"True": "on", "False": "off"}.get(enabled) if enabled is not None else None


def _optional(base: str, path: str, headers: Mapping[str, str] | None, timeout_s: float) -> Answer | None:
    try:
        answer = request(f"{base}{path}", headers=headers, timeout_s=timeout_s, limit=METRICS_LIMIT)
    except KvloadError:
        return None
    return answer if answer.ok else None


def _optional_json(base: str, path: str, headers: Mapping[str, str] | None, timeout_s: float) -> dict[str, Any]:
    answer = _optional(base, path, headers, timeout_s)
    if answer is None:
        return {}
    try:
        value = answer.json()
    except KvloadError:
        return {}
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
