"""Scores by words that two texts have in common."""

import re
from collections import Counter
from collections.abc import Sequence

from kvload.analysis.quality.scorers.words import exact_words, folded, words

MAX_WORDS = 50_000
"""Texts are cut to so many words where their order is compared."""

_ITEM_ENDS = re.compile(r"[,;\n、，；]+")
_ITEM_MARKS = re.compile(r"^(?:[-*\u2022]|\d+[.)])\s+")


def exact(answer: str, expected: str) -> float:
    """1 where both have the same words in the same order; texts without words must be the same text."""
    return float(_same(_words(answer), _words(expected), answer, expected))


def contains(answer: str, expected: str) -> float:
    """1 where the expected words stand in the answer in one piece."""
    wanted, given = _words(expected), _words(answer)
    if not wanted:
        return float(_bare(expected) in _bare(answer) if _bare(expected) else not _bare(answer))
    size = len(wanted)
    starts = (place for place, word in enumerate(given[: len(given) - size + 1]) if word == wanted[0])
    return float(any(given[place : place + size] == wanted for place in starts))


def f1(answer: str, expected: str) -> float:
    """F1 of precision and recall over words, each word as often as both have it."""
    one, two = _words(answer), _words(expected)
    if not one or not two:
        return float(_same(one, two, answer, expected))
    return 2 * (Counter(one) & Counter(two)).total() / (len(one) + len(two))


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of words over both lengths (Lin 2004)."""
    one, two = words(answer)[:MAX_WORDS], words(expected)[:MAX_WORDS]
    if not one or not two:
        return float(_same(one, two, answer, expected))
    return 2 * common_subsequence(one, two) / (len(one) + len(two))


def items(answer: str, expected: str) -> float:
    """F1 over two lists' different items, in their normal forms; list marks ("-", "1.") are left out."""
    one, two = _items(answer), _items(expected)
    if not one or not two:
        return float(not one and not two)
    return 2 * len(one & two) / (len(one) + len(two))


def likeness(one: Sequence[str], two: Sequence[str]) -> float:
    """How far two answers that differ, in pieces, are the same text: always below 1.

    The longest common subsequence of their words as they are, case and punctuation included, over both lengths.

    Args:
        one, two: the pieces of each answer (reasoning, text, tool calls), in the same order.
    """
    first, second = _pieces(one), _pieces(two)
    total = len(first) + len(second)
    if not total:
        return 0.0
    # texts that differ in white space alone, or behind their last word that is compared, are no equal ones
    return min(2 * common_subsequence(first, second) / total, 1 - 1 / (total + 1))


def common_subsequence(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit-parallel dynamic programming (Hyyrö 2004).

    What both begin and end with belongs to it, so that only the part between has to be searched.
    """
    shorter = min(len(one), len(two))
    first = next((place for place in range(shorter) if one[place] != two[place]), shorter)
    ends = range(1, shorter - first + 1)
    last = next((place - 1 for place in ends if one[-place] != two[-place]), shorter - first)
    return first + last + _searched(one[first : len(one) - last], two[first : len(two) - last])


def _searched(one: Sequence[str], two: Sequence[str]) -> int:
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | (1 << place)
    everything = (1 << len(one)) - 1
    row = everything
    for word in two:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(one) - row.bit_count()


def _words(text: str) -> list[str]:
    return words(text, articles=False)


def _pieces(texts: Sequence[str]) -> list[str]:
    """The words of all pieces, each with its piece's number, so that what moves from one to another differs."""
    return [f"{number} {word}" for number, text in enumerate(texts) for word in exact_words(text)[:MAX_WORDS]]


def _same(one: Sequence[str], two: Sequence[str], answer: str, expected: str) -> bool:
    return one == two if one or two else _bare(answer) == _bare(expected)


def _bare(text: str) -> str:
    return " ".join(folded(text).casefold().split())


def _items(text: str) -> set[str]:
    parts = (_ITEM_MARKS.sub("", part.strip()) for part in _ITEM_ENDS.split(text))
    # an item that is an article alone is one: "a, b, c" has three
    return {" ".join(item) for item in (_words(part) or words(part) for part in parts) if item}
