"""Scored questions by seed: the probe's tasks as chat requests that any language model can be asked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from kvload.errors import KvloadError, UsageError
from kvload.servers.probe.tasks.lookups import CodesDocument, PathsDocument, PeopleDocument, PlacesDocument
from kvload.servers.probe.tasks.sequences import (
    BoxesDocument,
    PurchasesDocument,
    ShelvesDocument,
    ThingsDocument,
)
from kvload.servers.probe.tasks.texts import Document, Turn, Wish, token_count

INTRODUCTION = "Read these notes, then answer."
"""First line of every request, before the document."""

FRAME_TOKENS = token_count(INTRODUCTION) + 4 + 4
"""Tokens of a request beside the document and the question: first line, empty lines, the chat template's marks."""

QUESTION_TOKENS = 40
"""Room that a request leaves for its question; only ``many`` with five or more codes needs more."""

SHORTEST_CONTEXT, LONGEST_CONTEXT = 192, 4096
"""Prompt lengths, in tokens of the probe's tokenizer, that questions are made for."""

ANSWER_LIMIT = 320
"""Tokens of the longest answer."""

_DOCUMENTS: dict[str, type[Document]] = {
    "recall": CodesDocument,
    "many": CodesDocument,
    "distract": PlacesDocument,
    "track": PathsDocument,
    "recite": BoxesDocument,
    "list": ThingsDocument,
    "count": ThingsDocument,
    "sum": PurchasesDocument,
    "nth": ShelvesDocument,
    "chat": PeopleDocument,
}

TASKS: tuple[str, ...] = tuple(_DOCUMENTS)
"""Names of all tasks."""


@dataclass(frozen=True, slots=True)
class ProbeSample:
    """One scored question.

    ``messages`` go to a chat endpoint as they are; ``expected`` is the right answer and ``scorer`` the scorer for it.
    ``context_tokens`` is the prompt length asked for and ``prompt_tokens`` the length made, both in tokens of the
    probe's tokenizer with its chat template; ``depth`` is where the needed fact stands (0 start, 1 end of the
    document; None where the whole document counts); ``max_tokens`` caps the answer well above the length of the
    right one.
    """

    id: str
    task: str
    messages: tuple[dict[str, str], ...]
    expected: str
    scorer: str
    context_tokens: int
    prompt_tokens: int
    depth: float | None
    max_tokens: int


def build_document(task: str, rng: Random, budget_tokens: int) -> Document:
    """A document of at most ``budget_tokens`` tokens that questions of ``task`` can be asked about."""
    return _DOCUMENTS[task](rng, budget_tokens)


def request_text(document: Document, turn: Turn) -> str:
    """The user's message: introduction, document, question."""
    return f"{INTRODUCTION}\n\n{document.text}\n\n{turn.question}"


def generate(tasks: Sequence[str], context_tokens: int, count: int, seed: int) -> list[ProbeSample]:
    """Make ``count`` questions, the tasks in turn, with prompts of just under ``context_tokens`` tokens.

    The same arguments give the same questions on every machine; a question depends on its place in the list and not
    on ``count``. Single facts stand near depths 0, 0.25, 0.5, 0.75 and 1 in turn. The training data come from random
    streams that no seed accepted here leads to.

    Raises KvloadError for an unknown task, a context outside SHORTEST_CONTEXT..LONGEST_CONTEXT or a negative seed.
    """
    unknown = [task for task in tasks if task not in _DOCUMENTS]
    if unknown or not tasks:
        close = difflib.get_close_matches(unknown[0], TASKS, n=1) if unknown else []
        raise UsageError(
            f"unknown probe task {', '.join(unknown) or '(none)'}",
            where="--tasks",
            hint=(f"did you mean {close[0]}? " if close else "") + f"choose from {', '.join(TASKS)}",
        )
    if not SHORTEST_CONTEXT <= context_tokens <= LONGEST_CONTEXT:
        raise KvloadError(
            f"probe context of {context_tokens} tokens: choose between {SHORTEST_CONTEXT} and {LONGEST_CONTEXT}"
        )
    if seed < 0 or count < 0:
        raise KvloadError(f"probe seed {seed} and count {count} must not be negative")
    return [_sample(tasks[at % len(tasks)], context_tokens, seed, at // len(tasks)) for at in range(count)]


def _sample(task: str, context_tokens: int, seed: int, index: int) -> ProbeSample:
    rng = Random(f"probe/{seed}/{task}/{context_tokens}/{index}")
    limit = min(ANSWER_LIMIT, context_tokens // 2)
    while True:
        document = build_document(task, rng, context_tokens - FRAME_TOKENS - QUESTION_TOKENS)
        turn = document.ask(rng, Wish(task, limit, (index % 5) / 4))
        if turn is None:
            continue
        text = request_text(document, turn)
        prompt_tokens = token_count(text) + 4
        if prompt_tokens <= context_tokens:
            break
    answer_tokens = token_count(turn.answer)
    return ProbeSample(
        id=f"probe-{seed}-{task}-{context_tokens}-{index}",
        task=task,
        messages=({"role": "user", "content": text},),
        expected=turn.answer,
        scorer=turn.scorer,
        context_tokens=context_tokens,
        prompt_tokens=prompt_tokens,
        depth=turn.depth,
        max_tokens=min(512, 32 + 16 * (3 * answer_tokens // 16)),
    )
