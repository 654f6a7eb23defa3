"""The HTTP side: an OpenAI-compatible API over the engine."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.web import RequestPayloadError

from kvload.servers.embedded.cache.api import KVCache
from kvload.servers.embedded.core.engine import Engine
from kvload.servers.embedded.core.metrics import Metrics
from kvload.servers.embedded.core.sequence import Delta
from kvload.servers.embedded.core.tokenizer import Tokenizer
from kvload.servers.embedded.serving.answers import Answer
from kvload.servers.embedded.serving.delivery import Mailbox, stream
from kvload.servers.embedded.serving.protocol import (
    GenerationRequest,
    RequestError,
    error_body,
    parse_json,
    parse_request,
)

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**20
LONG_TEXT = 4096
"""Characters from which on a prompt is templated and tokenised beside the event loop, not on it."""
LONG_BODY = 1 << 18
"""Bytes from which on a body is parsed beside the event loop."""
BODY_TIMEOUT_S = 60.0
"""How long a request's body may take to arrive."""
MESSAGE_CHARACTERS = 4
"""What a message counts besides its text: a template writes at least its role."""


@dataclass(frozen=True)
class Service:
    """Everything the handlers need.

    Attributes:
        info: what ``/version`` answers.
        most_characters: of a prompt: longer ones cannot be within ``max_model_len``, whatever they say.
    """

    engine: Engine
    cache: KVCache
    tokenizer: Tokenizer
    metrics: Metrics
    model: str
    model_path: str
    vocab_size: int
    max_model_len: int
    info: Mapping[str, Any]
    created: int
    most_characters: int


SERVICE = web.AppKey("service", Service)


def build_app(service: Service) -> web.Application:
    """The application with all its routes."""
    # JSON writes a character in at most 12 bytes; what else a request says is short.
    most_bytes = min(MAX_BODY_BYTES, max(1 << 20, 12 * service.most_characters))
    app = web.Application(client_max_size=most_bytes, middlewares=[errors_as_json])
    app[SERVICE] = service
    app.add_routes(
        [
            web.get("/health", health),
            web.get("/metrics", metrics),
            web.get("/version", version),
            web.get("/v1/models", models),
            web.post("/tokenize", tokenize),
            web.post("/v1/completions", completions),
            web.post("/v1/chat/completions", chat_completions),
        ]
    )
    return app


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every refusal and failure in OpenAI's shape; a failure is that of one request only."""
    try:
        return await handler(request)
    except RequestError as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPException as error:
        message = error.text or error.reason
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            limit = request.client_max_size
            message = f"the body is larger than {limit} bytes, more than any prompt within the context takes"
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response(error_body(error.status, message), status=error.status, headers=headers)
    except ConnectionError:
        raise
    except Exception as error:
        logger.exception("%s %s failed", request.method, request.path)
        return web.json_response(error_body(500, f"{type(error).__name__}: {error}"), status=500)


async def health(request: web.Request) -> web.Response:
    """200 while the engine's thread serves."""
    return web.Response(status=200 if request.app[SERVICE].engine.alive else 503)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    return web.Response(text=request.app[SERVICE].metrics.render(), content_type="text/plain", charset="utf-8")


async def version(request: web.Request) -> web.Response:
    """Versions and the settings that bear on speed."""
    return web.json_response(dict(request.app[SERVICE].info))


async def models(request: web.Request) -> web.Response:
    """The one model."""
    service = request.app[SERVICE]
    entry = {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "kvload",
        "root": service.model_path,
        "parent": None,
        "max_model_len": service.max_model_len,
        "vocab_size": service.vocab_size,
    }
    return web.json_response({"object": "list", "data": [entry]})


async def _body(http: web.Request) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        RequestError: 408 for a body that does not come, 400 for one that is not what its headers say, or no JSON.
    """
    try:
        raw = await asyncio.wait_for(http.read(), BODY_TIMEOUT_S)
    except TimeoutError:
        raise RequestError(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from None
    except (RequestPayloadError, ContentEncodingError) as error:
        raise RequestError(400, "the body is not what its headers say it is (length, chunks or compression)") from error
    return parse_json(raw) if len(raw) < LONG_BODY else await asyncio.to_thread(parse_json, raw)


async def tokenize(request: web.Request) -> web.Response:
    """Token ids of a text, or of messages under the model's chat template."""
    service = request.app[SERVICE]
    body = await _body(request)
    if "messages" in body:
        asked = parse_request({"model": service.model, **body}, chat=True, model=service.model)
        tokens = await _prompt(service, asked, counting=True)
    else:
        text = body.get("prompt")
        if not isinstance(text, str):
            raise RequestError(400, "prompt must be a text", "prompt")
        tokens = await _encode(service, text)
    return web.json_response({"tokens": tokens, "count": len(tokens), "max_model_len": service.max_model_len})


async def completions(request: web.Request) -> web.StreamResponse:
    """``/v1/completions``."""
    return await _generate(request, chat=False)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """``/v1/chat/completions``."""
    return await _generate(request, chat=True)


async def _generate(http: web.Request, *, chat: bool) -> web.StreamResponse:
    service = http.app[SERVICE]
    asked = parse_request(await _body(http), chat=chat, model=service.model)
    prompt = await _prompt(service, asked)
    max_tokens = _settle_max_tokens(service, asked, len(prompt))
    text = ""
    if asked.echo:
        text = asked.prompt if isinstance(asked.prompt, str) else service.tokenizer.decode(prompt)
    answer = Answer(
        asked,
        prompt,
        text,
        model=service.model,
        number=uuid.uuid4().hex,
        created=int(time.time()),
        tokenizer=service.tokenizer,
    )
    mailbox = Mailbox()
    sequence = service.engine.submit(prompt, asked.params(max_tokens), mailbox.put)
    try:
        _raise_failure(await mailbox.first())
        if asked.stream:
            return await stream(http, mailbox, answer)
        deltas = await mailbox.all()
        _raise_failure(deltas[-1])
        return web.json_response(answer.document(deltas))
    finally:
        service.engine.cancel(sequence)


def _raise_failure(delta: Delta) -> None:
    if delta.error is not None:
        raise RequestError(500, delta.error)


async def _prompt(service: Service, asked: GenerationRequest, *, counting: bool = False) -> list[int]:
    """A request's tokens; where they are only counted they may be more than the context."""
    if not counting:
        _refuse_endless(service, asked)
    try:
        if isinstance(asked.prompt, str):
            tokens = await _encode(service, asked.prompt)
        elif asked.chat:
            tokens = await _template(service, asked)
        else:
            tokens = asked.prompt  # type: ignore[assignment]
    except ValueError as error:
        raise RequestError(400, str(error), "messages" if asked.chat else "prompt") from error
    if not tokens:
        raise RequestError(400, "the prompt has no tokens", "prompt")
    if max(tokens) >= service.vocab_size:
        raise RequestError(400, f"token id {max(tokens)} is outside the vocabulary of {service.vocab_size}", "prompt")
    return tokens


async def _template(service: Service, asked: GenerationRequest) -> list[int]:
    messages: list[dict[str, Any]] = asked.prompt  # type: ignore[assignment]
    if _characters(asked) < LONG_TEXT:
        return service.tokenizer.chat(messages, asked.template_options)
    return await asyncio.to_thread(service.tokenizer.chat, messages, asked.template_options)


def _characters(asked: GenerationRequest) -> int:
    if not asked.chat:
        return len(asked.prompt) if isinstance(asked.prompt, str) else 0
    messages: list[dict[str, Any]] = asked.prompt  # type: ignore[assignment]
    return sum(len(message["content"]) + MESSAGE_CHARACTERS for message in messages)


def _refuse_endless(service: Service, asked: GenerationRequest) -> None:
    """Refuse a prompt whose length alone says that it is beyond the context, before it is tokenised.

    Raises:
        RequestError: it is.
    """
    characters = _characters(asked)
    if characters > service.most_characters:
        raise RequestError(
            400,
            f"This model's maximum context length is {service.max_model_len} tokens, which is at most "
            f"{service.most_characters} characters. However, your prompt has {characters}.",
            "messages" if asked.chat else "prompt",
        )


async def _encode(service: Service, text: str) -> list[int]:
    try:
        if len(text) < LONG_TEXT:
            return service.tokenizer.encode(text)
        return await asyncio.to_thread(service.tokenizer.encode, text)
    except ValueError as error:
        raise RequestError(400, str(error), "prompt") from error


def _settle_max_tokens(service: Service, asked: GenerationRequest, prompt: int) -> int:
    """The answer's limit: as asked, or the rest of the context.

    Raises:
        RequestError: 400 if the context is too short, 413 if the cache could never hold the request.
    """
    limit = service.max_model_len
    rest = limit - prompt
    wanted = rest if asked.max_tokens is None else asked.max_tokens
    if rest < 0 or (rest == 0 and wanted == 0 and asked.max_tokens is None) or wanted > rest:
        raise RequestError(
            400,
            f"This model's maximum context length is {limit} tokens. However, you requested {max(wanted, 0)} output "
            f"tokens and your prompt contains {prompt} input tokens, for a total of {prompt + max(wanted, 0)} tokens.",
            "max_tokens" if rest > 0 else "prompt",
        )
    if wanted < asked.options["min_tokens"]:
        raise RequestError(400, f"min_tokens is more than the {wanted} tokens there is room for", "min_tokens")
    if not service.cache.fits(prompt, wanted):
        raise RequestError(
            413,
            f"The KV cache of {service.cache.pool_tokens} tokens can never hold this request: {prompt} input tokens "
            f"and {wanted} output tokens. Start the server with more --kv-memory.",
            "prompt",
        )
    return wanted
