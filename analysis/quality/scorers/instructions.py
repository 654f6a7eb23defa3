"""Instructions whose following can be verified by looking at the answer (IFEval, Zhou et al. 2023).

Checked as the paper defines them: every kind but ``language:response_language``, which needs a model of languages, and
without asking whether an answer in capitals or small letters is English. Sentences are counted by their ends,
abbreviations and initials left out, where the original asks a trained splitter.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kvload.analysis.quality.scorers.words import UNSPACED
from kvload.errors import UsageError

_ABBREVIATIONS = frozenset(
    {
        "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "inc", "ltd", "co", "no", "fig", "e.g", "i.e",
        "u.s", "u.k", "a.m", "p.m", "approx", "dept", "est",
    }
)  # fmt: skip
_RELATIONS = (None, "at least", "less than")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCE = re.compile(r"^```(?:json|JSON|Json)?\s*|\s*```$")


def ifeval(answer: str, expected: str) -> float:
    """The share of the expected instructions that the answer follows.

    Args:
        answer: what the model said.
        expected: a JSON list of instructions: ``{"id": "keywords:existence", "keywords": [...]}``.

    Raises:
        UsageError: ``expected`` is no such list, or names an instruction that is not checked.
    """
    try:
        wanted = json.loads(expected)
        followed = [_follows(answer, each) for each in wanted]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"not a list of instructions: '{expected[:60]}'", hint="see kvload traces convert") from error
    if not followed:
        raise UsageError("the list of instructions is empty")
    return sum(followed) / len(followed)


def _follows(answer: str, wanted: Mapping[str, Any]) -> bool:
    name = wanted["id"]
    if name not in CHECKS:
        raise UsageError(f"no such instruction: '{str(name)[:60]}'", hint=f"known: {', '.join(CHECKS)}")
    # an answer of nothing follows no instruction, not even "no comma"
    return bool(answer.strip()) and CHECKS[name](answer, wanted)


def _compared(count: int, relation: object, limit: object) -> bool:
    if not isinstance(limit, int | float):
        raise TypeError("no limit")
    if relation not in _RELATIONS:
        raise ValueError("no such relation")
    return count < limit if relation == "less than" else count >= limit


def _keywords_exist(answer: str, wanted: Mapping[str, Any]) -> bool:
    text = answer.lower()
    return all(word.lower() in text for word in wanted["keywords"])


def _keyword_frequency(answer: str, wanted: Mapping[str, Any]) -> bool:
    keyword = wanted["keyword"].strip().lower()
    if not keyword:
        raise ValueError("no keyword")
    count = answer.lower().count(keyword)
    return _compared(count, wanted.get("relation"), wanted["frequency"])


def _no_forbidden_word(answer: str, wanted: Mapping[str, Any]) -> bool:
    return not any(_has_word(answer, word.strip()) for word in wanted["forbidden_words"])


def _has_word(answer: str, word: str) -> bool:
    """Whether the text has the word; words of scripts without spaces have no ends, and so stand anywhere in it."""
    if not word:
        raise ValueError("no word")
    regex = importlib.import_module("regex")
    unspaced = regex.compile(f"[{UNSPACED}]", regex.V1)
    before = "" if unspaced.match(word[0]) else r"(?<!\w)"
    after = "" if unspaced.match(word[-1]) else r"(?!\w)"
    return re.search(f"{before}{re.escape(word)}{after}", answer, re.IGNORECASE) is not None


def _letter_frequency(answer: str, wanted: Mapping[str, Any]) -> bool:
    count = answer.lower().count(wanted["letter"].lower())
    return _compared(count, wanted.get("let_relation"), wanted["let_frequency"])


def _sentences(answer: str, wanted: Mapping[str, Any]) -> bool:
    return _compared(count_sentences(answer), wanted.get("relation"), wanted["num_sentences"])


def count_sentences(text: str) -> int:
    """Sentences of a text: ends (``. ! ? 。``) before white space or the end, abbreviations and initials left out.

    A line that ends without one, and holds a word, is a sentence as well.
    """
    count = 0
    for line in text.splitlines():
        words = line.split()
        ends = [_ends_sentence(word) for word in words]
        count += sum(ends) + sum(max(len(re.findall("[。！？]", word)) - 1, 0) for word in words)
        count += bool(words and not ends[-1] and re.search(r"\w", line))
    return count


def _ends_sentence(word: str) -> bool:
    bare = word.rstrip("\"'”’)]*_»」")
    if not bare.endswith((".", "!", "?", "…", "。", "！", "？")):
        return False
    stem = bare.rstrip(".!?…。！？")
    if not bare.endswith("."):
        return bool(stem)
    is_initial = len(stem) == 1 and stem.isupper()
    is_list_mark = stem.isdigit()
    return bool(stem) and not is_initial and not is_list_mark and stem.lower().lstrip("(\"'“") not in _ABBREVIATIONS


def _words(answer: str, wanted: Mapping[str, Any]) -> bool:
    return _compared(len(re.findall(r"\w+", answer)), wanted.get("relation"), wanted["num_words"])


def _paragraphs(answer: str, wanted: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    inner = parts[1:-1]
    found = sum(bool(part) for part in parts)
    return all(inner) and found == wanted["num_paragraphs"]


def _nth_paragraph(answer: str, wanted: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in re.split(r"\n\s*\n", answer) if part.strip()]
    place = wanted["nth_paragraph"]
    if len(parts) != wanted["num_paragraphs"] or not 1 <= place <= len(parts):
        return False
    first = re.match(r"[^\w]*(\w[\w'-]*)", parts[place - 1])
    return first is not None and first[1].lower() == wanted["first_word"].lower()


def _placeholders(answer: str, wanted: Mapping[str, Any]) -> bool:
    return _compared(len(re.findall(r"\[[^\[\]]*\]", answer)), "at least", wanted["num_placeholders"])


def _postscript(answer: str, wanted: Mapping[str, Any]) -> bool:
    marker = wanted["postscript_marker"]
    letters = [letter for letter in marker.lower() if letter.isalpha()]
    pattern = r"\.\s?".join(letters) + (r"\." if marker.endswith(".") else "")
    return re.search(pattern, answer.lower()) is not None


def _bullets(answer: str, wanted: Mapping[str, Any]) -> bool:
    found = re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", answer, re.MULTILINE)
    return bool(len(found) == wanted["num_bullets"])


def _constrained(answer: str, _wanted: Mapping[str, Any]) -> bool:
    return any(option in answer for option in _CONSTRAINED)


def _highlights(answer: str, wanted: Mapping[str, Any]) -> bool:
    strong = [text for text in re.findall(r"\*\*([^\n*]+)\*\*", answer) if text.strip()]
    rest = re.sub(r"\*\*[^\n*]+\*\*", "", answer)
    light = [text for text in re.findall(r"\*([^\n*]+)\*", rest) if text.strip()]
    return _compared(len(strong) + len(light), "at least", wanted["num_highlights"])


def _sections(answer: str, wanted: Mapping[str, Any]) -> bool:
    mark = re.escape(wanted["section_spliter"].strip())
    return _compared(len(re.findall(rf"{mark}\s?\d+", answer)), "at least", wanted["num_sections"])


def _json(answer: str, _wanted: Mapping[str, Any]) -> bool:
    try:
        json.loads(_FENCE.sub("", answer.strip()))
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str, _wanted: Mapping[str, Any]) -> bool:
    return any(title.strip(" <>") for title in re.findall(r"<<([^\n]+?)>>", answer))


def _two_responses(answer: str, _wanted: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _repeats_prompt(answer: str, wanted: Mapping[str, Any]) -> bool:
    return answer.strip().lower().startswith(wanted["prompt_to_repeat"].strip().lower())


def _ends_with(answer: str, wanted: Mapping[str, Any]) -> bool:
    return answer.strip().strip('"').lower().endswith(wanted["end_phrase"].strip().lower())


def _capital_words(answer: str, wanted: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"\w[\w'-]*", answer))
    return _compared(count, wanted.get("capital_relation"), wanted["capital_frequency"])


def _quoted(answer: str, _wanted: Mapping[str, Any]) -> bool:
    text = answer.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def _upper(answer: str, _wanted: Mapping[str, Any]) -> bool:
    return answer.isupper()


def _lower(answer: str, _wanted: Mapping[str, Any]) -> bool:
    return answer.islower()


def _no_comma(answer: str, _wanted: Mapping[str, Any]) -> bool:
    return not any(comma in answer for comma in ",，、")


CHECKS: Mapping[str, Callable[[str, Mapping[str, Any]], bool]] = MappingProxyType(
    {
        "keywords:existence": _keywords_exist,
        "keywords:frequency": _keyword_frequency,
        "keywords:forbidden_words": _no_forbidden_word,
        "keywords:letter_frequency": _letter_frequency,
        "length_constraints:number_sentences": _sentences,
        "length_constraints:number_words": _words,
        "length_constraints:number_paragraphs": _paragraphs,
        "length_constraints:nth_paragraph_first_word": _nth_paragraph,
        "detectable_content:number_placeholders": _placeholders,
        "detectable_content:postscript": _postscript,
        "detectable_format:number_bullet_lists": _bullets,
        "detectable_format:constrained_response": _constrained,
        "detectable_format:number_highlighted_sections": _highlights,
        "detectable_format:multiple_sections": _sections,
        "detectable_format:json_format": _json,
        "detectable_format:title": _title,
        "combination:two_responses": _two_responses,
        "combination:repeat_prompt": _repeats_prompt,
        "startend:end_checker": _ends_with,
        "startend:quotation": _quoted,
        "change_case:capital_word_frequency": _capital_words,
        "change_case:english_capital": _upper,
        "change_case:english_lowercase": _lower,
        "punctuation:no_comma": _no_comma,
    }
)
"""All instructions that are checked, by IFEval's names."""
