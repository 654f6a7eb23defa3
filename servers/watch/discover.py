"""What an OpenAI-compatible server says about itself, whoever started it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from kvload.address import Address
from kvload.errors import KvloadError, ServerError, UsageError
from kvload.http import Answer, request
from kvload.records import ServerInfo
from kvload.servers.engines.base import Adapter, Reported, Said
from kvload.servers.watch.prometheus import parse
from kvload.servers.watch.scrape import METRICS_LIMIT, engine_of, to_sample
from kvload.untrusted import DECODE_ERRORS

BEHIND_PATH = "/kvload/servers"
"""Where a router lists the servers behind it."""

BEHIND_MOST = 256
TOKENS_LIMIT = 64 * 1024 * 1024
"""Bytes of an answer of ``/tokenize`` that are read: the ids of millions of tokens."""


def server_info(
    base: Address, headers: Mapping[str, str] | None = None, *, model: str | None = None, timeout_s: float = 10.0
) -> ServerInfo:
    """Ask a server for its model, engine, version and cache.

    Only ``/v1/models`` must answer, and not even that where the model is named; what else is missing stays None.

    Args:
        base: its address.
        headers: sent along, such as ``Authorization``.
        model: the name to ask for; the server's first where None.

    Raises:
        ServerError: nothing answers there, or no OpenAI-compatible server, or it serves no model.
        UsageError: the server lists its models, and ``model`` is not among them.
    """
    listed = _model_entry(base, headers, model, timeout_s)
    made, pool_tokens, labels = _metrics(base, headers, timeout_s)
    info = _optional_json(base, Adapter.info_path if made is None else made.info_path, headers, timeout_s)
    reported = Reported() if made is None else made.reported(Said(info, labels))
    context = listed.get("max_model_len")
    version = info.get("version")
    return ServerInfo(
        url=base.url,
        engine=None if made is None else made.name,
        engine_version=version if isinstance(version, str) else None,
        model=str(listed["id"]),
        method=reported.method,
        max_model_len=context if isinstance(context, int) else reported.max_model_len,
        pool_tokens=reported.pool_tokens if pool_tokens is None else pool_tokens,
        prefix_cache=reported.prefix_cache,
        device=_word(info.get("device")),
        dtype=_word(info.get("dtype")),
        threads=_whole(info.get("threads")),
        kernels=_word(info.get("kernels")),
    )


def first_model(base: Address, headers: Mapping[str, str] | None = None, *, timeout_s: float = 10.0) -> dict[str, Any]:
    """The first entry of ``/v1/models``.

    Raises:
        ServerError: there is none.
    """
    answer = request(base, "/v1/models", headers=headers, timeout_s=timeout_s)
    if answer.status in {401, 403}:
        raise ServerError(
            "the server wants an API key",
            where=base.url,
            hint="give it with --api-key or KVLOAD_API_KEY",
        )
    _check_redirect(base, answer)
    if not answer.ok:
        raise ServerError(
            f"{base.target('/v1/models')} answered {answer.status}: no OpenAI-compatible server",
            where=base.url,
            hint="give the address that /v1/models is below, as in http://127.0.0.1:8000; without such a list, --model",
        )
    listed = answer.json()
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list) or not data or not isinstance(data[0], dict) or "id" not in data[0]:
        raise ServerError("the server lists no model", where=base.at("/v1/models"))
    return dict(data[0])


def _check_redirect(base: Address, answer: Answer) -> None:
    if 300 <= answer.status < 400 and answer.status != 304:
        # what stands behind the path may be a key
        place = (answer.location or "").partition("?")[0] or "another address"
        raise ServerError(
            f"the server redirects to {place[:200]}",
            where=base.url,
            hint="redirects are not followed, since each would be timed as a part of the answer: give that address",
        )


def _model_entry(
    base: Address, headers: Mapping[str, str] | None, model: str | None, timeout_s: float
) -> dict[str, Any]:
    """The model's entry in ``/v1/models``; a bare one where it is named and there is no such list."""
    if model is None:
        return first_model(base, headers, timeout_s=timeout_s)
    answer = request(base, "/v1/models", headers=headers, timeout_s=timeout_s)
    if answer.status in {401, 403}:
        return first_model(base, headers, timeout_s=timeout_s)
    _check_redirect(base, answer)
    try:
        listed = answer.json() if answer.ok else None
    except KvloadError:
        listed = None
    data = listed.get("data") if isinstance(listed, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict) and "id" in entry] if isinstance(data, list) else []
    for entry in entries:
        if str(entry["id"]) == model:
            return dict(entry)
    names = [str(entry["id"]) for entry in entries]
    # a gateway's list may hold patterns
    if names and not any("*" in name for name in names):
        more = f" and {len(names) - 5} others" if len(names) > 5 else ""
        raise UsageError(f"the server has {', '.join(names[:5])}{more}", where=f"--model {model}")
    return {"id": model}


def served_models(base: Address, headers: Mapping[str, str] | None = None) -> list[str]:
    """The names that the server lists; none where it does not list any."""
    listed = _optional_json(base, "/v1/models", headers, 10.0).get("data")
    models = listed if isinstance(listed, list) else []
    return [str(model["id"]) for model in models if isinstance(model, dict) and "id" in model]


def token_count(base: Address, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> int | None:
    """How many tokens a prompt has, by the server's ``/tokenize`` (vLLM's, SGLang's and the embedded engine's).

    Args:
        body: ``model`` and ``prompt``, or ``messages`` with what their chat template takes.

    Returns:
        None where the server does not tell.
    """
    try:
        answer = request(base, "/tokenize", body=dict(body), headers=headers, timeout_s=30.0, limit=TOKENS_LIMIT)
        said = answer.json() if answer.ok else None
    except KvloadError:
        return None
    return _whole(said.get("count")) if isinstance(said, dict) else None


def vocab_size(base: Address, headers: Mapping[str, str] | None = None) -> int | None:
    """Tokens of the vocabulary, where the server's list of models says it (the embedded engine does)."""
    listed = _optional_json(base, "/v1/models", headers, 10.0).get("data")
    first = listed[0] if isinstance(listed, list) and listed else None
    return _whole(first.get("vocab_size")) if isinstance(first, dict) else None


def servers_behind(base: Address, headers: Mapping[str, str] | None = None) -> list[ServerInfo]:
    """The servers that a router sends requests to, as it lists them at :data:`BEHIND_PATH`; none of any other server.

    Raises:
        ServerError: it lists what are no servers, or more than :data:`BEHIND_MOST`.
    """
    answer = _optional(base, BEHIND_PATH, headers, 10.0)
    if answer is None or answer.body[:1] != b"[":
        return []
    try:
        found = msgspec.json.decode(answer.body, type=list[ServerInfo])
    except DECODE_ERRORS as error:
        raise ServerError(f"the list of servers does not parse: {error}", where=f"{base}{BEHIND_PATH}") from error
    if len(found) > BEHIND_MOST or not all(one.name for one in found):
        raise ServerError(
            f"the list of servers holds {len(found)}, some without a name or too many", where=f"{base}{BEHIND_PATH}"
        )
    return found


def _metrics(
    base: Address, headers: Mapping[str, str] | None, timeout_s: float
) -> tuple[Adapter | None, int | None, Mapping[str, str]]:
    answer = _optional(base, "/metrics", headers, timeout_s)
    if answer is None:
        return None, None, {}
    text = answer.text()
    samples = list(parse(text))
    made = engine_of(samples)
    if made is None:
        return None, None, {}
    pool = to_sample(text, made.name, 0.0).pool_tokens
    labels = next((sample.labels for sample in samples if sample.name.endswith(":cache_config_info")), {})
    return made, None if pool is None else int(pool), labels


def _optional(base: Address, path: str, headers: Mapping[str, str] | None, timeout_s: float) -> Answer | None:
    try:
        answer = request(base, path, headers=headers, timeout_s=timeout_s, limit=METRICS_LIMIT)
    except KvloadError:
        return None
    return answer if answer.ok else None


def _optional_json(base: Address, path: str, headers: Mapping[str, str] | None, timeout_s: float) -> dict[str, Any]:
    answer = _optional(base, path, headers, timeout_s)
    if answer is None:
        return {}
    try:
        value = answer.json()
    except KvloadError:
        return {}
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and value != "auto" else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
