"""How the mock server behaves: timing and faults, both by seed and by request, never by chance of the moment."""

import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvload.errors import UsageError

FAULTS: Mapping[str, str] = {
    "refused": "the connection is reset before any byte of the answer",
    "reset": "the connection is reset in the middle of the stream",
    "truncated": "the connection is closed in the middle of the stream, without the last HTTP chunk",
    "no_done": "the HTTP answer ends properly, but in the middle of the stream and without [DONE]",
    "stall": "the stream stops in the middle and the connection stays open",
    "stall_headers": "nothing is ever answered and the connection stays open",
    "http_400": "status 400 with an OpenAI error object",
    "http_429": "status 429 with an OpenAI error object",
    "http_500": "status 500 with an OpenAI error object",
    "http_503": "status 503 with a body that is not JSON",
    "stream_error": "status 200, some tokens, then an error event and [DONE]",
    "garbage": "an event in the middle of the stream that is not JSON",
    "garbage_http": "bytes that are not HTTP",
    "bad_chunk": "a broken HTTP chunk size in the middle of the stream",
    "half": "every event is written in two halves (no failure)",
    "slow_headers": "the response's head comes a few bytes at a time (no failure)",
    "close_delimited": "no chunked transfer: the answer ends with the connection (no failure)",
    "close_after": "the connection is closed right after a whole answer, without saying so (no failure)",
}
"""Everything that can be made to go wrong, by name."""

ODDITIES: Mapping[str, str] = {
    "usage_zero": "the server counts 0 tokens",
    "usage_zero_everywhere": "the server counts 0 tokens in every chunk",
    "usage_negative": "the server counts -7 tokens",
    "usage_short": "the server counts half of its tokens",
    "usage_absurd": "the server counts 10^30 tokens",
    "usage_absurd_everywhere": "the server counts 10^30 tokens in every chunk",
    "usage_inflated": "the server counts more tokens than were asked for",
    "usage_beyond_text": "the server counts more tokens than its text has bytes",
    "usage_jumps": "a running count that is right until the last chunk, and three times as large behind it",
    "usage_missing": "no usage",
    "ends_early": "the answer ends by itself after half of the tokens, whatever min_tokens says",
    "runs_on": "the answer is twice as long as max_tokens allows",
    "two_answers": "every chunk holds a piece of two answers",
    "logprobs_uncounted": "no usage, but log probabilities of every token",
    "list_error": "an error in a list is all that comes, with status 200",
    "chunks_counted": "the server counts its chunks, however many tokens they hold",
    "cached_absurd": "the server counts more cached tokens than the prompt has",
    "usage_as_float": "the count is written as 10.0",
    "usage_running": "a running count in every chunk",
    "usage_late": "a running count that is 0 until the last chunk",
    "usage_lagging": "a running count that is one behind",
    "end_token": "the end of the sequence is counted, but has no chunk",
    "reasoning": "half of the answer is reasoning",
    "thinking": "half of the answer is reasoning under another name",
    "reasoning_uncounted": "half of the answer is reasoning, which the server does not count",
    "tool_calls": "the answer is a tool call",
    "refusal": "the answer is a refusal",
    "aborted": "the answer ends with finish_reason abort",
    "finish_error": "the answer ends with finish_reason error",
    "aborted_then_stopped": "the answer ends with finish_reason abort, and then with stop",
    "finish_empty": "the answer ends with an empty finish_reason",
    "finish_null": "the answer ends with the text null as finish_reason",
    "finish_unknown": "the answer ends with a finish_reason nobody knows",
    "done_alone": "the answer ends with [DONE] and no finish_reason",
    "event_error": "an event of the kind error ends the answer",
    "object_error": "a chunk of the object error ends the answer",
    "error_code": "a chunk with an error_code ends the answer (FastChat)",
    "field_error": "a line error: JSON ends the answer (llama.cpp)",
    "choice_error": "an error inside a choice ends the answer",
    "delta_error": "an error inside a delta ends the answer",
    "bare_error": "an event that is no chunk, of the type error, stands before a good ending",
    "error_first": "an error is all that comes",
    "error_null": "every chunk says error: null",
    "error_empty": "every chunk says error: ''",
    "empty_answer": "an answer without a token",
    "usage_without_text": "an answer without text, for which tokens are counted",
    "keep_alives": "comments and empty chunks at once, before the first token",
    "closing_empty": "an empty chunk behind the last token",
    "done_spaced": "[DONE] with white space around it",
    "done_twice": "[DONE] twice",
    "text_after_done": "text behind [DONE]",
    "list_content": "text as a list of parts",
    "infinite_logprobs": "log probabilities of -Infinity and NaN",
    "surrogate_halves": "every chunk holds half of a surrogate pair",
    "no_utf8": "a chunk whose text is no UTF-8",
    "deep_event": "a chunk nested 2,000 deep",
    "huge_metrics": "a time of 400 digits",
    "deep_error_body": "status 500 with a body nested 2,000 deep",
    "bursts": "a proxy gathers the whole answer and passes it on at once",
    "first_gathered": "the first three chunks come with the third, the others on time",
    "whole_json": "the answer is not streamed",
    "html": "status 200 with a page of a gateway",
    "no_last_chunk": "[DONE], but the HTTP body never ends",
    "closed_after_done": "[DONE], but the connection is closed without the end of the HTTP body",
    "bytes_after_end": "bytes behind the end of the HTTP body",
    "bytes_after_early_end": "bytes behind the end of an HTTP body whose answer has no end",
    "runaway": "an answer of 80 MiB in many chunks",
    "too_large": "an answer that says it has 1.6 GiB",
}
"""What servers and proxies were seen to send besides what they should, by name; see
:mod:`kvload.workloads.mock.oddities`."""

BEHAVIOURS: Mapping[str, str] = {**FAULTS, **ODDITIES}
"""Everything that a request may be answered with, by name."""

HARMLESS = frozenset({"half", "slow_headers", "close_delimited", "close_after"})
"""Faults after which the answer is still whole."""

_IN_REQUEST = re.compile(rb"fault:([a-z_0-9]+)")


@dataclass(frozen=True)
class MockSettings:
    """What the mock server does.

    Attributes:
        ttft_s: from the arrival of a request to its first token.
        itl_s: from one chunk to the next.
        jitter: every time is multiplied by a factor drawn uniformly from ``1 - jitter`` to ``1 + jitter``.
        tokens_per_chunk: tokens in every chunk but the last.
        faults: probability of each of :data:`BEHAVIOURS`; at most one strikes a request. A request that holds
            ``fault:NAME`` gets that fault for certain.
        slots: requests answered at a time, the others wait their turn; None for no limit.
        default_tokens: answer length where the request has no ``max_tokens``.
        max_model_len: prompt and answer together, in tokens; longer requests get status 400.
        prefix_block: tokens of a block of its prefix cache, which never gives one up: answers say how much of their
            prompt it held. None for no such cache, and no word of it.
    """

    ttft_s: float = 0.05
    itl_s: float = 0.01
    jitter: float = 0.0
    tokens_per_chunk: int = 1
    seed: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)
    slots: int | None = None
    model: str = "mock"
    default_tokens: int = 128
    max_model_len: int = 1 << 20
    prefix_block: int | None = None

    def __post_init__(self) -> None:
        if self.ttft_s < 0 or self.itl_s < 0 or not 0 <= self.jitter <= 1:
            raise UsageError("times must not be negative and jitter lies between 0 and 1", where="mock")
        if self.tokens_per_chunk < 1:
            raise UsageError("must be at least 1", where="--tokens-per-chunk")
        if self.prefix_block is not None and self.prefix_block < 1:
            raise UsageError("must be at least 1", where="--prefix-block")
        for name, probability in self.faults.items():
            if name not in BEHAVIOURS:
                known = ", ".join(BEHAVIOURS)
                raise UsageError(f"no such fault: '{name}'", where="--fail", hint=f"known: {known}")
            if not 0 <= probability <= 1:
                raise UsageError(f"the probability of '{name}' must lie between 0 and 1", where="--fail")
        if sum(self.faults.values()) > 1 + 1e-9:
            raise UsageError("the probabilities add up to more than 1", where="--fail")


@dataclass(frozen=True)
class AnswerPlan:
    """One answer: its fault, and a factor for its first token and for every later chunk (None: exactly on time)."""

    fault: str | None
    factors: list[float] | None
    first_word: int


def plan_answer(settings: MockSettings, body: bytes, chunks: int) -> AnswerPlan:
    """Decide how one request is answered: the same request under the same settings is always answered alike.

    Args:
        body: the request as received.
        chunks: chunks the answer has.
    """
    digest = zlib.crc32(body, settings.seed & 0xFFFFFFFF)
    wanted = _IN_REQUEST.search(body)
    fault = wanted.group(1).decode() if wanted and wanted.group(1).decode() in BEHAVIOURS else None
    if fault is None and not settings.faults and not settings.jitter:
        return AnswerPlan(None, None, digest)
    rng = random.Random(digest)
    if fault is None and settings.faults:
        draw = rng.random()
        for name, probability in settings.faults.items():
            draw -= probability
            if draw < 0:
                fault = name
                break
    factors = None
    if settings.jitter:
        low, high = 1 - settings.jitter, 1 + settings.jitter
        factors = [rng.uniform(low, high) for _ in range(chunks)]
    return AnswerPlan(fault, factors, digest)


def parse_faults(text: str) -> dict[str, float]:
    """Read ``reset=0.05,stall=0.01``; a bare name means certainty.

    Raises:
        UsageError: a probability is not a number.
    """
    faults: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, number = part.partition("=")
        try:
            faults[name] = float(number) if number else 1.0
        except ValueError as error:
            raise UsageError(f"'{number}' is not a probability", where="--fail") from error
    return faults
