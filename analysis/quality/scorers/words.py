"""Texts as words, in any script: what the scorers compare.

A word is a run of letters and digits with the marks that belong to them. Scripts that put no spaces between words
(Chinese, Japanese, Thai ...) give a word for each character. Numbers keep their sign and their decimals, and signs that
change what is said (``<``, ``+``, emoji) are words of their own; punctuation, currency and markup are none.
"""

import importlib
import unicodedata
from functools import cache
from typing import Any

UNSPACED = "".join(
    rf"\p{{Script_Extensions={script}}}"
    for script in (
        "Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Javanese", "Balinese",
        "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Yi",
    )
)  # fmt: skip
"""Scripts without spaces between words, as the inside of a character class."""

_SIGNED = rf"(?<![\p{{L}}\p{{M}}\p{{N}}.--[{UNSPACED}]])-"
_NUMBER = rf"(?:{_SIGNED})?\d+(?:\.\d+)?(?![\p{{L}}\p{{M}}--[{UNSPACED}]])"
_FRACTION = rf"(?:{_SIGNED})?\d+/\d+(?![\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]])"
_CHARACTER = rf"[\p{{L}}\p{{M}}&&[{UNSPACED}]]\p{{M}}*"
_WORD = rf"[\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]]+(?:['\u2019.](?=\p{{L}})[\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]]+)*"
_SIGN = r"[\p{Sm}\p{So}^--[|~°©®™]]|(?<=\p{L})\#(?![\p{L}\p{N}])"
_THOUSANDS = r"(?<![\d.,])\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d,])"
_ARTICLES = frozenset({"a", "an", "the"})
_RAISED = {"<super>": "^", "<sub>": " ", "<fraction>": " "}


def words(text: str, *, articles: bool = True) -> list[str]:
    """The words of a text in their normal form: Unicode's NFKC, case folded, western digits.

    Args:
        articles: keep English articles, which SQuAD's normal form (Rajpurkar et al. 2016) leaves out.
    """
    plain = folded(text).casefold()
    found = [_joined(match) for match in _pattern().findall(_thousands().sub(_ungrouped, plain))]
    return found if articles else [word for word in found if word not in _ARTICLES]


def exact_words(text: str) -> list[str]:
    """All words of a text as they are, case and punctuation included; white space alone is left out."""
    return [str(word) for word in _exact_pattern().findall(text)]


def folded(text: str) -> str:
    """NFKC with western digits, without characters that only format; ``5²`` becomes ``5^2`` and ``2½`` ``2 1/2``."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text.translate(_Prepared())).translate(_Western())


class _Prepared(dict[int, str]):
    """What a character becomes before NFKC, which would write ``5²`` as ``52``; looked up once for each."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        raised = _RAISED.get(unicodedata.decomposition(character).partition(" ")[0])
        if raised is not None:
            found = raised + unicodedata.normalize("NFKC", character)
        else:
            found = "" if unicodedata.category(character) == "Cf" else character
        self[code] = found
        return found


class _Western(dict[int, str]):
    """Western digits for all others, and one sign for minus, fraction slash, apostrophe, decimal point and comma."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        digit = unicodedata.decimal(character, None)
        self[code] = found = _WRITTEN.get(character, character) if digit is None else str(digit)
        return found


_WRITTEN = {
    "\u2212": "-",
    "\u2013": "-",
    "\u2010": "-",
    "\u2011": "-",
    "\u2044": "/",
    "\u2019": "'",
    "\u066b": ".",
    "\u066c": ",",
}


def _joined(word: str) -> str:
    """``don't`` and ``U.S.`` are one word each; numbers keep their point."""
    return word if word[-1:].isdigit() else word.replace("'", "").replace(".", "")


def _ungrouped(match: Any) -> str:
    return str(match.group()).replace(",", "")


@cache
def _pattern() -> Any:
    # re knows neither scripts nor classes of marks
    regex = importlib.import_module("regex")
    return regex.compile("|".join((_FRACTION, _NUMBER, _CHARACTER, _WORD, _SIGN)), regex.V1)


@cache
def _exact_pattern() -> Any:
    regex = importlib.import_module("regex")
    return regex.compile("|".join((_NUMBER, _CHARACTER, _WORD, r"[^\s]")), regex.V1)


@cache
def _thousands() -> Any:
    return importlib.import_module("regex").compile(_THOUSANDS)
