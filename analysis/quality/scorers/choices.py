"""The letter that an answer settles on."""

import importlib
from functools import cache
from typing import Any

from kvload.analysis.quality.scorers.numbers import boxed_text
from kvload.analysis.quality.scorers.words import folded
from kvload.errors import UsageError

_ALONE = r"(?<![\p{Lu}\p{Ll}\p{Lt}\p{N}])"
_LETTER = _ALONE + r"(?P<letter>[A-HJ-Z]|I(?!\s+\p{Ll}))(?![\p{Lu}\p{Ll}\p{Lt}\p{N}'])"
_SMALL = _ALONE + r"(?P<small>[a-z])(?=\s*(?:$|[.,;:)\]\n。，]))"
_MARKS = r"[\s*_(\[{\"'“「:：$\\]*"
_NOUN = r"(?:\s*(?:option|choice|letter|answer)\b)?"

_DECLARED = "|".join(
    (
        r"\b(?:answer|choice|option|solution)s?\b(?:\s+(?:to|for|of|here|then|would|must|should|can\s+only)\b[^.\n]{0,60}?)?"
        r"(?:\s*(?:is|be|was|[:=：])(?!\s*not\b))*(?:\s+(?:clearly|therefore|thus|likely|probably|definitely))?"
        r"(?:\s*(?:the|option|choice|letter|[:：])\s*)*",
        r"\b(?:choose|pick|select|chose|go(?:ing)?\s+with|settle\s+on)\b" + _NOUN,
        r"(?:答案|答え|正解|選択肢|正确选项|正確選項|정답|답)\s*(?:应该|應該)?\s*(?:是|为|為|选|選|は|은|는)?\s*[:：]?\s*(?:选项|選項)?",
        r"(?:故选|故選|应选|應選|选择|選擇|选|選)\s*(?:项|項)?\s*[:：]?",
        r"\brespuesta\s+(?:correcta\s+)?es(?:\s+la)?(?:\s+opci[oó]n)?|\br[eé]ponse\s+(?:correcte\s+)?est(?:\s+la)?",
        r"\b(?:richtige\s+)?Antwort\s+(?:ist|lautet)|\bresposta\s+(?:correta\s+)?é(?:\s+a)?|\bответ\s*[:—-]?",
    )
)
_PRAISED = (
    r"\s*[)\].:*]*\s*(?:is|are|seems|looks)\s+(?:clearly\s+|indeed\s+)?(?:the\s+)?"
    r"(?:correct|right|best|true|answer)|\s*[)\]]?\s*(?:项|項)?是?(?:正确|正確)"
)
_BLAMED = (
    r"\s*[)\].:*]*\s*(?:(?:is|are|seems|looks|would\s+be)\s+(?:clearly\s+)?"
    r"(?:wrong|incorrect|false|not\b|out\b|ruled\s+out|impossible)|(?:isn't|is\s+not|cannot\s+be|can't\s+be)\b)"
)
_HINTED = r"\b(?:it's|(?:must|should|would|has\s+to|have\s+to)\s+be|is|but(?:\s+rather)?|so|therefore|thus|hence)\b"


def choice(answer: str, expected: str, *, is_cut: bool = False) -> float:
    """1 where the answer settles on the expected letter.

    The letter is the last one declared ("the answer is B", ``\\boxed{C}``, "B is correct", and the like in some other
    languages); else the one that the answer begins with ("B) Paris"), or consists of; else the last that "it is B"
    points to; else the first marked as a choice ("(B)", "B.", "**B**") of which nothing bad is said, or alone at the
    end of a line. "I" and "a" in a sentence are no letters.

    Args:
        is_cut: the answer was cut off, so that only a declared letter counts.

    Raises:
        UsageError: ``expected`` names no letter.
    """
    wanted = settled_letter(expected)
    if wanted is None:
        raise UsageError(f"the choice scorer finds no letter in the expected answer '{expected[:60]}'")
    return float(settled_letter(answer, declared_only=is_cut) == wanted)


def settled_letter(text: str, *, declared_only: bool = False) -> str | None:
    """The letter that a text settles on, in upper case; None where it has none."""
    plain = folded(text).strip()
    if len(plain) == 1 and plain.isascii() and plain.isalpha():
        return plain.upper()
    if "\\" in plain:
        boxed = boxed_text(plain)
        inner = None if boxed is None else _patterns()["inner"].search(boxed)
        if inner is not None:
            return str(inner["letter"])
        plain = _patterns()["latex"].sub(r"\1", plain)
    found = [match for name in ("declared", "praised") for match in _patterns()[name].finditer(plain)]
    if found:
        last = max(found, key=lambda match: int(match.end()))
        return str(last["letter"] or last["small"]).upper() if "small" in last.groupdict() else str(last["letter"])
    if declared_only:
        return None
    begun = _patterns()["begun"].match(plain)
    if begun is not None:
        return str(begun["letter"])
    hinted = list(_patterns()["hinted"].finditer(plain))
    if hinted:
        return str(hinted[-1]["letter"])
    marked = _patterns()["marked"].search(plain)
    return None if marked is None else str(marked["letter"])


@cache
def _patterns() -> dict[str, Any]:
    regex = importlib.import_module("regex")
    flags = regex.V1 | regex.MULTILINE
    # what declares is matched without regard to case, the letter is not
    declared = rf"(?i:{_DECLARED}){_MARKS}(?:{_LETTER}|{_SMALL})"
    framed = rf"(?<=[(\[*_\"“「]){_LETTER}(?=[)\]*_\"”」.:])"
    marked = rf"(?:{framed}|(?<=^\s*){_LETTER}(?=[).:])|{_LETTER}(?=[)])|{_LETTER}(?=\W*$))"
    begun = rf"[\s*_(\[\"“「]*{_LETTER}(?!(?i:{_BLAMED}))(?:(?=[)\]*_\"”」.:,：，]|\s*$)|(?<=[B-H])(?=\s))"
    return {
        "inner": regex.compile(_LETTER, flags),
        "latex": regex.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", flags),
        "declared": regex.compile(declared, flags),
        "praised": regex.compile(rf"{_LETTER}(?i:{_PRAISED})", flags),
        "begun": regex.compile(begun, regex.V1),
        "hinted": regex.compile(rf"(?i:{_HINTED}){_MARKS}{_LETTER}", flags),
        "marked": regex.compile(rf"{marked}(?!(?i:{_BLAMED}))", flags),
    }
