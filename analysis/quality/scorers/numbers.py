"""The number that an answer ends up with."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kvload.analysis.quality.scorers.number_words import spelled_numbers
from kvload.analysis.quality.scorers.patterns import compiled
from kvload.analysis.quality.scorers.reasoning import tagged_answer
from kvload.analysis.quality.scorers.words import folded
from kvload.errors import UsageError

IN_OTHER_TONGUES = (
    r"\b(?:respuesta|resultado|soluci[oó]n|r[eé]ponse|r[eé]sultat|Antwort|Ergebnis|L[oö]sung|resposta|solução|"
    r"risposta|risultato|soluzione|antwoord|resultaat|svaret|odpowied[zź]|odpowiedzią|wynik|cevap|yanıt|jawaban\w*|"
    r"đáp\s+án|câu\s+trả\s+lời|kết\s+quả|ответ\w*|результат|відповідь)\b[^.\n:=：\d]{0,30}?"
    r"(?:\b(?:es|est|ist|lautet|betr[aä]gt|é|è|is|to|jest|adalah|là|är|er)\b|[:=：—])|"
    r"\b(?:cevap|yanıt|jawaban\w*|ответ)\b|"
    r"(?:答案|结果|結果|答え|正解|결과|정답|답)\s*(?:应该|應該)?\s*(?:是|为|為|は|은|는|[:=：])|"
    r"(?:الجواب|الإجابة|الناتج|النتيجة)(?:\s+(?:النهائية|النهائي|الصحيحة|الصحيح))?\s*(?:هو|هي|[:=])|"
    r"(?:उत्तर|जवाब)(?:\s+(?:है|[:=]))?"
)
"""Words that declare an answer in languages other than English."""

DECLARED = (
    r"\b(?:answers?|result)\b[^.\n:=]{0,40}?(?:\b(?:is|are|was|be|equals|comes(?:\s+out)?\s+to)\b(?!\s+not\b)|[:=])|"
    r"<answer>|" + IN_OTHER_TONGUES
)
"""Words that declare an answer; matched without regard to case."""

_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
"""Letters before a number make it part of a name (``x2``, ``GPT-4``); scripts without cases write counts like that."""
_DIGITS = (
    # thousands set off by plain spaces: where a list would not look like that
    r"(?:\d{1,3}(?: \d{3})* 0\d\d(?: \d{3})*|\d{1,2}(?: \d{3}){2,}|"
    r"\d{1,3}(?:[,\u00a0\u202f\u2009']\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?!\d)(?:\.\d+)?|\.\d+"
)
_SIGN = rf"(?:(?<![\p{{N}})\]}}])(?<!{_CASED})[-+])?"
_CURRENCY = r"(?:\p{Sc}\s?)?"
_BEFORE = rf"(?<!\^)(?<!\^\{{)(?<!{_CASED})(?<!{_CASED}-)(?<!\p{{N}})(?<!\d[./])"
_PATTERN = (
    rf"{_BEFORE}(?P<sign>{_SIGN}{_CURRENCY}{_SIGN})(?P<whole>{_DIGITS})"
    r"(?P<exponent>[eE][-+]?\d{1,3}(?!\w))?"
    r"(?:\s?(?P<ten>(?:\*|×|x|·|\\times|\\cdot)\s?10\s?\^\s?\{?(?P<power>[-+]?\d{1,3})\}?)|\s?\^\s?\{?(?P<raised>[-+]?\d{1,3})(?!\d)\}?)?"
    r"(?:(?P<parts>\s\d{1,6}/\d{1,6}(?!\d))|\s?/\s?(?P<below>\d+(?:\.\d+)?(?!\d)))?(?!\.\d)"
    r"(?:\s?(?P<unit>\\?%|[千万萬亿億])|[-\s]?(?P<scale>(?i:hundred|thousand|million|billion|trillion|dozen))s?\b|"
    r"(?P<short>[kKMB]|bn|mn)(?!\w))?"
)
_UNITS: dict[str, Fraction | int] = {
    "%": Fraction(1, 100), "\\%": Fraction(1, 100), "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
    "hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "k": 10**3,
    "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9,
}  # fmt: skip
"""What a number may be counted in; it is as well read without, as where the question names the unit."""

_COMMA = (
    # no list ("1,2,3", "(3,4)"), and no year behind a date
    r"(?<![\d.]|\d,\s?)(?<!\p{L}\.?\s(?=\d{1,2},(?:19|20)\d\d(?!\d)))(?!(?<=[(\[{])\d+,\d+[)\]}])"
    r"(?<whole>\d+|\d{1,3}(?:[ \u00a0\u202f\u2009']\d{3})+),(?<part>\d{1,2}|\d{4,}|(?<=(?<!\d)0,)\d{3})"
    r"(?!\d|\.\d|,\s?\d)"
)
_POINTS = (
    r"(?<![\d.,])(?:(?<whole>\d{1,3}(?:\.\d{3})+),(?<part>\d+)(?![\d.]|,\d)"
    r"|(?<whole>\d{1,3}(?:\.\d{3}){2,})(?![\d.,]\d|\d))"
)
_ONE_POINT = r"(?<![\d.,])(?<whole>[1-9]\d{0,2}\.\d{3})(?![\d.,]\d|\d)"
_ENGLISH = r"(?<![\d.,])\d+\.(?:\d{1,2}|\d{4,})(?![\d.])|\d,\d{3}\.\d"
_CONTINENTAL = {"comma": _COMMA, "points": _POINTS, "one point": _ONE_POINT, "english": _ENGLISH}
_OR = r"\s*(?:or|oder|ou|или|lub|veya|或者?|または|또는)\s*(?:maybe|perhaps|possibly|even|[a-z]\s?=)?\s*"
_LED_BY = r"[\s*_\"'“:]*(?:(?:about|approximately|exactly|therefore|thus|just|only|simply|the\s+number)\s+)*[\"'“*_]*"
"""What may stand between a declaration and its number in words."""

_OPERATOR = r"\s*(?:[*×/·+]|\\(?:times|cdot)|-\s*\d|x\s*\d|times\b|plus\b|minus\b|multiplied\b|divided\b)"

_FRACTION = (
    r"(?P<minus>(?<![\p{N}\p{L})}\]]\s?)-\s?)?"
    r"\\[cdt]?frac\s*(?:\{(?P<above>[^{}]{1,40})\}|(?P<above>\d))\s*(?:\{(?P<below>[^{}]{1,40})\}|(?P<below>\d))"
)
_HEADING = r"####\s*(?:\d+[.)]\s+\p{L}|(?:step|part|problem|question|case|phase)\b)"
_REACH = 200
"""Characters behind a declaration in which its number must come."""

_GLOSS = r"(\d\S*(?:\s\S+){0,3}\s?)\([^()=\n]{0,80}?\d\s?[-+*/×÷·x]\s?\p{Sc}?\d[^()=\n]{0,80}\)"
"""How a number came about, in parentheses behind it."""

_DECLARATIONS = 50
"""The last declarations of an answer that are looked at."""

_EXACT_DIGITS = 300
"""Whole numbers of no more digits are compared digit by digit."""

_TAIL = 4000
"""Characters at the end of an answer in which its last number is looked for first."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text.

    Attributes:
        value: what it says, with its unit where that is a number as well ("5 million", "50 %").
        plain: what it says without that unit.
        start, end: where it stands.
        has_sign: it begins with a sign, of a currency for instance.
        is_weak: a word that stands for other things as well.
    """

    value: float
    plain: float
    start: int
    end: int
    has_sign: bool = False
    is_weak: bool = False

    def equals(self, other: "Number") -> bool:
        """Whether both say the same; where one alone has a unit, with it or without it."""
        if self.value != self.plain and other.value != other.plain:
            return _close(self.value, other.value)
        return any(_close(one, two) for one in {self.value, self.plain} for two in {other.value, other.plain})


def numeric(answer: str, expected: str, *, is_cut: bool = False) -> float:
    """1 where the answer's number is the expected one; what is no whole number to one part in a million.

    The number is the first one behind the last ``####`` (GSM8K's mark), else that of the last ``\\boxed{}``, else of
    the last declaration ("the answer is 18 (9 eggs at $2 each)"), else the last of all. Units may be glued on,
    thousands set off; ``1/3``, ``\\frac{1}{3}`` and ``2 1/2`` are fractions, ``5 * 10^3`` and ``5 000`` are 5000. A
    number in ``<answer>`` ... ``</answer>`` comes before all others.

    ``3,14`` and ``1.234,5`` are read as they are meant where they cannot be lists or thousands; ``1.234`` is one
    thousand only beside a number that shows that points set off thousands. Numbers in words are English ones; beside
    digits they count only where an answer is declared by them. "5 or 6" settles on nothing, "0.5 or 1/2" on a half.

    Args:
        is_cut: the answer was cut off, so that only a declared number counts: the last one may be any.

    Raises:
        UsageError: there is no number in ``expected``, or several to choose from.
    """
    wanted = settled_number(expected)
    if wanted is None:
        raise UsageError(f"the numeric scorer finds no number in the expected answer '{expected[:60]}'")
    found = settled_number(answer, declared_only=is_cut)
    return float(found is not None and found.equals(wanted))


def _close(one: float, two: float) -> bool:
    if float(one).is_integer() and float(two).is_integer():
        return one == two
    return math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-9)


def settled_number(text: str, *, declared_only: bool = False) -> Number | None:
    """The number that a text settles on; None where it has none, or leaves open which of several."""
    tagged = tagged_answer(text)
    inner = None if tagged is None else settled_number(tagged)
    if inner is not None:
        return inner
    plain = compiled(_FRACTION).sub(_fraction, text) if "\\" in text else text
    plain = with_points(_bare(_folded_numbers(plain)))
    for marked in _behind_marks(plain):
        if found := numbers(marked) or _spelled(marked):
            return _one_of(found, 0, marked)
    boxed = boxed_text(plain)
    if boxed is not None and (found := numbers(boxed) or _spelled(boxed)):
        return _one_of(found, -1, boxed)
    for match in reversed(list(compiled(DECLARED, is_cased=False).finditer(plain))[-_DECLARATIONS:]):
        line = plain[match.end() : match.end() + _REACH].lstrip(" *\n:$\\([").partition("\n")[0]
        if (sentence := _sentence(line)) and (found := _of_declared(sentence)):
            return _one_of(found, 0, sentence)
    if declared_only:
        return None
    plain = compiled(_GLOSS).sub(r"\1", plain)
    tail = plain[-_TAIL:]
    found = numbers(tail)
    if len(found) < 2 and len(plain) > _TAIL:  # none, or one that may begin before the tail
        tail, found = plain, numbers(plain)
    if not found:
        tail = plain[-_TAIL:]
        found = _spelled(tail)
        found = [number for number in found if not number.is_weak] or found
    return _one_of(found, -1, tail) if found else None


def _of_declared(sentence: str) -> list[Number]:
    """The number that a declaration comes to, and those behind it."""
    spelled = _spelled(sentence)
    if spelled and not compiled(_LED_BY, is_cased=False, nested=True).fullmatch(sentence, 0, spelled[0].start):
        spelled = []
    if spelled and not compiled(_OPERATOR, is_cased=False, nested=True).match(sentence, spelled[0].end):
        return spelled
    found = numbers(sentence)
    sides: list[list[Number]] = [[]]
    for before, number in zip([None, *found], found, strict=False):
        # of "9 * 2 = 18" and of "18 = 9 * 2" the side with one number
        if (
            before is not None
            and "=" in sentence[before.end : number.start]
            and not _is_choice(before, number, sentence)
        ):
            sides.append([])
        sides[-1].append(number)
    alone = [side for side in sides if len(side) == 1] or [side for side in sides if side]
    return alone[-1] if alone else _spelled(sentence)


def _one_of(found: Sequence[Number], place: int, text: str) -> Number | None:
    """The number at that place; None where it is one of several to choose from that say different things."""
    place %= len(found)
    number = found[place]
    beside = ([(found[place - 1], number)] if place else []) + [
        (number, other) for other in found[place + 1 : place + 2]
    ]
    if any(_is_choice(one, two, text) and not one.equals(two) for one, two in beside):
        return None
    return number


def _is_choice(one: Number, two: Number, text: str) -> bool:
    """Whether the text leaves it open which of two numbers it means: "5 or 6", but not "90 minutes or 1.5 hours"."""
    if compiled(_OPERATOR, is_cased=False, nested=True).match(text, two.end) or one.has_sign != two.has_sign:
        return False
    between = text[one.end : two.start]
    if compiled(_OR, is_cased=False, nested=True).fullmatch(between):
        return True
    unit = between.strip().partition(" ")[0]
    return bool(
        unit.isalpha()
        and compiled(_OR, is_cased=False, nested=True).fullmatch(between.strip().removeprefix(unit))
        and text[two.end :].lstrip().startswith(unit)
    )


def numbers(text: str) -> list[Number]:
    """All numbers of a text that stand for themselves: not parts of words, versions or dates."""
    values = (_value(match) for match in compiled(_PATTERN, nested=True).finditer(text))
    return [value for value in values if value is not None]


def _spelled(text: str) -> list[Number]:
    return [Number(word.value, word.value, word.start, word.end, False, word.is_weak) for word in spelled_numbers(text)]


def with_points(text: str) -> str:
    """Decimal commas become points, and points that set off thousands go, where it is certain that they are that."""
    if not text.count(",") and text.count(".") < 2:
        return text
    patterns = {name: compiled(pattern, nested=True) for name, pattern in _CONTINENTAL.items()}
    shown = any(patterns[name].search(text) for name in ("points", "comma"))
    if not shown:
        return text
    if not patterns["english"].search(text):
        text = patterns["one point"].sub(_without_groups, text)
    return str(patterns["comma"].sub(_without_groups, patterns["points"].sub(_without_groups, text)))


def _without_groups(match: Any) -> str:
    part = match.groupdict().get("part")
    whole = str(match["whole"]).replace(".", "")
    return whole if part is None else f"{whole}.{part}"


def boxed_text(text: str) -> str | None:
    """What stands in the last ``\\boxed{}``, braces inside it included; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return text[start + len("\\boxed{") :]


def _behind_marks(text: str) -> list[str]:
    """What stands behind ``####``: first where a number follows at once, the last one first; headings are no marks."""
    if "####" not in text:
        return []
    lines = [part.lstrip("# \t").lstrip("\n").partition("\n")[0][:_REACH] for part in text.split("####")[1:]]
    named = [
        line for line in reversed(lines[-_DECLARATIONS:]) if not compiled(_HEADING, is_cased=False).match(f"####{line}")
    ]
    at_once = [line for line in named if compiled(r"\W*\d").match(line)]
    return [*at_once[:1], *named[:1]]


def _fraction(match: Any) -> str:
    sign = "-" if match["minus"] else ""
    return f" {sign}{match['above']}/{match['below']}"


def _sentence(line: str) -> str:
    """The line up to its sentence's end, without what stands in parentheses."""
    plain = compiled(r"(?<=\S\s)\([^()]*\)").sub("", line)
    return str(compiled(r"(?<=[^\s.])[.。!?！？;；](?=\s|$)").split(plain, maxsplit=1)[0])


def _bare(text: str) -> str:
    """Without LaTeX's commas (``70{,}000``), spaces (``\\,``), escaped signs and texts, and without bold."""
    spaced = re.sub(r"(?<=\d)\\[ ;:](?=\d{3}(?!\d))", "\u202f", text)
    spaced = re.sub(r"(?<=\d)\{,\}(?=\d{1,2}(?!\d)|\d{4})", ".", spaced).replace("{,}", ",")
    spaced = re.sub(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}", r" \1 ", spaced)
    return spaced.replace("\\!", "").replace("\\,", "").replace("\\$", "$").replace("\\%", "%").replace("**", "")


def _folded_numbers(text: str) -> str:
    if text.isascii():
        return text
    # regex knows digits of later Unicode versions than Python does, which has no value for them
    known = compiled(r"[^\P{Nd}0-9]").sub("\ufffd", folded(_keep_spaces(text)))
    return str(known).replace("\ue000", "\u202f")


def _keep_spaces(text: str) -> str:
    # NFKC makes plain spaces of those that set off thousands
    return re.sub(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))", "\ue000", text)


def _value(match: Any) -> Number | None:
    digits = "".join(character for character in match["whole"] if character.isdigit() or character == ".")
    is_whole = "." not in digits and match["exponent"] is None and len(digits) <= _EXACT_DIGITS
    value: float = int(digits) if is_whole else float(digits + (match["exponent"] or ""))
    try:
        if match["power"] is not None:
            value *= 10.0 ** int(match["power"])
        if match["raised"] is not None:
            value = float(value) ** int(match["raised"])
        if match["parts"] is not None:
            above, below = match["parts"].split("/")
            value += int(above) / int(below)
        elif match["below"] is not None:
            value /= float(match["below"])
    except (OverflowError, ZeroDivisionError):
        return None
    value = -value if "-" in match["sign"] else value
    unit = match["unit"] or match["scale"] or match["short"]
    try:
        full = value if unit is None else _times(value, _UNITS[unit.lower()])
        is_finite = math.isfinite(value) and math.isfinite(full)
    except OverflowError:
        return None
    if not is_finite:
        return None
    return Number(full, value, match.start(), match.end(), bool(match["sign"].strip("-+")))


def _times(value: float, unit: Fraction | int) -> float:
    exact = Fraction(value) * unit
    return int(exact) if exact.denominator == 1 else float(value) * float(unit)
