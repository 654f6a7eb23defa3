"""Requests as they come over HTTP: checked field by field, errors in OpenAI's shape."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvload.servers.embedded.core.sequence import SamplingParams

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGPROBS = 20
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "use_beam_search": (False,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "structured_outputs": (),
}
"""Fields that would change the answer and are not implemented, with the values that ask for nothing (null always)."""


class RequestError(Exception):
    """A request that gets an error instead of an answer.

    Args:
        status: the HTTP status.
        message: what is wrong.
        param: the field it concerns.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return error_body(self.status, self.message, self.param)


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = {400: "BadRequestError", 404: "NotFoundError", 413: "RequestTooLargeError"}.get(status)
    kind = kind or ("InternalServerError" if status >= 500 else "BadRequestError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True)
class GenerationRequest:
    """A request for text, of either endpoint.

    Attributes:
        prompt: text, token ids, or chat messages.
        max_tokens: None for the rest of the context.
        options: what the sampler needs, ``max_tokens`` not yet settled.
        return_token_ids: send the ids with each chunk.
        include_usage: send a last chunk with the usage.
        continuous_usage: send the usage so far with every chunk.
        echo: the prompt is part of the answer.
    """

    chat: bool
    prompt: str | list[int] | list[dict[str, Any]]
    max_tokens: int | None
    options: Mapping[str, Any]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    echo: bool
    template_options: Mapping[str, Any]

    def params(self, max_tokens: int) -> SamplingParams:
        """The sampler's parameters once the prompt's length is known."""
        return SamplingParams(max_tokens=max_tokens, **self.options)


class _Fields:
    """Typed access to a JSON object; every refusal names its field."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise RequestError(400, f"{name} must be a number from {low:g} to {high:g}", name)
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int = 2**63 - 1) -> int | None:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            limit = f"from {low} to {high}" if high < 2**31 else f"of at least {low}"
            raise RequestError(400, f"{name} must be a whole number {limit}", name)
        return value

    def flag(self, name: str) -> bool:
        value = self._body.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise RequestError(400, f"{name} must be true or false", name)
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._body.get(name)
        texts = [value] if isinstance(value, str) else value or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError(400, f"{name} must be a string or a list of strings", name)
        if len(texts) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_LENGTH for text in texts):
            raise RequestError(
                400, f"{name} takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters", name
            )
        return tuple(texts)


def parse_json(raw: bytes) -> dict[str, Any]:
    """A request body as an object.

    Raises:
        RequestError: it is not one.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object")
    return body


def parse_request(body: Mapping[str, Any], *, chat: bool, model: str) -> GenerationRequest:
    """Check a request for text.

    Args:
        body: the JSON object.
        chat: whether it came to ``/v1/chat/completions``.
        model: the served name.

    Raises:
        RequestError: 404 for another model, 400 for a field that is wrong or not supported.
    """
    asked = body.get("model")
    if asked is not None and asked != model:
        raise RequestError(404, f"The model `{str(asked)[:200]}` does not exist.", "model")
    for name, neutral in UNSUPPORTED.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            raise RequestError(400, f"{name} is not supported by this server", name)
    fields = _Fields(body)
    max_tokens = fields.integer("max_tokens", None, 0)
    if chat or max_tokens is None:
        max_tokens = fields.integer("max_completion_tokens", max_tokens, 0)
    min_tokens = fields.integer("min_tokens", 0, 0) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise RequestError(400, f"min_tokens ({min_tokens}) is more than max_tokens ({max_tokens})", "min_tokens")
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise RequestError(400, "stream_options must be an object", "stream_options")
    echo = fields.flag("echo")
    logprobs = _logprobs(fields, body, chat=chat)
    prompt_logprobs = fields.integer("prompt_logprobs", None, 0, MAX_LOGPROBS)
    if echo and logprobs is not None and prompt_logprobs is None:
        prompt_logprobs = logprobs
    template_options = body.get("chat_template_kwargs") or {}
    if not isinstance(template_options, dict) or template_options.keys() & {"tokenize", "add_generation_prompt"}:
        raise RequestError(400, "chat_template_kwargs must be an object of template variables", "chat_template_kwargs")
    stop_ids = body.get("stop_token_ids") or []
    if not _is_ids(stop_ids) and stop_ids:
        raise RequestError(400, "stop_token_ids must be a list of token ids", "stop_token_ids")
    return GenerationRequest(
        chat=chat,
        prompt=_messages(body) if chat else _prompt(body),
        max_tokens=max_tokens,
        options={
            "min_tokens": min_tokens,
            "temperature": fields.number("temperature", 1.0, 0.0, 100.0),
            "top_p": _top_p(fields),
            "top_k": max(0, fields.integer("top_k", 0, -1, 2**31 - 1) or 0),
            "seed": fields.integer("seed", None, -(2**63)),
            "ignore_eos": fields.flag("ignore_eos"),
            "stop": fields.strings("stop"),
            "stop_token_ids": frozenset(stop_ids),
            "logprobs": logprobs,
            "prompt_logprobs": prompt_logprobs,
        },
        stream=fields.flag("stream"),
        include_usage=bool(stream_options.get("include_usage")),
        continuous_usage=bool(stream_options.get("continuous_usage_stats")),
        return_token_ids=fields.flag("return_token_ids"),
        echo=echo,
        template_options=template_options,
    )


def _top_p(fields: _Fields) -> float:
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    if top_p == 0.0:
        raise RequestError(400, "top_p must be above 0", "top_p")
    return top_p


def _logprobs(fields: _Fields, body: Mapping[str, Any], *, chat: bool) -> int | None:
    if not chat:
        return fields.integer("logprobs", None, 0, MAX_LOGPROBS)
    if not fields.flag("logprobs"):
        if body.get("top_logprobs"):
            raise RequestError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        return None
    return fields.integer("top_logprobs", 0, 0, MAX_LOGPROBS)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


def _prompt(body: Mapping[str, Any]) -> str | list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        if not prompt:
            raise RequestError(400, "prompt is empty", "prompt")
        return prompt
    if not _is_ids(prompt):
        many = isinstance(prompt, list) and len(prompt) > 1 and isinstance(prompt[0], list | str)
        wanted = "one prompt a request is supported" if many else "prompt must be a text or a list of token ids"
        raise RequestError(400, wanted, "prompt")
    return list(prompt)  # type: ignore[arg-type]


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages must be a list with at least one message", "messages")
    checked = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(400, "every message must be an object with a role", "messages")
        content = message.get("content")
        if isinstance(content, list):
            parts = [
                part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
            ]
            if not all(isinstance(part, str) for part in parts):
                raise RequestError(400, "message content may hold text only", "messages")
            content = "".join(str(part) for part in parts)
        elif content is not None and not isinstance(content, str):
            raise RequestError(400, "message content must be text", "messages")
        checked.append({**message, "content": content or ""})
    return checked
