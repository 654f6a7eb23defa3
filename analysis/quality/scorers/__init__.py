"""Scores of an answer against the expected one, from 0 to 1, by name.

========== ===========================================================================================================
exact      1 where both have the same words in the same order
contains   1 where the expected answer's words stand in the answer in one piece
f1         F1 over the words that both have (Rajpurkar et al. 2016, SQuAD)
rouge_l    F1 of the longest common subsequence of words (Lin 2004)
numeric    1 where the number that the answer settles on equals that of the expected one
choice     1 where the letter that the answer settles on is the expected one
regex      1 where the expected answer, a regular expression, is found in the answer
items      F1 over the items of two lists separated by commas, semicolons or lines, whatever their order
ifeval     the share of verifiable instructions that the answer follows (IFEval, see :mod:`.instructions`)
========== ===========================================================================================================

What a word is in each script is told in :mod:`.words`; exact, contains, f1 and items leave out the articles a, an, the.
Reasoning between marks (``<think>``) is no part of an answer; only its agreement with another covers all of its text.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from kvload.analysis.quality.scorers.choices import choice
from kvload.analysis.quality.scorers.instructions import ifeval
from kvload.analysis.quality.scorers.numbers import numeric
from kvload.analysis.quality.scorers.overlap import common_subsequence, contains, exact, f1, items, likeness, rouge_l
from kvload.analysis.quality.scorers.reasoning import without_reasoning
from kvload.errors import UsageError

__all__ = ["MAX_CHARACTERS", "SCORERS", "agreement", "common_subsequence", "score"]

MAX_CHARACTERS = 200_000
"""Answers are cut to so many characters before they are scored."""

MAX_PATTERN_CHARACTERS = 1_000
REGEX_TIMEOUT_S = 2.0


def score(name: str, answer: str, expected: str, *, is_cut: bool = False) -> float:
    """The score of ``answer`` by the scorer of that name.

    Args:
        is_cut: the answer was cut off at its limit; a number or letter in it counts only where it is declared.

    Returns:
        0 (wrong) to 1 (right).

    Raises:
        UsageError: there is no such scorer, or ``expected`` is nothing that it can score against.
    """
    scorer = SCORERS.get(name)
    if scorer is None:
        raise UsageError(f"no such scorer: '{name}'", hint=f"known: {', '.join(SCORERS)}")
    given, wanted = without_reasoning(answer)[:MAX_CHARACTERS], expected[:MAX_CHARACTERS]
    if scorer is numeric or scorer is choice:
        return scorer(given, wanted, is_cut=is_cut)
    return scorer(given, wanted)


def agreement(answer: str, baseline: str, beside: tuple[str, ...] = (), baseline_beside: tuple[str, ...] = ()) -> float:
    """How far an answer is the same text as the baseline's, where nobody knows the right one; 1 only for equal ones.

    It is a difference of texts and says nothing of their quality.

    Args:
        beside, baseline_beside: what belongs to the answers beside their text, in the same order: reasoning, and the
            tools they called with their arguments.
    """
    one, two = (answer, *beside), (baseline, *baseline_beside)
    if one == two:
        return 1.0
    return likeness([text[:MAX_CHARACTERS] for text in one], [text[:MAX_CHARACTERS] for text in two])


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


SCORERS: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        "exact": exact,
        "contains": contains,
        "f1": f1,
        "rouge_l": rouge_l,
        "numeric": numeric,
        "choice": choice,
        "regex": matches,
        "items": items,
        "ifeval": ifeval,
    }
)
"""All scorers by name; each takes the answer and the expected answer."""
