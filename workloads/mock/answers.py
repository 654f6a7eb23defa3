"""The bytes the mock server sends: everything that repeats is serialised once."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from kvload.workloads.mock.behaviour import ODDITIES, AnswerPlan, MockSettings
from kvload.workloads.mock.oddities import odd_steps
from kvload.workloads.mock.steps import (
    CLOSE_HEAD,
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Action,
    Step,
    error_response,
    http_chunk,
    json_response,
)

WORDS = 256
"""Size of the mock's vocabulary; word ``i`` is the text ``" w<i>"`` and the token id ``1000 + i``."""


class Request(msgspec.Struct):
    """What the mock reads of a request; everything else is ignored."""

    model: str = "mock"
    prompt: str | list[Any] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    return_token_ids: bool = False

    def tokens(self) -> list[Any]:
        """The prompt's tokens: its ids, or the words of its text."""
        if isinstance(self.prompt, list):
            return self.prompt
        texts = [self.prompt or ""] if self.messages is None else [str(one.get("content")) for one in self.messages]
        return [word for text in texts for word in text.split()]

    def prompt_tokens(self) -> int:
        """Tokens in the prompt: ids are counted, text by its words."""
        if isinstance(self.prompt, list):
            return len(self.prompt)
        if isinstance(self.prompt, str):
            return max(1, len(self.prompt.split()))
        return sum(max(1, len(str(message.get("content", "")).split())) for message in self.messages or [])


def event(value: Any) -> bytes:
    """One server-sent event holding JSON, as vLLM writes it."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def words(first: int, count: int) -> str:
    """Text of ``count`` words of the vocabulary, starting with word ``first``."""
    return "".join(f" w{(first + offset) % WORDS}" for offset in range(count))


def _chunk(chat: bool, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    kind = "chat.completion.chunk" if chat else "text_completion"
    base = {"id": "chatcmpl-mock" if chat else "cmpl-mock", "object": kind, "created": 1700000000, "model": "mock"}
    return {**base, "choices": [choice] if choice else [], **more}


@functools.lru_cache(maxsize=1 << 16)
def token_event(chat: bool, with_ids: bool, first: int, count: int, finish: str | None) -> bytes:
    """The event of one token chunk: ``count`` words from word ``first`` on."""
    text = words(first, count)
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}} if chat else {"index": 0, "text": text}
    choice |= {"logprobs": None, "finish_reason": finish}
    if with_ids:
        choice["token_ids"] = [1000 + (first + offset) % WORDS for offset in range(count)]
    return event(_chunk(chat, choice))


@functools.lru_cache(maxsize=1 << 16)
def token_chunk(chat: bool, with_ids: bool, first: int, count: int, finish: str | None) -> bytes:
    """:func:`token_event` as a chunk of chunked transfer."""
    return http_chunk(token_event(chat, with_ids, first, count, finish))


ROLE_EVENT = event(_chunk(True, {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}))
ERROR_EVENT = event({"error": {"message": "the engine failed", "type": "InternalServerError", "code": 500}})


def _usage(prompt_tokens: int, tokens: int, cached: int | None) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    return usage if cached is None else {**usage, "prompt_tokens_details": {"cached_tokens": cached}}


def usage_event(
    chat: bool, prompt_tokens: int, tokens: int, queue_s: float, settings: MockSettings, cached: int | None = None
) -> bytes:
    """The last event: usage, and the server's own times for this request.

    Args:
        cached: tokens of the prompt that the prefix cache held; None where there is no such cache.
    """
    usage = _usage(prompt_tokens, tokens, cached)
    metrics = {
        "queue_time_ms": queue_s * 1e3,
        "prefill_time_ms": settings.ttft_s * 1e3,
        "decode_time_ms": max(0, tokens - 1) / settings.tokens_per_chunk * settings.itl_s * 1e3,
    }
    return event(_chunk(chat, {}, usage=usage, metrics=metrics))


def whole_answer(request: Request, chat: bool, tokens: int, first: int, cached: int | None = None) -> bytes:
    """The answer to a request that does not stream."""
    text = words(first % WORDS, tokens)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = _usage(request.prompt_tokens(), tokens, cached)
    return json_response("200 OK", {**_chunk(chat, choice), "usage": usage})


def steps(
    request: Request, chat: bool, tokens: int, plan: AnswerPlan, settings: MockSettings, cached: int | None = None
) -> Iterator[Step]:
    """Everything the server does for one streamed request, in order.

    Args:
        tokens: length of the answer.
        plan: its fault and its jitter.
        cached: tokens of the prompt that the prefix cache held; None where there is no such cache.
    """
    if plan.fault in ODDITIES:
        per_chunk = settings.tokens_per_chunk
        counts = [min(per_chunk, tokens - first) for first in range(0, tokens, per_chunk)]
        texts = [words(plan.first_word + number * per_chunk, count) for number, count in enumerate(counts)]
        return odd_steps(str(plan.fault), chat, texts, request.prompt_tokens(), settings)
    if plan.fault is None and plan.factors is None and tokens > 2 * settings.tokens_per_chunk:
        return _plain_steps(request, chat, tokens, plan.first_word, settings, cached)
    return _steps(request, chat, tokens, plan, settings, cached)


def _plain_steps(
    request: Request, chat: bool, tokens: int, first_word: int, settings: MockSettings, cached: int | None
) -> Iterator[Step]:
    """:func:`steps` where nothing goes wrong and everything is on time; no Python runs from chunk to chunk."""
    per_chunk, with_ids = settings.tokens_per_chunk, request.return_token_ids
    last = (tokens - 1) // per_chunk * per_chunk
    ttft_ns, itl_ns = round(settings.ttft_s * 1e9), round(settings.itl_s * 1e9)
    chunks = _chunks_by_word(chat, with_ids, per_chunk)
    opening = STREAM_HEAD + http_chunk(ROLE_EVENT) if chat else STREAM_HEAD
    first_word %= WORDS
    first: list[Step] = [(ttft_ns, chunks[first_word], Action.TOKENS)]
    if chat:
        # As vLLM: the chunk with the role comes with the first token's chunk at its heels, yet before it.
        first.insert(0, (0, opening, Action.NONE))
    else:
        first[0] = (ttft_ns, opening + chunks[first_word], Action.TOKENS)
    numbers = map(WORDS.__rmod__, range(first_word + per_chunk, first_word + last, per_chunk))
    middle = zip(itertools.repeat(itl_ns), map(chunks.__getitem__, numbers), itertools.repeat(Action.TOKENS))
    final = token_chunk(chat, with_ids, (first_word + last) % WORDS, tokens - last, "length")
    ending = http_chunk(DONE) + LAST_CHUNK
    if (request.stream_options or {}).get("include_usage"):
        ending = http_chunk(usage_event(chat, request.prompt_tokens(), tokens, 0.0, settings, cached)) + ending
    return itertools.chain(first, middle, [(itl_ns, final, Action.TOKENS), (0, ending, Action.FINISH)])


@functools.lru_cache(maxsize=64)
def _chunks_by_word(chat: bool, with_ids: bool, count: int) -> list[bytes]:
    """The chunks of ``count`` words that begin with each word of the vocabulary."""
    return [token_chunk(chat, with_ids, first, count, None) for first in range(WORDS)]


def _steps(
    request: Request, chat: bool, tokens: int, plan: AnswerPlan, settings: MockSettings, cached: int | None
) -> Iterator[Step]:
    per_chunk = settings.tokens_per_chunk
    chunks = -(-tokens // per_chunk)
    fault = plan.fault
    early = _before_the_stream(fault)
    if early is not None:
        yield from early
        return
    head = CLOSE_HEAD if fault == "close_delimited" else STREAM_HEAD
    wrap = (lambda payload: payload) if fault == "close_delimited" else http_chunk
    opening = wrap(ROLE_EVENT) if chat else b""
    factors = plan.factors
    ttft_ns, itl_ns = round(settings.ttft_s * 1e9), round(settings.itl_s * 1e9)
    first_gap = ttft_ns if factors is None else round(ttft_ns * factors[0])
    if fault == "slow_headers":
        pieces = [head[start : start + 40] for start in range(0, len(head), 40)]
        for piece in pieces:
            yield first_gap // (len(pieces) + 1), piece, Action.NONE
        first_gap -= len(pieces) * (first_gap // (len(pieces) + 1))
        head = b""
    prefix = head + opening
    if chat and prefix:
        # As vLLM: the chunk with the role comes with the first token's chunk at its heels, yet before it.
        yield 0, prefix, Action.NONE
        prefix = b""
    broken_at = max(1, chunks // 2) if fault in _IN_THE_STREAM else chunks + 1
    fast = wrap is http_chunk and fault != "half"
    with_ids = request.return_token_ids
    for number in range(chunks):
        if number == broken_at:
            break
        gap = first_gap if number == 0 else (itl_ns if factors is None else round(itl_ns * factors[number]))
        count = min(per_chunk, tokens - number * per_chunk)
        first = (plan.first_word + number * per_chunk) % WORDS
        finish = "length" if number == chunks - 1 else None
        if fast:
            yield gap, prefix + token_chunk(chat, with_ids, first, count, finish), Action.TOKENS
        elif fault == "half":
            payload = prefix + wrap(token_event(chat, with_ids, first, count, finish))
            middle = len(payload) // 2
            yield gap // 2, payload[:middle], Action.NONE
            yield gap - gap // 2, payload[middle:], Action.TOKENS
        else:
            yield gap, prefix + wrap(token_event(chat, with_ids, first, count, finish)), Action.TOKENS
        prefix = b""
    if broken_at <= chunks:
        yield (itl_ns, *_IN_THE_STREAM[str(fault)])
        return
    ending = b""
    if (request.stream_options or {}).get("include_usage"):
        ending += wrap(usage_event(chat, request.prompt_tokens(), tokens, 0.0, settings, cached))
    ending += wrap(DONE)
    if fault == "close_delimited":
        yield 0, ending, Action.CLOSE
    else:
        yield 0, ending + LAST_CHUNK, Action.CLOSE if fault == "close_after" else Action.FINISH


_IN_THE_STREAM: dict[str, tuple[bytes, int]] = {
    "reset": (b"", Action.RESET),
    "truncated": (b"", Action.CLOSE),
    "no_done": (LAST_CHUNK, Action.FINISH),
    "stall": (b"", Action.STALL),
    "stream_error": (http_chunk(ERROR_EVENT) + http_chunk(DONE) + LAST_CHUNK, Action.FINISH),
    "garbage": (http_chunk(b"data: {\xff\xfe not json\n\n") + http_chunk(DONE) + LAST_CHUNK, Action.FINISH),
    "bad_chunk": (b"zz\r\ndata: {}\n\n\r\n", Action.CLOSE),
}


def _before_the_stream(fault: str | None) -> list[Step] | None:
    """The whole answer of the faults that never come to a stream; None for the others."""
    whole: dict[str, Step] = {
        "refused": (0, b"", Action.RESET),
        "stall_headers": (0, b"", Action.STALL),
        "http_400": (0, error_response("400 Bad Request", "the mock refuses this"), Action.FINISH),
        "http_429": (0, error_response("429 Too Many Requests", "the mock is busy"), Action.FINISH),
        "http_500": (0, error_response("500 Internal Server Error", "the mock failed"), Action.FINISH),
        "http_503": (
            0,
            json_response("503 Service Unavailable", None, raw=b"not ready", kind="text/plain"),
            Action.FINISH,
        ),
        "garbage_http": (0, b"\x00\x01SSH-2.0 nonsense\r\n\r\n", Action.CLOSE),
    }
    step = whole.get(fault or "")
    return None if step is None else [step]
