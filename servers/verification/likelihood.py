"""The log-likelihood of a fixed text as a server computes it *through its KV cache*.

Prompt log-probabilities are no test of a cache: engines compute a prompt's attention on keys and values that were just
computed, and store them on the way. What is scored here is made so that the server must read back what it stored:

``forced``
    A prompt, then an answer whose tokens are forced (``logit_bias``) to be the text's own. All but the first token of
    the answer are decoded, and decoding has nothing but the cache. The text repeats a token wherever an answer
    starts, since one bias holds for a whole answer. Needs log-probabilities from before the bias, as vLLM gives them.
``prefix``
    A prompt is computed and left in the prefix cache; then the same prompt with a tail is scored, which reads the
    prefix back (SGLang's ``/generate`` with ``logprob_start_len``; vLLM leaves its prefix cache out of such requests).
``chunked``
    A prompt longer than one step of the scheduler, scored where it goes beyond the first step, which is in the cache by
    then (the embedded engine).

Each text is scored twice: with its own context, and with the context replaced by another text's. The difference between
the two is what the cache contributes, the scale on which an error of the cache can be judged for any model.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kvload.address import Address
from kvload.errors import ServerError
from kvload.http import request

TEXT_TOKENS = 640
BLOCK_TOKENS = 160
"""The text repeats itself after this many tokens: a model that copies from its context shows whether it finds it."""
ANSWER_TOKENS = 4
ANSWERS = 24
NEAR_TOKENS = 4
"""Tokens right before an answer that stay when its context is replaced: the answer's own neighbourhood."""
TAIL_TOKENS = 128
SHORTEST_TEXT = 64
TIMEOUT_S = 300.0
PARALLEL = 8
FORCING_BIAS = 100
SEEDS = (20240607, 20250331)
"""Of the text and of the other text."""


@dataclass(frozen=True)
class Target:
    """A server to score a text with.

    Attributes:
        address: where it is.
        model: the name it serves.
        vocab_size: the text's tokens are drawn from the middle of the vocabulary, away from special tokens.
        max_model_len: longest prompt and answer it takes; None for no limit.
        step_tokens: prompt tokens of one scheduler step, for ``chunked``.
    """

    address: Address
    model: str
    vocab_size: int
    max_model_len: int | None = None
    headers: Mapping[str, str] | None = None
    step_tokens: int | None = None


@dataclass(frozen=True)
class Scores:
    """Log-probabilities (natural) of the same tokens with their own context, and with another.

    Attributes:
        scoring: how they were taken.
        text_tokens: length of the text.
        own, other: one value per scored token, in the same order.
    """

    scoring: str
    text_tokens: int
    own: tuple[float, ...]
    other: tuple[float, ...]


def score(scoring: str, target: Target) -> Scores:
    """Score the fixed text.

    Args:
        scoring: ``forced``, ``prefix`` or ``chunked``.
        target: the server.

    Raises:
        ServerError: the server fails, answers numbers that are none, or cannot take a text of a useful length.
    """
    return SCORINGS[scoring](target)


def make_text(seed: int, tokens: int, vocab_size: int) -> list[int]:
    """A text of token ids: random, repeating after :data:`BLOCK_TOKENS`, with runs of one token to answer.

    The same arguments give the same text on every machine.
    """
    rng = random.Random(seed)
    low, high = vocab_size // 10, max(vocab_size // 10 + 1, vocab_size * 9 // 10)
    block: list[int] = []
    while len(block) < BLOCK_TOKENS:
        token = rng.randrange(low, high)
        block += [token] * (ANSWER_TOKENS if len(block) % 10 == 0 else 1)
    return (block * (tokens // len(block) + 1))[:tokens]


def answer_places(text: Sequence[int]) -> list[int]:
    """Where runs of :data:`ANSWER_TOKENS` equal tokens start, from a third of the text on, thinned out evenly."""
    places = [
        place
        for place in range(len(text) // 3, len(text) - ANSWER_TOKENS + 1)
        if text[place - 1] != text[place] and len(set(text[place : place + ANSWER_TOKENS])) == 1
    ]
    step = max(1.0, len(places) / ANSWERS)
    return [places[int(index * step)] for index in range(int(len(places) / step))]


def _forced(target: Target) -> Scores:
    tokens = _text_tokens(target, ANSWER_TOKENS)
    text, other = (make_text(seed, tokens, target.vocab_size) for seed in SEEDS)
    places = answer_places(text)
    own_prompts = [text[:place] for place in places]
    other_prompts = [other[: place - NEAR_TOKENS] + text[place - NEAR_TOKENS : place] for place in places]
    answers = [text[place] for place in places]
    with ThreadPoolExecutor(PARALLEL) as pool:
        rows = list(
            pool.map(
                lambda prompt, token: _forced_answer(target, prompt, token),
                [*own_prompts, *other_prompts],
                [*answers, *answers],
            )
        )
    own, replaced = rows[: len(places)], rows[len(places) :]
    return Scores("forced", tokens, _flat(own), _flat(replaced))


def _forced_answer(target: Target, prompt: list[int], token: int) -> list[float]:
    """Log-probabilities of the answer's tokens after its first."""
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": ANSWER_TOKENS,
        "min_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 0,
        "logit_bias": {str(token): FORCING_BIAS},
        "return_token_ids": True,
    }
    choice = _choice(_post(target, "/v1/completions", body))
    ids = choice.get("token_ids")
    if ids is not None and ids != [token] * ANSWER_TOKENS:
        raise ServerError("the server does not force tokens with logit_bias", where=target.address.url)
    logprobs = choice.get("logprobs")
    return _numbers(logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None, ANSWER_TOKENS)[1:]


def _prefix(target: Target) -> Scores:
    tokens = _text_tokens(target, 1)
    text, other = (make_text(seed, tokens, target.vocab_size) for seed in SEEDS)
    head = tokens - TAIL_TOKENS
    own = _scored_tail(target, text, head)
    replaced = _scored_tail(target, other[: head - NEAR_TOKENS] + text[head - NEAR_TOKENS :], head)
    return Scores("prefix", tokens, tuple(own), tuple(replaced))


def _scored_tail(target: Target, text: list[int], head: int) -> list[float]:
    plain = {"sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    _post(target, "/generate", {"input_ids": text[:head], **plain})
    body = {"input_ids": text, "return_logprob": True, "logprob_start_len": head - 1, **plain}
    answer = _post(target, "/generate", body)
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    rows = meta.get("input_token_logprobs") if isinstance(meta, dict) else None
    if not isinstance(rows, list) or len(rows) < len(text) - head:
        raise ServerError("the server answers no log-probabilities of its prompt", where=target.address.url)
    rows = rows[-(len(text) - head) :]
    return _numbers([row[0] if isinstance(row, list) and row else None for row in rows], len(text) - head)


def _chunked(target: Target) -> Scores:
    step = target.step_tokens or 512
    limit = target.max_model_len or step + TEXT_TOKENS
    tokens = min(step + max(TEXT_TOKENS - step, TAIL_TOKENS), limit - 1)
    if tokens < step + SHORTEST_TEXT:
        raise ServerError(
            f"its longest prompt is {limit} tokens and one step takes {step}: a prompt cannot reach beyond a step",
            where=target.address.url,
            hint="start it with a smaller --chunk-tokens (after --)",
        )
    text, other = (make_text(seed, tokens, target.vocab_size) for seed in SEEDS)
    own = _scored_prompt(target, text)[step:]
    replaced = _scored_prompt(target, other[: step - NEAR_TOKENS] + text[step - NEAR_TOKENS :])[step:]
    return Scores("chunked", tokens, tuple(own), tuple(replaced))


def _scored_prompt(target: Target, text: list[int]) -> list[float]:
    """Log-probabilities of all tokens of a prompt; 0 for the first, which nothing predicts."""
    body = {"model": target.model, "prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    rows = _choice(_post(target, "/v1/completions", body)).get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(text):
        raise ServerError("the server answers no log-probabilities of its prompt", where=target.address.url)
    values = [
        row.get(str(token), {}).get("logprob") if isinstance(row, dict) else None
        for row, token in zip(rows[1:], text[1:], strict=True)
    ]
    return [0.0, *_numbers(values, len(text) - 1)]


SCORINGS: Mapping[str, Callable[[Target], Scores]] = {"forced": _forced, "prefix": _prefix, "chunked": _chunked}


def _text_tokens(target: Target, room: int) -> int:
    tokens = TEXT_TOKENS if target.max_model_len is None else min(TEXT_TOKENS, target.max_model_len - room)
    if tokens < SHORTEST_TEXT + TAIL_TOKENS:
        raise ServerError(
            f"its longest prompt, {target.max_model_len} tokens, is too short for a check", where=target.address.url
        )
    return tokens


def _post(target: Target, path: str, body: Mapping[str, Any]) -> Any:
    answer = request(target.address, path, body=body, headers=target.headers, timeout_s=TIMEOUT_S)
    if not answer.ok:
        raise ServerError(f"{path} answered {answer.status}: {answer.text()[:300]}", where=target.address.url)
    return answer.json()


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerError("the server's answer holds no choice")
    return choices[0]


def _numbers(values: object, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ServerError(f"the server answers no {count} log-probabilities")
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise ServerError("the server answers log-probabilities that are no numbers")
    return [float(value) for value in values]


def _flat(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(value for row in rows for value in row)
