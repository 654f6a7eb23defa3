"""What all documents of the probe share: counting tokens, filling with idle sentences, and the shape of a question."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

from kvload.servers.probe.tasks.words import NAMES, NOUNS, PLACES

T = TypeVar("T")

PRETOKEN = re.compile(r" ?[A-Za-z]+|[0-9]|[^A-Za-z0-9]")
"""One match is one token of every text that the generator writes: a word with the space before it, a digit, a sign."""


def token_count(text: str) -> int:
    """Tokens that the probe's tokenizer makes of a text written by the generator."""
    return len(PRETOKEN.findall(text))


@dataclass(frozen=True, slots=True)
class Turn:
    """A question on a document, and its one right answer.

    ``scorer`` names the scorer that fits the answer; ``depth`` is where the needed fact stands in the document
    (0 its start, 1 its end), None where the answer draws on the whole document.
    """

    task: str
    question: str
    answer: str
    scorer: str
    depth: float | None


@dataclass(frozen=True, slots=True)
class Wish:
    """The question that is wanted: its task and the greatest length of its answer in tokens.

    ``depth`` asks for a fact near that place of the document (0 start, 1 end) where the task has single facts; None for
    any place.
    """

    task: str
    limit: int
    depth: float | None = None


class Document(Protocol):
    """A text, made by ``rng`` in at most ``budget`` tokens, that questions of one or more tasks can be asked about."""

    text: str

    def __init__(self, rng: Random, budget: int) -> None: ...

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        """A question as wished for; None if the document has none such."""
        ...


def pick(rng: Random, items: Sequence[T]) -> T:
    """One item, evenly drawn (faster than ``Random.choice``)."""
    return items[int(rng.random() * len(items))]


_FILLERS: tuple[Callable[[Random], str], ...] = (
    lambda r: f"Nobody saw the {pick(r, NOUNS)} near the {pick(r, PLACES)}.",
    lambda r: f"It was quiet in the {pick(r, PLACES)} all day.",
    lambda r: f"{pick(r, NAMES)} walked slowly to the {pick(r, PLACES)}.",
    lambda r: f"The road to the {pick(r, PLACES)} was closed again.",
    lambda r: f"{pick(r, NAMES)} and {pick(r, NAMES)} talked about the {pick(r, NOUNS)}.",
    lambda r: f"There was some rain over the {pick(r, PLACES)}.",
    lambda r: f"{pick(r, NAMES)} could not find the {pick(r, NOUNS)} anywhere.",
    lambda r: f"Somebody painted a picture of the {pick(r, PLACES)}.",
)


def filler(rng: Random) -> str:
    """A sentence that answers no question."""
    return pick(rng, _FILLERS)(rng)


def weave(rng: Random, facts: Sequence[tuple[str, T]], budget: int) -> tuple[str, list[tuple[T, float]]]:
    """Shuffle facts among fillers into a text of at most ``budget`` tokens.

    ``facts`` are (sentence, meaning); what does not fit is left out. Returns the text, one sentence a line, and the
    meanings in the order of the text, each with its depth (0 first line, 1 last line).
    """
    lines: list[tuple[str, T | None]] = []
    left = budget
    for sentence, meaning in facts:
        left -= token_count(sentence) + 1
        if left < 0:
            break
        lines.append((sentence, meaning))
    while left > 0:
        sentence = filler(rng)
        left -= token_count(sentence) + 1
        if left >= 0:
            lines.append((sentence, None))
    rng.shuffle(lines)
    last = max(1, len(lines) - 1)
    kept = [(meaning, place / last) for place, (_, meaning) in enumerate(lines) if meaning is not None]
    return "\n".join(sentence for sentence, _ in lines), kept


def nearest(rng: Random, facts: Sequence[tuple[T, float]], depth: float | None) -> tuple[T, float]:
    """The fact nearest to a depth, or any fact where no depth is asked for."""
    if depth is None:
        return pick(rng, facts)
    return min(facts, key=lambda fact: abs(fact[1] - depth))


def number(rng: Random, digits: int) -> str:
    """A decimal number of exactly so many digits."""
    low: int = 10 ** (digits - 1)
    return str(low + int(rng.random() * 9 * low))
