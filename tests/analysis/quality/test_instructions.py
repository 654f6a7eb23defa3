"""IFEval's instructions, each with an answer that follows it and one that does not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.quality.scorers import score
from kvload.analysis.quality.scorers.instructions import CHECKS, count_sentences
from kvload.errors import UsageError

TABLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Red", "blue"]}, "red and BLUE", "red"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea, tea", "tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "tea", "tea tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocket", "A rock."),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "# a #", "# a"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "Hi. Ho.", "A b. C d! E?"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        "One.\n\n**Weekend** is near.",
        "Weekend.\n\nOne.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. One more.", "Bye."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S: More", "Bye.\nP.S. One more."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* **two**", "*one* ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\nText", "A title"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. Yes.", "Yes."),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, "No. is that all?", "Is that all? No."),
    ("startend:quotation", {}, '"All of it."', '"Some" of it.'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "ONE word",
        "TWO WORDS",
    ),
    ("change_case:english_capital", {}, "ALL OF IT!", "Some."),
    ("change_case:english_lowercase", {}, "all of it!", "Some."),
    ("punctuation:no_comma", {}, "no comma", "one, comma"),
]


def test_every_check_is_in_the_table() -> None:
    assert {name for name, *_ in TABLE} == set(CHECKS)


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), TABLE)
def test_each_instruction(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    expected = json.dumps([{"id": name, **arguments}])
    assert score("ifeval", good, expected) == 1
    assert score("ifeval", bad, expected) == 0
    assert score("ifeval", "", expected) == 0


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith paid $3.50. He left!", 2),
        ("J. R. Tolkien wrote e.g. letters. Really?", 2),
        ("1. First point\n2. Second point", 2),
        ('He said "Stop." Then he left.', 2),
        ("一。二！三？", 3),
        ("No end", 1),
        ("Wait... what?!", 2),
        ("", 0),
    ],
)
def test_sentences(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


@pytest.mark.parametrize("expected", ["", "[]", "5", '[{"id": "a:b"}]', '[{"id": "keywords:existence"}]', "[1]"])
def test_what_is_no_list_of_instructions_is_told(expected: str) -> None:
    with pytest.raises(UsageError):
        score("ifeval", "an answer", expected)


@given(st.text(max_size=40), st.sampled_from(TABLE))
def test_any_answer_is_scored(text: str, row: tuple[str, dict[str, Any], str, str]) -> None:
    assert score("ifeval", text, json.dumps([{"id": row[0], **row[1]}])) in {0, 1}


@pytest.mark.parametrize(
    ("answer", "word", "follows"),
    [("你好世界", "世界", 0.0), ("c++ it is", "c++", 0.0), ("classy", "class", 1.0), ("a class", "class", 0.0)],
)
def test_forbidden_words_of_any_script(answer: str, word: str, follows: float) -> None:
    wanted = [{"id": "keywords:forbidden_words", "forbidden_words": [word]}]
    assert score("ifeval", answer, json.dumps(wanted)) == follows


@pytest.mark.parametrize("changed", [{"relation": "at most"}, {"keyword": ""}])
def test_what_an_instruction_cannot_mean_is_refused(changed: dict[str, Any]) -> None:
    wanted = {"id": "keywords:frequency", "keyword": "x", "frequency": 1, "relation": "at least"} | changed
    with pytest.raises(UsageError, match="not a list of instructions"):
        score("ifeval", "x", json.dumps([wanted]))
