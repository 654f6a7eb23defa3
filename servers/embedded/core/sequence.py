"""One request inside the engine: its tokens, how far they are computed, and when what happened to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


PROMPT_LOGPROB_CHUNK = 256
"""Prompt tokens a step computes of a request that wants prompt log probabilities: each needs a row of logits."""


class FinishReason(StrEnum):
    """Why an answer ended. ``stop`` and ``length`` are the API's words; the others never reach a client as such."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True)
class SamplingParams:
    """How a request's tokens are chosen and when its answer ends.

    Attributes:
        max_tokens: tokens to generate at most; 0 computes the prompt only.
        min_tokens: before this many tokens no end of sequence, stop token or stop string counts, and the
            end-of-sequence and stop tokens are not sampled.
        temperature: 0 is greedy.
        top_p, top_k: nucleus and rank limits; 1 and 0 are off.
        seed: of this request's own random stream; None draws from the engine's.
        ignore_eos: generate on after an end-of-sequence token.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer.
        logprobs: alternatives to report per generated token; None reports nothing.
        prompt_logprobs: alternatives to report per prompt token; None reports nothing.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log probability, its rank (1 is the likeliest), and the likeliest tokens beside it, best first."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Timings:
    """A finished request's times in seconds; None where the request never came that far.

    Attributes:
        queue_s: arrival until first scheduled.
        prefill_s: first scheduled until its first token.
        decode_s: first token until its last.
        ttft_s: arrival until its first token.
        e2e_s: arrival until its end.
    """

    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    ttft_s: float | None
    e2e_s: float


@dataclass(frozen=True)
class Delta:
    """What one engine step brought one request.

    Attributes:
        tokens: the step's new tokens (empty where only the prompt was finished, or the request failed).
        text: the text that became final with them; may be empty (partial UTF-8, possible stop string).
        finish_reason: set on the last delta.
        logprobs: one entry per token, where asked for.
        prompt_logprobs: of the whole prompt, on the first delta, where asked for. The first token has None.
        timings: on the last delta.
        error: message of a failure; the delta is then the last.
    """

    tokens: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    timings: Timings | None = None
    error: str | None = None


@dataclass(eq=False)
class Sequence:
    """A request on its way through the scheduler.

    Attributes:
        number: order of arrival; smaller is older.
        tokens: prompt and answer so far.
        prompt_length: how many of them are prompt.
        params: see :class:`SamplingParams`.
        on_delta: called with each delta, on the API's thread.
        computed: tokens whose keys and values the cache holds.
        cache: the sequence's share of the KV cache while it runs.
        prefill_length: tokens it had when it was last admitted: what is computed before (more of) the answer.
        generator: the request's own random stream, if it has a seed.
        output: turns tokens to text and looks for stop strings.
        prompt_rows: prompt log probabilities gathered so far.
    """

    number: int
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    on_delta: Callable[[Delta], None]
    arrival_s: float
    computed: int = 0
    cache: Any = None
    prefill_length: int = 0
    generator: "torch.Generator | None" = None
    output: Any = None
    prompt_rows: list[TokenLogprob | None] = field(default_factory=list)
    preemptions: int = 0
    finished: FinishReason | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens that are known but not in the cache: 1 while decoding, more during the prefill."""
        return len(self.tokens) - self.computed

    @property
    def chunk_limit(self) -> int | None:
        """Most tokens of it that one step computes, where it has a limit of its own."""
        return None if self.params.prompt_logprobs is None else PROMPT_LOGPROB_CHUNK

    def give_way(self) -> None:
        """Note that its pages were taken: what was gathered of an unfinished prompt is gathered again."""
        if self.generated == 0:
            self.prompt_rows.clear()
        self.preemptions += 1

    def timings(self, now_s: float) -> Timings:
        """The times of this request, were it to end now."""
        first, scheduled = self.first_token_s, self.scheduled_s
        return Timings(
            queue_s=None if scheduled is None else scheduled - self.arrival_s,
            prefill_s=None if first is None or scheduled is None else first - scheduled,
            decode_s=None if first is None or self.last_token_s is None else self.last_token_s - first,
            ttft_s=None if first is None else first - self.arrival_s,
            e2e_s=now_s - self.arrival_s,
        )
