"""The number that an answer ends up with."""

import importlib
import math
import re
from functools import cache
from typing import Any

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
)
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

_TAIL = 4000
"""Characters at the end of an answer in which its last number is looked for first."""


def numeric(answer: str, expected: str, *, is_cut: bool = False) -> float:
    """1 where the answer's number is the expected one; what is no whole number to one part in a million.

    The number is the first one behind the last ``####`` (GSM8K's mark), else that of the last ``\\boxed{}``, else of
    the last declaration ("the answer is 18 (9 eggs at $2 each)"), else the last of all. Units may be glued on,
    thousands set off; ``1/3``, ``\\frac{1}{3}`` and ``2 1/2`` are fractions, ``5 * 10^3`` and ``5 000`` are 5000. A
    number in ``<answer>`` ... ``</answer>`` comes before all others.

    Args:
        is_cut: the answer was cut off, so that only a declared number counts: the last one may be any.

    Raises:
        UsageError: there is no number in ``expected``.
    """
    wanted = settled_number(expected)
    if wanted is None:
        raise UsageError(f"the numeric scorer finds no number in the expected answer '{expected[:60]}'")
    found = settled_number(answer, declared_only=is_cut)
    if found is None or (found.is_integer() and wanted.is_integer()):
        return float(found == wanted)
    return float(math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9))


def settled_number(text: str, *, declared_only: bool = False) -> float | None:
    """The number that a text settles on; None where it has none."""
    tagged = tagged_answer(text)
    inner = None if tagged is None else settled_number(tagged)
    if inner is not None:
        return inner
    plain = _latex().sub(_fraction, text) if "\\" in text else text
    plain = _bare(_folded_numbers(plain))
    for marked in _behind_marks(plain):
        found = numbers(marked)
        if found:
            return found[0]
    boxed = boxed_text(plain)
    if boxed is not None:
        found = numbers(boxed)
        if found:
            return found[-1]
    for match in reversed(list(_declared().finditer(plain))[-_DECLARATIONS:]):
        line = plain[match.end() : match.end() + _REACH].lstrip(" *\n:$\\([").partition("\n")[0]
        sides = [numbers(side) for side in _sentence(line).split("=")]
        # of "9 * 2 = 18" and of "18 = 9 * 2" the side with one number
        alone = [side for side in sides if len(side) == 1] or [side for side in sides if side]
        if alone:
            return alone[-1][0]
    if declared_only:
        return None
    plain = _gloss().sub(r"\1", plain)
    found = numbers(plain[-_TAIL:])
    if len(found) < 2 and len(plain) > _TAIL:  # none, or one that may begin before the tail
        found = numbers(plain)
    return found[-1] if found else None


def numbers(text: str) -> list[float]:
    """All numbers of a text that stand for themselves: not parts of words, versions or dates."""
    values = (_value(match) for match in _numbers().finditer(text))
    return [value for value in values if value is not None and math.isfinite(value)]


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
    named = [line for line in reversed(lines[-_DECLARATIONS:]) if not _heading().match(f"####{line}")]
    at_once = [line for line in named if _at_once().match(line)]
    return [*at_once[:1], *named[:1]]


def _fraction(match: Any) -> str:
    sign = "-" if match["minus"] else ""
    return f" {sign}{match['above']}/{match['below']}"


def _sentence(line: str) -> str:
    """The line up to its sentence's end, without what stands in parentheses."""
    regex = importlib.import_module("regex")
    plain = regex.sub(r"(?<=\S\s)\([^()]*\)", "", line)
    return str(regex.split(r"(?<=[^\s.])[.。!?！？;；](?=\s|$)", plain, maxsplit=1)[0])


def _bare(text: str) -> str:
    """Without LaTeX's thousands (``70{,}000``), spaces (``\\,``, ``\\!``) and escaped signs, and without bold marks."""
    spaced = re.sub(r"(?<=\d)\\[ ;:](?=\d{3}(?!\d))", "\u202f", text)
    return (
        spaced.replace("{,}", ",").replace("\\!", "").replace("\\,", "").replace("\\$", "$").replace("\\%", "%")
    ).replace("**", "")


def _folded_numbers(text: str) -> str:
    if text.isascii():
        return text
    # regex knows digits of later Unicode versions than Python does, which has no value for them
    known = importlib.import_module("regex").sub(r"[^\P{Nd}0-9]", "\ufffd", folded(_keep_spaces(text)))
    return str(known).replace("\ue000", "\u202f")


def _keep_spaces(text: str) -> str:
    # NFKC makes plain spaces of those that set off thousands
    return re.sub(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))", "\ue000", text)


def _value(match: Any) -> float | None:
    digits = "".join(character for character in match["whole"] if character.isdigit() or character == ".")
    value = float(digits + (match["exponent"] or ""))
    try:
        if match["power"] is not None:
            value *= 10.0 ** int(match["power"])
        if match["raised"] is not None:
            value **= int(match["raised"])
    except (OverflowError, ZeroDivisionError):
        return None
    if match["parts"] is not None:
        above, below = match["parts"].split("/")
        if int(below) == 0:
            return None
        value += int(above) / int(below)
    elif match["below"] is not None:
        below_value = float(match["below"])
        if below_value == 0:
            return None
        value /= below_value
    return -value if "-" in match["sign"] else value


@cache
def _numbers() -> Any:
    regex = importlib.import_module("regex")
    return regex.compile(_PATTERN, regex.V1)


@cache
def _declared() -> Any:
    regex = importlib.import_module("regex")
    return regex.compile(DECLARED, regex.IGNORECASE)


@cache
def _at_once() -> Any:
    return importlib.import_module("regex").compile(r"\W*\d")


@cache
def _heading() -> Any:
    regex = importlib.import_module("regex")
    return regex.compile(_HEADING, regex.IGNORECASE)


@cache
def _gloss() -> Any:
    return importlib.import_module("regex").compile(_GLOSS)


@cache
def _latex() -> Any:
    return importlib.import_module("regex").compile(_FRACTION)
