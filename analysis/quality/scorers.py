"""Scores of an answer against the expected one, from 0 to 1, by name.

========== ===========================================================================================================
exact      1 where both are the same text after normalising
contains   1 where the normalised expected answer stands in the answer as whole words
f1         F1 over the words that both have (Rajpurkar et al. 2016, SQuAD)
rouge_l    F1 of the longest common subsequence of words (Lin 2004)
numeric    1 where the last number of the answer equals the last number of the expected one
choice     1 where the letter that the answer settles on is the expected one
regex      1 where the expected answer, a regular expression, is found in the answer
items      F1 over the items of two lists separated by commas, semicolons or lines, whatever their order
========== ===========================================================================================================

Normalising (exact, contains, f1) is SQuAD's: lower case, without punctuation, without the articles a, an and the,
single spaces; after Unicode's NFKC.
"""

import importlib
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

from kvload.errors import UsageError

MAX_CHARACTERS = 200_000
"""Answers are cut to so many characters before they are scored."""

MAX_PATTERN_CHARACTERS = 1_000
REGEX_TIMEOUT_S = 2.0

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?(?!\w)")
_NAMED_CHOICE = re.compile(r"(?:answer|choice|option)(?:\s+is|\s*:)?\s*[*(\[\"']*([A-Z])\b", re.IGNORECASE)
_MARKED_CHOICE = re.compile(r"(?:^|[\s(\[*\"'])([A-Z])(?:[).:\]*\"']|\s*$)", re.MULTILINE)
_ITEM_ENDS = re.compile(r"[,;\n]+")
_ITEM_MARKS = re.compile(r"^(?:[-*\u2022]|\d+[.)])\s+")


def score(name: str, answer: str, expected: str) -> float:
    """The score of ``answer`` by the scorer of that name.

    Returns:
        0 (wrong) to 1 (right).

    Raises:
        UsageError: there is no such scorer, or ``expected`` is nothing that it can score against.
    """
    scorer = SCORERS.get(name)
    if scorer is None:
        raise UsageError(f"no such scorer: '{name}'", hint=f"known: {', '.join(SCORERS)}")
    return scorer(answer[:MAX_CHARACTERS], expected[:MAX_CHARACTERS])


def agreement(answer: str, baseline: str) -> float:
    """How far an answer is the baseline's, where nobody knows the right one: ROUGE-L, 1 for two empty answers."""
    return 1.0 if answer == baseline else rouge_l(answer[:MAX_CHARACTERS], baseline[:MAX_CHARACTERS])


def normalised(text: str) -> str:
    """SQuAD's normal form of a text."""
    plain = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact(answer: str, expected: str) -> float:
    """1 where both have the same normal form."""
    return float(normalised(answer) == normalised(expected))


def contains(answer: str, expected: str) -> float:
    """1 where the expected words stand in the answer in one piece."""
    return float(f" {normalised(expected)} " in f" {normalised(answer)} ")


def f1(answer: str, expected: str) -> float:
    """F1 of precision and recall over words, each word as often as both have it; 1 for two texts without words."""
    return _overlap(Counter(normalised(answer).split()), Counter(normalised(expected).split()))


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence over both lengths; words are runs of letters and digits, in lower case."""
    one, two = (_WORDS.findall(text.lower()) for text in (answer, expected))
    if not one or not two:
        return float(one == two)
    common = common_subsequence(one, two)
    return 2 * common / (len(one) + len(two))


def common_subsequence(one: list[str], two: list[str]) -> int:
    """Length of the longest common subsequence, by bit-parallel dynamic programming (Hyyrö 2004).

    What both begin and end with belongs to it, so that only the part between has to be searched.
    """
    shorter = min(len(one), len(two))
    first = next((place for place in range(shorter) if one[place] != two[place]), shorter)
    ends = range(1, shorter - first + 1)
    last = next((place - 1 for place in ends if one[-place] != two[-place]), shorter - first)
    return first + last + _searched(one[first : len(one) - last], two[first : len(two) - last])


def _searched(one: list[str], two: list[str]) -> int:
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | (1 << place)
    everything = (1 << len(one)) - 1
    row = everything
    for word in two:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(one) - row.bit_count()


def numeric(answer: str, expected: str) -> float:
    """1 where the last numbers are equal to one part in a million; thousands may be set off by commas.

    Raises:
        UsageError: there is no number in ``expected``.
    """
    wanted = _last_number(expected)
    if wanted is None:
        raise UsageError(f"the numeric scorer finds no number in the expected answer '{expected[:60]}'")
    found = _last_number(answer)
    return float(found is not None and math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9))


def choice(answer: str, expected: str) -> float:
    """1 where the answer settles on the expected letter.

    The letter is the last one named as the answer ("the answer is B"); else the first that stands marked as a choice
    ("(B)", "B.", "B:") or alone at the end of a line.

    Raises:
        UsageError: ``expected`` names no letter.
    """
    wanted = _letter(expected)
    if wanted is None:
        raise UsageError(f"the choice scorer finds no letter in the expected answer '{expected[:60]}'")
    return float(_letter(answer) == wanted)


def matches(answer: str, expected: str) -> float:
    """1 where the pattern is found in the answer; case counts, ``.`` does not match line ends.

    Raises:
        UsageError: the pattern is malformed, too long, or takes too long on this answer.
    """
    # re cannot be stopped, and a pattern from a trace may take for ever
    regex = importlib.import_module("regex")
    if len(expected) > MAX_PATTERN_CHARACTERS:
        raise UsageError(f"a regular expression of over {MAX_PATTERN_CHARACTERS} characters: '{expected[:60]}...'")
    try:
        return float(regex.search(expected, answer, timeout=REGEX_TIMEOUT_S) is not None)
    except regex.error as error:
        raise UsageError(f"'{expected[:60]}' is not a regular expression: {error}") from error
    except TimeoutError as error:
        raise UsageError(
            f"the regular expression '{expected[:60]}' takes over {REGEX_TIMEOUT_S} s on one answer"
        ) from error


def items(answer: str, expected: str) -> float:
    """F1 over two lists' different items, in their normal forms; list marks ("-", "1.") are left out."""
    return _overlap(Counter(_items(answer)), Counter(_items(expected)))


SCORERS: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {
        "exact": exact,
        "contains": contains,
        "f1": f1,
        "rouge_l": rouge_l,
        "numeric": numeric,
        "choice": choice,
        "regex": matches,
        "items": items,
    }
)
"""All scorers by name; each takes the answer and the expected answer."""


def _overlap(one: Counter[str], two: Counter[str]) -> float:
    if not one or not two:
        return float(not one and not two)
    common = (one & two).total()
    return 2 * common / (one.total() + two.total())


def _items(text: str) -> set[str]:
    parts = (_ITEM_MARKS.sub("", part.strip()) for part in _ITEM_ENDS.split(text))
    return {item for item in map(normalised, parts) if item}


def _last_number(text: str) -> float | None:
    found = [match.group() for match in _NUMBER.finditer(text) if any(letter.isdigit() for letter in match.group())]
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def _letter(text: str) -> str | None:
    stripped = text.strip()
    if len(stripped) == 1 and stripped.isascii() and stripped.isalpha():
        return stripped.upper()
    named = _NAMED_CHOICE.findall(text)
    if named:
        return str(named[-1]).upper()
    marked = _MARKED_CHOICE.search(text)
    return marked.group(1) if marked else None
