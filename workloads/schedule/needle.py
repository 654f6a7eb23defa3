"""Long-context look-ups in made-up text: one fact in thousands of words that say nothing about it.

The text is generated from short everyday words, so that any language model can read it and any tokenizer takes about
one token for a word; with a tokenizer at hand its length is exact. Facts of the same kind about other things stand
around the one that is asked for, so that to find any code is not enough (Kamradt 2023; Hsieh et al. 2024, RULER's
multi-key look-ups).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from kvload.errors import UsageError

SHORTEST, LONGEST = 256, 131_072
"""Prompt lengths in tokens that are made."""

MAX_ANSWER_TOKENS = 32
_FRAME_TOKENS = 48
"""Room for what a chat template adds: its marks, and a system prompt of a sentence or two."""

_INTRODUCTION = "Read the following text. A question about it comes at the end."
_PLACES = (
    "harbour", "market", "library", "station", "garden", "bridge", "mill", "school", "tower", "farm", "bakery",
    "theatre", "museum", "chapel", "castle", "island", "forest", "village", "valley", "workshop",
)  # fmt: skip
_COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "yellow", "golden", "silver", "purple", "orange")
_THINGS = (
    "door", "boat", "box", "clock", "chair", "lamp", "coat", "cart", "piano", "bell", "mirror", "trunk", "gate", "desk",
    "kite", "drum", "table", "basket", "bottle", "ladder", "wheel", "letter", "painting", "blanket", "stone", "window",
)  # fmt: skip
_PEOPLE = (
    "the teacher", "the farmer", "the doctor", "the sailor", "the baker", "a child", "an old woman", "a young man",
    "the guard", "the painter", "a visitor", "the gardener", "the driver", "a friend", "the singer", "the keeper",
)  # fmt: skip
_TIMES = (
    "in the morning", "after lunch", "at night", "on Monday", "last winter", "every spring", "before the rain",
    "in the summer", "at noon", "later that day", "during the storm", "on a quiet evening", "long ago", "once a week",
)  # fmt: skip
_ACTS = (
    "walked slowly past", "looked at", "painted", "carried", "repaired", "sold", "waited near", "talked about",
    "cleaned", "forgot", "remembered", "bought", "moved", "admired", "drew a picture of", "sat down beside",
)  # fmt: skip
_REMARKS = (
    "Nobody said a word.", "The air smelled of bread.", "It was cold outside.", "The road was long and empty.",
    "Some people laughed.", "There was music in the street.", "The wind came from the sea.", "Birds sang in the trees.",
    "The light was very soft.", "A dog was sleeping by the fire.", "The river was high.", "Snow fell on the roofs.",
)  # fmt: skip

TokenCount = Callable[[str], int]
"""Tokens of a text, without special ones."""


@dataclass(frozen=True)
class NeedleQuestion:
    """One look-up; see :class:`kvload.workloads.schedule.questions.Question`.

    ``context_tokens`` is the prompt length asked for, ``depth`` where the fact stands (0 start, 1 end).
    """

    id: str
    task: str
    messages: tuple[dict[str, str], ...]
    expected: str
    scorer: str
    max_tokens: int
    context_tokens: int
    depth: float | None


def estimated_tokens(text: str) -> int:
    """About how many tokens a text takes in any tokenizer, rather more: words, punctuation, ends of lines, digits.

    Look-ups of 32k tokens so made have 31.1k in the tokenizer of SmolLM2 (49k words).
    """
    return math.ceil(1.03 * len(re.findall(r"[^\W\d]+|\d{1,2}|[^\w\s]|\n+", text)))


def needles(
    context_tokens: int,
    count: int,
    *,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    distractors: int = 3,
    seed: int = 0,
    token_count: TokenCount = estimated_tokens,
) -> list[NeedleQuestion]:
    """``count`` look-ups of one prompt length, their depths in turn.

    Args:
        context_tokens: length of the whole prompt, its chat template included.
        depths: where the fact stands, as shares of the text from 0 to 1.
        distractors: facts of the same kind about other things, spread over the text.
        seed: the same seed makes the same questions.
        token_count: tokens of a text.

    Raises:
        UsageError: the length, the depths or the number of distractors cannot be had.
    """
    if not SHORTEST <= context_tokens <= LONGEST:
        raise UsageError(
            f"look-ups are made for {SHORTEST} to {LONGEST} tokens, not {context_tokens}", where="--context"
        )
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise UsageError("depths are shares from 0 to 1", where="--depths")
    most = min(len(_COLOURS) * len(_THINGS) - 1, context_tokens // 64)
    if not 0 <= distractors <= most:
        raise UsageError(f"{distractors} distractors do not fit: at most {most}", where="--distractors")
    return [
        _question(context_tokens, number, depths[number % len(depths)], distractors, seed, token_count)
        for number in range(count)
    ]


def _question(
    context: int, number: int, depth: float, distractors: int, seed: int, token_count: TokenCount
) -> NeedleQuestion:
    rng = Random(f"needle/{seed}/{context}/{number}")
    things = rng.sample([f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS], distractors + 1)
    codes = [str(code) for code in rng.sample(range(1000, 10_000), distractors + 1)]
    facts = [f"The secret code of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    question = f"What is the secret code of the {things[0]}? Answer with the code only."
    room = context - _FRAME_TOKENS
    filler: list[str] = []
    taken = 0
    for sentence in _sentences(rng):
        taken += token_count(" " + sentence)
        if taken > room:
            break
        filler.append(sentence)
    places = [rng.random() for _ in facts[1:]]
    while True:
        sentences = list(filler)
        # the fact asked for goes in last, so that the others do not move it
        for fact, place in zip(facts[1:], places, strict=True):
            sentences.insert(round(place * len(sentences)), fact)
        sentences.insert(round(depth * len(sentences)), facts[0])
        text = f"{_INTRODUCTION}\n\n{_paragraphs(sentences)}\n\n{question}"
        excess = token_count(text) - room
        if excess <= 0 or not filler:
            break
        while excess > 0 and filler:
            excess -= token_count(" " + filler.pop())
    return NeedleQuestion(
        id=f"needle-{seed}-{context}-{number}",
        task=f"needle-{_short(context)}",
        messages=({"role": "user", "content": text},),
        expected=codes[0],
        scorer="contains",
        max_tokens=MAX_ANSWER_TOKENS,
        context_tokens=context,
        depth=depth,
    )


def _sentences(rng: Random) -> Iterator[str]:
    while True:
        if rng.random() < 0.2:
            yield rng.choice(_REMARKS)
            continue
        who, act, when = rng.choice(_PEOPLE), rng.choice(_ACTS), rng.choice(_TIMES)
        what = f"the {rng.choice(_COLOURS)} {rng.choice(_THINGS)}"
        where = f"{rng.choice(('near', 'behind', 'in front of', 'far from'))} the {rng.choice(_PLACES)}"
        first = rng.random() < 0.5
        text = f"{when}, {who} {act} {what} {where}." if first else f"{who} {act} {what} {where} {when}."
        yield text[0].upper() + text[1:]


def _paragraphs(sentences: Sequence[str]) -> str:
    return "\n\n".join(" ".join(sentences[start : start + 8]) for start in range(0, len(sentences), 8))


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def tokenizer_count(place: str) -> TokenCount:
    """Counts tokens with the tokenizer of a model's folder, or of a ``tokenizer.json``.

    Raises:
        UsageError: there is none, or the package ``tokenizers`` is missing.
    """
    import importlib
    from pathlib import Path

    path = Path(place)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise UsageError(
            "the package 'tokenizers' is missing", where="--tokenizer", hint="pip install tokenizers"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # its errors have no class of their own
        raise UsageError(f"no tokenizer: {error}", where=f"--tokenizer {place}") from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
