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
        faults: probability of each fault of :data:`FAULTS`; at most one strikes a request. A request that holds
            ``fault:NAME`` gets that fault for certain.
        slots: requests answered at a time, the others wait their turn; None for no limit.
        default_tokens: answer length where the request has no ``max_tokens``.
        max_model_len: prompt and answer together, in tokens; longer requests get status 400.
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

    def __post_init__(self) -> None:
        if self.ttft_s < 0 or self.itl_s < 0 or not 0 <= self.jitter <= 1:
            raise UsageError("times must not be negative and jitter lies between 0 and 1", where="mock")
        if self.tokens_per_chunk < 1:
            raise UsageError("must be at least 1", where="--tokens-per-chunk")
        for name, probability in self.faults.items():
            if name not in FAULTS:
                raise UsageError(f"no such fault: '{name}'", where="--fail", hint="known: " + ", ".join(FAULTS))
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
    fault = wanted.group(1).decode() if wanted and wanted.group(1).decode() in FAULTS else None
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
