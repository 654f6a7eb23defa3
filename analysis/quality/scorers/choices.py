"""The letter that an answer settles on."""

import importlib
from functools import cache
from typing import Any

from kvload.analysis.quality.scorers.numbers import IN_OTHER_TONGUES, boxed_text
from kvload.analysis.quality.scorers.reasoning import tagged_answer
from kvload.analysis.quality.scorers.words import folded
from kvload.errors import UsageError

_ALONE = r"(?<![\p{Lu}\p{Ll}\p{Lt}\p{N}])"
_LETTER = _ALONE + r"(?P<letter>[A-HJ-Z]|I(?!\s+\p{Ll}))(?![\p{Lu}\p{Ll}\p{Lt}\p{N}'])"
_SMALL = _ALONE + r"(?P<small>[a-z])(?=\s*(?:$|[.,;:)\]\n。，'\"”」*`]))"
_MARKS = r"[\s*_(\[{\"'“「:：$\\]*"
_AROUND = " \t\n()[]{}<>*_.,:;\"'`$“”「」（）。、\\"
_NOUN = r"(?:\s*(?:option|choice|letter|answer)\b)?"

_FILLED = r"(?:\s+(?:to|for|of|here|then|would|must|should|can\s+only)\b[^.\n]{0,60}?)?"
_VERB = r"\s*(?:is|be|was|[:=：])(?!\s*not\b)"
_SURELY = r"(?:\s+(?:clearly|therefore|thus|likely|probably|definitely))?(?:\s*(?:the|option|choice|letter|[:：])\s*)*"
_DECLARED = "|".join(
    (
        rf"\b(?:answer|solution)s?\b{_FILLED}(?:{_VERB})*{_SURELY}",
        rf"\b(?:choice|option)s?\b{_FILLED}(?:{_VERB})+{_SURELY}",
        r"\b(?:choose|pick|select|chose|go(?:ing)?\s+with|settle\s+on)\b" + _NOUN,
        r"(?:答案|答え|正解|選択肢|正确选项|正確選項|정답|답)\s*(?:应该|應該)?\s*(?:是|为|為|选|選|は|은|는)?\s*[:：]?\s*(?:选项|選項)?",
        r"(?:故选|故選|应选|應選|选择|選擇|选|選)\s*(?:项|項)?\s*[:：]?",
        r"<answer>",
        rf"(?:{IN_OTHER_TONGUES})(?:\s+(?:la|a|o|de|die|opci[oó]n|opção|opzione|optie|option|letra|lettre|lettera|"
        r"Buchstabe|буква|вариант|pilihan|الخيار|विकल्प)\b)*",
    )
)
_PRAISED = (
    r"\s*[)\].:*]*\s*(?:is|are|seems|looks)\s+(?:clearly\s+|indeed\s+)?(?:the\s+)?"
    r"(?:correct|right|best|true|answer)|\s*[)\]]?\s*(?:项|項)?是?(?:正确|正確)"
)
_BLAMED = (
    r"\s*[)\].:*]*\s*(?:(?:is|are|seems|looks|would\s+be)\s+(?:clearly\s+)?"
    r"(?:wrong|incorrect|false|not\b|out\b|ruled\s+out|impossible)|(?:isn't|is\s+not|cannot\s+be|can't\s+be)\b)|"
    r"\s*[)\]]?\s*(?:项|項)?\s*是?(?:不正确|不正確|不对|不對|错|錯|有误|有誤)"
)
_OPENED, _CLOSED = r"[(\[{*_\"'“$]{0,4}", r"[ \t)\]*_.\"'”}$]{0,6}"
_JOINED = (
    rf"(?:[ \t]*\([^()\n]{{2,60}}\))?(?:{_CLOSED}"
    r"(?:(?P<open>,?[ \t]*\b(?:or|oder|ou|или|lub|nor|and/or)\b|或者?|または|또는|\s*\|)"
    r"|,?[ \t]*\b(?:and|und|et|и)\b|\s&|[/&、和])"
    r"[ \t]*(?:(?:maybe|perhaps|possibly|even|also|the|option|choice|letter|answer|it\s+(?:could|might)\s+be)[ \t]+)*"
    rf"{_OPENED}|(?<=\p{{L}}),[ \t]*|[)\]*_\"'”}}$]+,[ \t]*[(\[{{*_\"'“$]+)"
)
"""Between two letters of which the second is as good as the first, or (``open``) in its place."""

_NOT = r"\b(?:neither|nor|not|cannot\s+be)[ \t]+(?:the[ \t]+)?(?:options?[ \t]+|choices?[ \t]+)?[(\[{*_\"'“$]{0,4}$"
_LISTED = r"\s*[(*]{0,3}(?P<letter>[A-Z])[).:][^\n]*(?:\n|$)"
_HINTED = r"\b(?:it's|(?:must|should|would|has\s+to|have\s+to)\s+be|is|but(?:\s+rather)?|so|therefore|thus|hence)\b"
_LONGEST_CHAIN = 200


def choice(answer: str, expected: str, *, is_cut: bool = False) -> float:
    """1 where the answer settles on the expected letter.

    The letter is the last one declared ("the answer is B", ``\\boxed{C}``, "B is correct", and the like in some other
    languages); else the one that the answer begins with ("B) Paris"), or consists of; else the last that "it is B"
    or "option B" points to; else the first marked as a choice ("(B)", "B.", "**B**") of which nothing bad is said, or
    alone at the end of a line. "I" and "a" in a sentence are no letters.

    "A and C" are two letters, and only right where both are expected; "A or B" settles on nothing, and neither does a
    list of all options.

    Args:
        is_cut: the answer was cut off, so that only a declared letter counts.

    Raises:
        UsageError: ``expected`` names no letter, or leaves open which.
    """
    wanted = settled_letters(expected)
    if not wanted:
        raise UsageError(
            f"the choice scorer finds no letter in the expected answer '{expected[:60]}', or several to choose from"
        )
    return float(settled_letters(answer, declared_only=is_cut) == wanted)


def settled_letters(text: str, *, declared_only: bool = False) -> frozenset[str]:
    """The letter, or letters, that a text settles on, in upper case; empty where it has none or leaves open which."""
    plain = folded(text).strip()
    if (alone := _alone(plain)) is not None:
        return frozenset(alone)
    tagged = tagged_answer(plain)
    if tagged is not None and (inner := settled_letters(tagged)):
        return inner
    if "\\" in plain:
        plain = _patterns()["latex"].sub(r"\1", plain)
        boxed = boxed_text(plain)
        if boxed is not None and (inner := _boxed_letters(boxed)):
            return inner
    found = [match for name in ("declared", "praised") for match in _patterns()[name].finditer(plain)]
    if found:
        return _with_others(max(found, key=lambda match: int(match.end())), plain)
    if declared_only:
        return frozenset()
    plain = _without_the_options(plain)
    for name in ("begun", "begun_small"):
        if (begun := _patterns()[name].match(plain)) is not None:
            return _with_others(begun, plain)
    for name in ("called", "hinted"):
        if pointed := list(_patterns()[name].finditer(plain)):
            return _with_others(pointed[-1], plain)
    for name in ("marked", "marked_small"):
        if (marked := _patterns()[name].search(plain)) is not None:
            return _with_others(marked, plain)
    return frozenset()


def _with_others(match: Any, text: str) -> frozenset[str]:
    """The letter that was found, with those joined to it; empty where it is left open which, or is said not to be."""
    group = "letter" if match.groupdict().get("letter") else "small"
    start, letters = match.start(group), frozenset(_letter(match))
    chains = _patterns()["chain"].finditer(text, max(0, start - _LONGEST_CHAIN), start + _LONGEST_CHAIN)
    chain = next((chain for chain in chains if chain.start() <= start < chain.end()), None)
    if chain is not None and chain["open"] is None and start < chain.starts("letter")[-1]:
        # "C, and A is too small": the last letter is what another sentence is about
        chain = None if _patterns()["clause"].match(text, chain.end()) is not None else chain
    if chain is not None:
        letters = frozenset(letter.upper() for letter in chain.captures("letter"))
        start = chain.start()
        if chain["open"] is not None and len(letters) > 1:
            return frozenset()
    denied = _patterns()["denied"].search(text[max(0, start - _LONGEST_CHAIN) : start])
    return frozenset() if denied is not None else letters


def _without_the_options(text: str) -> str:
    """The text without the list of all options that it begins with, if it does: no choice has been made by that."""
    place = count = 0
    while (line := _patterns()["listed"].match(text, place)) and line["letter"] == chr(ord("A") + count):
        place, count = line.end(), count + 1
    rest = text[place:].strip()
    return rest if count > 2 or (count == 2 and not rest) else text


def _letter(match: Any) -> str:
    found = match.groupdict()
    return str(found.get("letter") or found["small"]).upper()


def _alone(text: str) -> str | None:
    """The letter of a text that is nothing else but marks around it, in upper case."""
    bare = text.strip(_AROUND)
    return bare.upper() if len(bare) == 1 and bare.isascii() and bare.isalpha() else None


def _boxed_letters(boxed: str) -> frozenset[str]:
    alone = _alone(boxed)
    if alone is not None:
        return frozenset(alone)
    for name in ("inner", "begun_small"):
        if (found := _patterns()[name].search(boxed)) is not None:
            return _with_others(found, boxed)
    return frozenset()


@cache
def _patterns() -> dict[str, Any]:
    regex = importlib.import_module("regex")
    flags = regex.V1 | regex.MULTILINE
    # what declares is matched without regard to case, the letter is not
    declared = rf"(?i:{_DECLARED}){_MARKS}(?:{_LETTER}|{_SMALL})(?!(?i:{_BLAMED}))"
    framed = rf"(?<=[(\[*_\"“「]){_LETTER}(?=[)\]*_\"”」.:])"
    marked = rf"(?:{framed}|(?<=^\s*){_LETTER}(?=[).:])|{_LETTER}(?=[)])|{_LETTER}(?=\W*$))"
    begun = rf"[\s*_(\[\"“「]*{_LETTER}(?!(?i:{_BLAMED}))(?:(?=[)\]*_\"”」.:,：，]|\s*$)|(?<=[B-H])(?=\s))"
    joined = rf"(?:{_LETTER}(?=[ \t,;.)\]*_\"'”}}$/&|、和或まと또]|$))"
    return {
        "chain": regex.compile(rf"(?>{joined}(?:(?i:{_JOINED}){_LETTER})+)(?!(?i:{_BLAMED}))", flags),
        "clause": regex.compile(r"\s+(?:is|was|has|does|seems|looks|means|would)\b", flags),
        "denied": regex.compile(_NOT, flags | regex.IGNORECASE),
        "listed": regex.compile(_LISTED, regex.V1),
        "inner": regex.compile(_LETTER, flags),
        "latex": regex.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", flags),
        "declared": regex.compile(declared, flags),
        "praised": regex.compile(rf"{_LETTER}(?i:{_PRAISED})", flags),
        "begun": regex.compile(begun, regex.V1),
        "begun_small": regex.compile(
            rf"[\s*_]*(?:\((?P<small>[a-z])\)|(?P<small>[a-z])\))(?!\w|(?i:{_BLAMED}))", regex.V1
        ),
        "called": regex.compile(rf"(?i:\b(?:option|choice)){_MARKS}(?:{_LETTER}|{_SMALL})(?!(?i:{_BLAMED}))", flags),
        "marked_small": regex.compile(rf"(?<!\w)\((?P<small>[a-hj-u])\)(?!\w|(?i:{_BLAMED}))", flags),
        "hinted": regex.compile(rf"(?i:{_HINTED}){_MARKS}{_LETTER}", flags),
        "marked": regex.compile(rf"{marked}(?!(?i:{_BLAMED}))", flags),
    }
