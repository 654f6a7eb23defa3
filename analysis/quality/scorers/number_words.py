"""Numbers that an answer spells out in English: "forty-two", "a dozen", "two and a half"."""

from dataclasses import dataclass
from typing import Any

from kvload.analysis.quality.scorers.patterns import compiled

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = ["half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_VALUES = (
    {"zero": 0, "a": 1, "an": 1}
    | {word: value for value, word in enumerate(_ONES, 1)}
    | {word: value for value, word in enumerate(_TEENS, 10)}
    | dict(zip(_TENS, range(20, 100, 10), strict=True))
)
_BELOW = {"half": 2, "halves": 2} | {
    word + end: value for word, value in zip(_PARTS[1:], range(3, 11), strict=True) for end in ("", "s")
}

_ONE = "|".join(_ONES)
_UNDER_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{_ONE})\b)?|{'|'.join(_TEENS)}|{_ONE}|zero)"
_UNDER_1000 = rf"(?:(?:{_UNDER_100}|an?)\s+)?hundred(?:\s+(?:and\s+)?{_UNDER_100}\b)?|{_UNDER_100}"
_SCALE = "|".join(_SCALES)
_WHOLE = (
    rf"(?:(?:{_UNDER_1000}|an?)\s+(?:{_SCALE})\b[,\s]*(?:and\s+)?)+(?:{_UNDER_1000})?"
    rf"|(?:(?:{_UNDER_1000}|an?)\s+)?dozen|{_UNDER_1000}"
)
_BROKEN = rf"(?:half|(?:{_ONE}|an?)[-\s]+(?:{'|'.join(sorted(_BELOW, key=len, reverse=True))}))"
_NUMBER = (
    rf"(?P<sign>(?:minus|negative)\s+)?\b(?:(?P<dozens>half\s+a\s+dozen)|(?P<mixed>{_WHOLE})\s+and\s+(?:a|one)\s+"
    rf"(?P<rest>half|quarter|third)|(?P<broken>{_BROKEN})|(?P<whole>{_WHOLE}))\b(?!-(?!\s))"
)
_NO_COUNT_BEFORE = (
    r"\b(?:no|any|some|every|each|this|that|these|those|the|which|another|only|an?|first|second|last|next|other|right|"
    r"correct|wrong|same)\s+$"
)
_NO_COUNT_BEHIND = (
    r"\s*(?:of|another|can|could|should|must|may|might|would|who|that|which|has|is|was|times|plus|minus|by|"
    r"multiplied|divided|less|more|way|day|thing)\b"
)
_LOOKED_BACK = 16


@dataclass(frozen=True, slots=True)
class Spelled:
    """A number in words.

    Attributes:
        start, end: where it stands in the text.
        is_weak: "one" or a fraction, which are words for other things as well.
    """

    value: float
    start: int
    end: int
    is_weak: bool


def spelled_numbers(text: str) -> list[Spelled]:
    """All numbers in words, in their order; "one" and fractions only where they count something."""
    found = []
    for match in compiled(_NUMBER, is_cased=False, nested=True).finditer(text):
        words = match[0].lower().split()
        is_weak = match["broken"] is not None or words in (["one"], ["a"])
        before = text[max(0, match.start() - _LOOKED_BACK) : match.start()]
        if is_weak and (
            compiled(_NO_COUNT_BEFORE, is_cased=False, nested=True).search(before)
            or compiled(_NO_COUNT_BEHIND, is_cased=False, nested=True).match(text, match.end())
        ):
            continue
        found.append(Spelled(_value(match), match.start(), match.end(), is_weak))
    return found


def _value(match: Any) -> float:
    sign = -1 if match["sign"] else 1
    if match["dozens"] is not None:
        return sign * 6
    if match["mixed"] is not None:
        return sign * (_whole(match["mixed"]) + 1 / _BELOW[match["rest"].lower()])
    if match["broken"] is not None:
        above, _, below = match["broken"].lower().replace("-", " ").rpartition(" ")
        return sign * _VALUES.get(above.strip() or "one", 1) / _BELOW[below]
    return sign * _whole(match["whole"])


def _whole(text: str) -> int:
    total = current = 0
    for word in text.lower().replace("-", " ").replace(",", " ").split():
        if word == "hundred":
            current = max(current, 1) * 100
        elif word == "dozen":
            current = max(current, 1) * 12
        elif word in _SCALES:
            total, current = total + max(current, 1) * _SCALES[word], 0
        elif word != "and":
            current += _VALUES[word]
    return total + current
