"""Answers without the marks that models put around them, where no server's parser has taken these away."""

import re

_MARKS = re.compile(
    r"(?P<opened><(?:think|thinking|thoughts?|reasoning|seed:think)>|\[think\]|\u25c1think\u25b7|<\|begin_of_thought\|>|"
    r"<\|start_thinking\|>|<\|channel\|>analysis<\|message\|>)|"
    r"</(?:think|thinking|thoughts?|reasoning|seed:think)>|\[/think\]|\u25c1/think\u25b7|<\|end_of_thought\|>|"
    r"<\|end_thinking\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_ANSWER, _ANSWER_END = "<answer>", "</answer>"


def without_reasoning(text: str) -> str:
    """The text without its reasoning, which stands between marks like ``<think>`` and ``</think>``.

    A closing mark alone ends reasoning that the prompt's template opened. Reasoning that a text begins with and never
    ends leaves no answer: the limit was reached before there was one.
    """
    kept: list[str] = []
    start, opened = 0, -1
    for mark in _MARKS.finditer(text):
        if mark["opened"]:
            if opened < 0:
                opened = mark.start()
                kept.append(text[start:opened])
            continue
        if opened < 0:
            kept.clear()
        start, opened = mark.end(), -1
    if opened < 0:
        kept.append(text[start:])
    elif any(part.strip() for part in kept):
        kept.append(text[opened:])
    return "".join(kept)


def tagged_answer(text: str) -> str | None:
    """What stands in the last ``<answer>`` ... ``</answer>``; None where there is none or nothing in it."""
    plain = text.lower() if text.isascii() else re.sub("(?i)</?answer>", lambda mark: mark[0].lower(), text)
    end = plain.rfind(_ANSWER_END)
    start = plain.rfind(_ANSWER, 0, max(end, 0))
    return text[start + len(_ANSWER) : end].strip() or None if 0 <= start < end else None
