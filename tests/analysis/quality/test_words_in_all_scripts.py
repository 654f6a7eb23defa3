"""Words of all scripts, and the signs that change what a text says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.quality.scorers import agreement, score
from kvload.analysis.quality.scorers.words import words

TEXTS = st.text(alphabet="ab c,.-5<>é世界कमล\u0301\n", max_size=24)


@pytest.mark.parametrize(
    ("name", "answer", "expected", "wanted"),
    [
        ("exact", "-5", "5", 0),
        ("exact", "a < b", "a > b", 0),
        ("contains", "3.5", "35", 0),
        ("contains", "it is 3.5 m", "3.5", 1),
        ("exact", "The 5279.", "5279", 1),
        ("contains", "我在北京市", "北京", 1),
        ("f1", "我喜欢红苹果", "我喜欢青苹果", 10 / 12),
        ("rouge_l", "我喜欢红苹果", "我喜欢青苹果", 10 / 12),
        ("f1", "कमल", "कमाल", 0),
        ("f1", "घर बड़ा है", "घर छोटा है", 4 / 6),
        ("exact", "don’t", "don't", 1),
        ("exact", "U.S.", "US", 1),
        ("exact", "«Bonjour»", "Bonjour", 1),
        ("exact", "「東京」", "東京", 1),
        ("exact", "1,000", "1000", 1),
        ("exact", "5²", "52", 0),
        ("exact", "½", "1/2", 1),
        ("exact", "👍", "👎", 0),
        ("exact", "", "", 1),
        ("exact", "!", "?", 0),
        ("exact", "A", "A", 1),
        ("exact", "A", "B", 0),
        ("contains", "x", "", 0),
        ("contains", "well-known", "well known", 1),
        ("f1", "$5", "5", 1),
        ("contains", "range 3-5", "5", 1),
        ("contains", "-5", "5", 0),
        ("exact", "٣٥", "35", 1),
    ],
)
def test_scores_by_words(name: str, answer: str, expected: str, wanted: float) -> None:
    assert score(name, answer, expected) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The U.S. isn't far.", ["the", "us", "isnt", "far"]),
        ("-5 and 3.5, not 3-5", ["and", "not", "-5", "3.5", "3", "5"]),
        ("1,234 m²", ["1234", "m", "^", "2"]),
        ("北京2024年", ["北", "京", "2024", "年"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("ガール", ["ガ", "ー", "ル"]),
        ("안녕 세계", ["안녕", "세계"]),
        ("Straße", ["strasse"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("x=1 → y", ["x", "=", "1", "→", "y"]),
    ],
)
def test_what_a_word_is(text: str, wanted: list[str]) -> None:
    assert sorted(words(text)) == sorted(wanted)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("-5", "5"),
        ("a < b", "a > b"),
        ("Yes.", "yes"),
        ("x  y", "x y"),
        ("👍", "👎"),
        ("def f():\n    return 1", "def f():\n  return 1"),
        ("word " * 60_000, "word " * 60_001),
    ],
)
def test_only_equal_answers_agree_fully(one: str, two: str) -> None:
    assert 0 <= agreement(one, two) < 1
    assert agreement(one, one) == agreement(two, two) == 1


def test_one_changed_character_is_one_changed_word() -> None:
    assert agreement("我喜欢红苹果", "我喜欢青苹果") == pytest.approx(10 / 12)
    assert agreement("ผมชอบแมว", "ผมชอบหมา") > 0.4


def test_agreement_covers_what_belongs_to_an_answer() -> None:
    same = agreement("x", "x", beside=("because", ""), baseline_beside=("because", ""))
    other = agreement("x", "x", beside=("because", ""), baseline_beside=("since", ""))
    moved = agreement("", "because", beside=("because", ""), baseline_beside=("", ""))
    assert (same, other, moved) == (1, 0.5, 0)


@given(TEXTS, TEXTS)
def test_agreement_is_symmetric_and_1_for_equal_texts_alone(one: str, two: str) -> None:
    found = agreement(one, two)
    assert found == pytest.approx(agreement(two, one))
    assert 0 <= found <= 1
    assert (found == 1) is (one == two)


@given(TEXTS, TEXTS)
def test_exact_is_symmetric_and_within_contains_and_f1(one: str, two: str) -> None:
    found = score("exact", one, two)
    assert found == score("exact", two, one)
    if found and words(one, articles=False):
        assert score("contains", one, two) == score("f1", one, two) == 1


@given(st.lists(st.sampled_from(["garden", "क\u094d", "京", "3.5", "-5", "<"]), min_size=1, max_size=6), st.data())
def test_a_stretch_of_words_is_contained(parts: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(parts) - 1))
    stretch = list(itertools.islice(parts, start, None))
    assert score("contains", " ".join(parts), " ".join(stretch)) == 1


def test_a_sign_behind_a_name_and_an_item_of_an_article() -> None:
    assert score("exact", "C#", "C") == 0
    assert score("exact", "# Title", "Title") == 1
    assert score("items", "", "a") == 0
    assert score("items", "a, b", "b; a") == 1
    assert score("items", "b", "a, b") < 1
