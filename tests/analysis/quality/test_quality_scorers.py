"""Every scorer against plain definitions and worked examples."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.quality import scorers
from kvload.analysis.quality.scorers import SCORERS, agreement, common_subsequence, score
from kvload.errors import UsageError

WORDS = st.lists(st.sampled_from("abcde"), max_size=12)
TEXTS = st.text(alphabet="ab c,.1-\n(é", max_size=30)


@pytest.mark.parametrize(
    ("name", "answer", "expected", "wanted"),
    [
        ("exact", " The 5279. ", "5279", 1),
        ("exact", "5279 or so", "5279", 0),
        ("exact", "Ｅiffel  TOWER!", "the eiffel tower", 1),
        ("contains", "It is in the old garden, I think.", "old garden", 1),
        ("contains", "It is in the old gardens.", "old garden", 0),
        ("f1", "the cat sat", "a cat sat down", 0.8),
        ("f1", "", "", 1),
        ("f1", "", "x", 0),
        # the example of Lin 2004, section 3.1: LCS 3 of 4 and 4 words
        ("rouge_l", "police kill the gunman", "police killed the gunman", 0.75),
        ("rouge_l", "the gunman kill police", "police killed the gunman", 0.5),
        ("numeric", "2, 5, 9. Total: 16", "Total: 16", 1),
        ("numeric", "It costs $1,234.50", "1234.5", 1),
        ("numeric", "-3", "3", 0),
        ("numeric", "\u22123", "-3", 1),
        ("numeric", "no number", "3", 0),
        ("numeric", "1e3", "1000", 1),
        ("numeric", "version 2b, so 7", "7", 1),
        ("choice", "B", "B", 1),
        ("choice", "The answer is (C).", "C", 1),
        ("choice", "A) is wrong. The answer is D", "D", 1),
        ("choice", "A good idea. (B) fits.", "B", 1),
        ("choice", "I do not know", "A", 0),
        ("choice", "answer: b", "B", 1),
        ("regex", "code 5279 found", r"\b5\d{3}\b", 1),
        ("regex", "code 279 found", r"\b5\d{3}\b", 0),
        ("items", "lamp, fox\nriver", "river, lamp, fox", 1),
        ("items", "- lamp\n2. Fox", "fox, lamp, river, cup", 2 * 2 / 6),
        ("items", "1984, 2001", "2001; 1984", 1),
        ("items", "", "", 1),
        ("items", "lamp, lamp, lamp", "lamp", 1),
    ],
)
def test_worked_examples(name: str, answer: str, expected: str, wanted: float) -> None:
    assert score(name, answer, expected) == pytest.approx(wanted)


@pytest.mark.parametrize("name", SCORERS)
@given(answer=TEXTS, expected=TEXTS)
def test_scores_stay_between_0_and_1(name: str, answer: str, expected: str) -> None:
    try:
        found = score(name, answer, expected)
    except UsageError:
        assert name in {"numeric", "choice", "regex", "ifeval"}
        return
    assert 0 <= found <= 1


@pytest.mark.parametrize("name", ["exact", "contains", "f1", "rouge_l", "items"])
@given(text=TEXTS)
def test_a_text_agrees_with_itself(name: str, text: str) -> None:
    assert score(name, text, text) == 1


@given(WORDS, WORDS)
def test_common_subsequence_against_the_definition(one: list[str], two: list[str]) -> None:
    """Against the textbook recurrence (Wagner and Fischer 1974)."""
    table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, j in itertools.product(range(len(one)), range(len(two))):
        table[i + 1][j + 1] = table[i][j] + 1 if one[i] == two[j] else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(one, two) == table[-1][-1]


@given(WORDS, WORDS)
def test_f1_against_precision_and_recall(one: list[str], two: list[str]) -> None:
    # no "a": it is an article
    one, two = [f"w{word}" for word in one], [f"w{word}" for word in two]
    left = list(two)
    common = 0
    for word in one:
        if word in left:
            left.remove(word)
            common += 1
    if not one or not two:
        wanted = float(one == two)
    elif common == 0:
        wanted = 0.0
    else:
        precision, recall = common / len(one), common / len(two)
        wanted = 2 * precision * recall / (precision + recall)
    assert score("f1", " ".join(one), " ".join(two)) == pytest.approx(wanted)


def test_agreement_is_1_for_the_same_answer_and_falls_with_words() -> None:
    assert agreement("one two three four", "one two three four") == 1
    assert agreement("one two", "one two three four") == pytest.approx(2 / 3)
    assert agreement("", "") == 1
    assert agreement("", "x") == 0


def test_what_cannot_be_scored_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("none", "x"), ("numeric", "no number"), ("choice", "nothing"), ("regex", "(")):
        with pytest.raises(UsageError):
            score(name, "x", expected)
    with pytest.raises(UsageError, match="over 1000 characters"):
        score("regex", "x", "x" * 1001)
    monkeypatch.setattr(scorers, "REGEX_TIMEOUT_S", 0.05)
    with pytest.raises(UsageError, match="takes over"):
        score("regex", "a" * 60 + "!", "(a|aa)+$")


def test_long_answers_are_scored_in_bounded_time() -> None:
    text = "word " * 100_000
    assert score("f1", text, "word") < 0.001
    assert score("rouge_l", text[:50_000], "word") < 0.001
