"""What can be told of a request before it is answered: a few numbers from its text, and which task it looks like.

The same function makes them of a request in a trace, when a router is fitted, and of one on its way, when it is routed.
Of a long prompt only its two ends are read, so that the cost is bounded (well under a millisecond).
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

END_CHARACTERS = 2000
"""Characters at the prompt's start, and at its end, that are looked at."""

WORDS_AT_EACH_END = 64
_TEMPLATE_CHARACTERS = 600
TOKEN_CHARACTERS = 4
"""Characters that a token id stands for, where a prompt is given in these."""

_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_NUMBER = re.compile(r"\d+")
_ITEM = re.compile(r"\n\d{1,2}[.)] ")
_BULLETS = ("\n- ", "\n* ", "\n• ", "\n+ ")
_SAYS = {
    "steps": ("step by step", "think", "reason", "explain", "show your"),
    "list": (" list", "bullet", "enumerate", "all of the"),
    "summary": ("summar", "paraphras", "rewrite", "shorten"),
    "only": (" only", "exactly", "at least", "at most", "no more than", " must"),
    "program": ("```", "def ", "function", " code", "python", "#include", ";\n"),
    "story": ("write ", "story", "poem", "essay", "letter", "email", "blog"),
}
"""Words by which a request tells what kind of answer it wants, in lower case."""

_CAPITALS = bytes(range(ord("A"), ord("Z") + 1))
_MARKS = b".,;:!?()[]{}\"'=<>/"
_BEYOND = bytes(range(128, 256))

FEATURES = (
    "log_characters",
    "log_last_characters",
    "messages",
    "turn",
    "log_max_tokens",
    "digits",
    "capitals",
    "marks",
    "lines",
    "beyond_ascii",
    "word_length",
    "distinct_words",
    "compressed",
    "log_numbers",
    "longest_number",
    "log_list_marks",
    "questions",
    *(f"says_{name}" for name in _SAYS),
)
"""Names of the numbers, in their order."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as far as a router looks at it.

    Attributes:
        text: the whole prompt; of a conversation what was said to the model, without its own answers.
        last: what the user said last.
        messages: messages to the model, 1 for a plain prompt.
        turn: answers in the conversation so far.
        max_tokens: the cap on the answer in tokens; None where there is none.
    """

    text: str
    last: str
    messages: int = 1
    turn: int = 0
    max_tokens: int | None = None


def asked(body: Mapping[str, Any]) -> Asked:
    """What a request to ``/v1/completions`` or ``/v1/chat/completions`` asks; what has another shape is left out."""
    cap = body.get("max_completion_tokens", body.get("max_tokens"))
    max_tokens = cap if isinstance(cap, int) and not isinstance(cap, bool) and cap > 0 else None
    messages = body.get("messages")
    if isinstance(messages, list):
        said = [
            (message.get("role"), _text(message.get("content"))) for message in messages if isinstance(message, dict)
        ]
        last = next((text for role, text in reversed(said) if role == "user"), "")
        told = [text for role, text in said if role != "assistant"]
        return Asked("\n".join(told), last, max(len(told), 1), len(said) - len(told), max_tokens)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(part, str) for part in prompt):
        prompt = "\n".join(prompt)
    text = prompt if isinstance(prompt, str) else _of_ids(prompt)
    return Asked(text, text, max_tokens=max_tokens)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def _of_ids(ids: object) -> str:
    """A text as long as the token ids stand for, which says nothing else."""
    return " " * (TOKEN_CHARACTERS * len(ids)) if isinstance(ids, list) else ""


def ends(text: str) -> str:
    """The two ends of a text that are looked at."""
    return text if len(text) <= 2 * END_CHARACTERS else f"{text[:END_CHARACTERS]}\n{text[-END_CHARACTERS:]}"


def features(request: Asked) -> list[float]:
    """One number for each of :data:`FEATURES`, all finite.

    Rounded, so that they are the same in the single precision in which trees are grown.
    """
    text = ends(request.text)
    lower = text.lower()
    raw = text.encode("utf-8", "replace")
    length = max(len(raw), 1)
    words = text.split()
    numbers = _NUMBER.findall(text)

    def share(letters: bytes) -> float:
        return (len(raw) - len(raw.translate(None, letters))) / length

    found = [
        math.log1p(len(request.text)),
        math.log1p(len(request.last)),
        float(min(request.messages, 1000)),
        float(min(request.turn, 1000)),
        math.log1p(request.max_tokens or 0),
        sum(map(len, numbers)) / length,
        share(_CAPITALS),
        share(_MARKS),
        share(b"\n"),
        share(_BEYOND),
        sum(map(len, words)) / max(len(words), 1),
        len(set(words)) / max(len(words), 1),
        len(zlib.compress(raw, 1)) / length,
        math.log1p(len(numbers)),
        float(min(max(map(len, numbers), default=0), 1000)),
        math.log1p(len(_ITEM.findall(text)) + sum(map(text.count, _BULLETS))),
        float(min(text.count("?"), 20)),
        *(float(any(word in lower for word in said)) for said in _SAYS.values()),
    ]
    return [round(value, 4) for value in found]


def buckets(request: Asked, count: int) -> list[int]:
    """The words at both ends of a prompt as numbers below ``count``, by which a task's template is told; digits all
    count as one word."""
    text = request.text
    head, tail = text[:_TEMPLATE_CHARACTERS], text[-_TEMPLATE_CHARACTERS:]
    words = [*_WORD.findall(head)[:WORDS_AT_EACH_END], *_WORD.findall(tail)[-WORDS_AT_EACH_END:]]
    return [zlib.crc32(b"0" if word.isdigit() else word.lower().encode()) % count for word in words]


def rows(requests: Sequence[Asked]) -> list[list[float]]:
    """:func:`features` of several requests."""
    return [features(request) for request in requests]
