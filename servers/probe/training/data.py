"""Training data of the probe, made on the fly: rows of whole conversations, several questions on each document."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random

import numpy as np
import numpy.typing as npt

from kvload.servers.probe.tasks.generator import ANSWER_LIMIT, QUESTION_TOKENS, build_document, request_text
from kvload.servers.probe.tasks.texts import Wish, pick
from kvload.servers.probe.training.smalltalk import SMALLTALK
from kvload.servers.probe.training.tokenizer import (
    ASSISTANT_ID,
    BEGIN_ID,
    END_ID,
    PAD_ID,
    USER_ID,
    WordEncoder,
    build_vocabulary,
)

MIXTURE: tuple[tuple[tuple[str, ...], float], ...] = (
    (("recall", "many"), 2.0),
    (("distract",), 1.5),
    (("track",), 1.5),
    (("recite",), 1.0),
    (("list", "count"), 3.0),
    (("sum",), 1.5),
    (("nth",), 1.2),
    (("chat",), 1.0),
)
"""Tasks asked about one document, and how often such a document is drawn."""

WEIGHT_UNIT = 128
"""Loss weights are stored as bytes in units of 1/128."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids (rows, length) int16 and the loss weight of PREDICTING each token (rows, length) uint8."""

    tokens: npt.NDArray[np.int16]
    weights: npt.NDArray[np.uint8]


def _answer_weight(tokens: int) -> int:
    """Long answers weigh more than short ones in sum, but less than in proportion, so that copying does not rule."""
    weight: float = WEIGHT_UNIT * (6 / tokens) ** 0.5
    return min(220, round(weight))


def conversation(rng: Random, encoder: WordEncoder, length: int) -> tuple[list[int], list[int]]:
    """Token ids and loss weights of one conversation of at most ``length`` (128 or more) tokens on one document."""
    while True:
        tasks = rng.choices([tasks for tasks, _ in MIXTURE], [weight for _, weight in MIXTURE])[0]
        share = 0.25 + 0.7 * rng.random()
        document = build_document(tasks[0], rng, min(4080, max(50, int((length - 60) * share))))
        tokens, weights = [BEGIN_ID], [0]
        if rng.random() < 0.02:
            _append(tokens, weights, encoder, *pick(rng, SMALLTALK))
        start = len(tokens)
        failures = 0
        while failures < 3:
            before = len(tokens)
            left = length - before - QUESTION_TOKENS // 2
            turn = document.ask(rng, Wish(pick(rng, tasks), min(ANSWER_LIMIT, left))) if left > 0 else None
            if turn is not None:
                question = turn.question if before > start else request_text(document, turn)
                _append(tokens, weights, encoder, question, turn.answer)
            if len(tokens) > length or turn is None:
                del tokens[before:], weights[before:]
                failures += 1
        if len(tokens) > start:
            return tokens, weights


def _append(tokens: list[int], weights: list[int], encoder: WordEncoder, question: str, answer: str) -> None:
    asked, answered = encoder.encode(question), encoder.encode(answer)
    tokens += [USER_ID, *asked, END_ID, ASSISTANT_ID, *answered, END_ID]
    weights += [0] * (len(asked) + 3) + [_answer_weight(len(answered) + 1)] * (len(answered) + 1)


def make_batch(seed: int, step: int, rows: int, length: int, encoder: WordEncoder) -> Batch:
    """The training batch of one step: each row one conversation, padded at its end."""
    rng = Random(seed * 1_000_003 + step)
    tokens = np.full((rows, length), PAD_ID, np.int16)
    weights = np.zeros((rows, length), np.uint8)
    for row in range(rows):
        row_tokens, row_weights = conversation(rng, encoder, length)
        tokens[row, : len(row_tokens)] = row_tokens
        weights[row, : len(row_weights)] = row_weights
    return Batch(tokens, weights)


_worker_encoder: list[WordEncoder] = []


def _start_worker() -> None:
    _worker_encoder.append(WordEncoder(build_vocabulary()))


def _worker_batch(seed: int, step: int, rows: int, length: int) -> Batch:
    return make_batch(seed, step, rows, length, _worker_encoder[0])


def batches(seed: int, shapes: Sequence[tuple[int, int]], workers: int) -> Iterator[Batch]:
    """The batches of all steps in order, made ahead by worker processes; ``shapes`` are the steps' (rows, length)."""
    pending: deque[Future[Batch]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        for step, (rows, length) in enumerate(shapes):
            pending.append(pool.submit(_worker_batch, seed, step, rows, length))
            if len(pending) >= 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
