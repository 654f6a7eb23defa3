"""Benchmark files as they are published, with the scorer that fits each."""

import json
from pathlib import Path

import pytest

from kvload.analysis.quality.scorers import score
from kvload.errors import TraceError
from kvload.workloads.traces.formats import read_trace
from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.trace import TraceRequest

FIXTURES = Path(__file__).parent / "fixtures"


def read(name: str) -> tuple[list[TraceRequest], list[str]]:
    notes = Notes()
    requests = list(read_trace(FIXTURES / name, notes=notes))
    return requests, notes.sentences()


def test_gsm8k_expects_the_number_behind_the_mark() -> None:
    (first, second), _ = read("gsm8k.jsonl")
    assert (first.expected, second.expected, first.scorer, first.task) == ("18", "71,000", "numeric", "gsm8k")
    assert first.messages is not None
    assert first.messages[0]["content"].startswith("A hen lays")
    assert score("numeric", "So 71000.", second.expected or "") == 1


def test_mtbench_asks_both_turns() -> None:
    requests, _ = read("mtbench.jsonl")
    assert [(each.id, each.session, each.turn, each.task) for each in requests[:2]] == [
        ("mtbench-81-1", "mtbench-81", 0, "writing"),
        ("mtbench-81-2", "mtbench-81", 1, "writing"),
    ]
    assert requests[2].extra == {"reference": ["You are second.", "Uncertain."]}
    assert all(each.expected is None for each in requests)


def test_ifeval_expects_its_instructions() -> None:
    (both, language, title), notes = read("ifeval.jsonl")
    assert both.scorer == "ifeval"
    assert json.loads(both.expected or "") == [
        {"id": "punctuation:no_comma"},
        {"id": "length_constraints:number_words", "relation": "at least", "num_words": 30},
    ]
    assert (language.expected, language.scorer) == (None, None)
    assert json.loads(title.expected or "") == [{"id": "detectable_format:title"}]
    assert notes == ["1 row: not scored: the language of an answer is not checked"]
    assert score("ifeval", "word " * 31, both.expected or "") == 1
    assert score("ifeval", "word, " * 31, both.expected or "") == 0.5


def test_humaneval_is_asked_and_not_scored() -> None:
    (request,), notes = read("humaneval.jsonl")
    assert request.messages is not None
    assert "```python\ndef twice" in request.messages[0]["content"]
    assert (request.expected, request.extra["entry_point"]) == (None, "twice")
    assert notes == ["1 row: not scored: answers would have to be run as code (pass@1)"]


def test_lm_eval_generations() -> None:
    (numeric, words), notes = read("lm_eval_generate.jsonl")
    assert (numeric.prompt, numeric.max_tokens) == ("Question: 3*6?\nAnswer:", 256)
    assert numeric.sampling == {"stop": ["Question:", "</s>"]}
    assert (numeric.expected, numeric.scorer) == ("18", "numeric")
    assert words.messages == [{"role": "user", "content": "Who?"}]
    assert (words.expected, words.scorer, words.max_tokens) == ("Ada Lovelace", "f1", 32)
    assert notes == [
        "1 row: the same document under another filter: left out",
        "scored by: numeric (1), f1 (1)",
    ]


def test_lm_eval_letters_are_asked_for_and_likelihoods_left_out() -> None:
    (request,), notes = read("lm_eval_choices.jsonl")
    assert (request.expected, request.scorer, request.task) == ("B", "choice", "arithmetic")
    assert request.prompt == "2+2?\nA. 3\nB. 4\nAnswer:"
    assert "1 row: judged by the likelihood of given texts, not by an answer: left out" in notes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x", "answer": "#### 1"}, None),
        ({"key": 1, "prompt": "x", "instruction_id_list": ["a:b"], "kwargs": []}, "there are 1 instructions and 0"),
        ({"question_id": 1, "turns": []}, "field 'turns' is empty"),
        ({"doc_id": 1, "arguments": [[1]]}, "'arguments' is .* not a list of prompts"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, row: dict[str, object], message: str | None) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    if message is None:
        assert len(list(read_trace(path))) == 2
        return
    with pytest.raises(TraceError, match=message):
        list(read_trace(path))


@pytest.mark.parametrize(
    ("target", "metrics", "expected", "scorer"),
    [
        ("18", ["exact_match"], "18", "numeric"),
        ("$1,200.50", ["exact_match"], "$1,200.50", "numeric"),
        ("He has 3.\n#### 3", ["exact_match"], "3", "numeric"),
        ("(B)", ["exact_match"], "(B)", "choice"),
        ("Paris", ["exact_match"], "Paris", "exact"),
        ("['Paris', 'City of Light']", ["f1"], "Paris", "f1"),
        ("[not a list", ["f1"], "[not a list", "f1"),
        ("a long text", ["rougeL"], "a long text", "rouge_l"),
        ("yes", ["contains"], "yes", "contains"),
        ("", ["exact_match"], None, None),
        (None, [], None, None),
    ],
)
def test_lm_eval_scorers(
    tmp_path: Path, target: str | None, metrics: list[str], expected: str | None, scorer: str | None
) -> None:
    arguments = {"gen_args_0": {"arg_0": "Question", "arg_1": {"until": ["\n"]}}}
    path = tmp_path / "t"
    path.write_text(json.dumps({"doc_id": 0, "target": target, "arguments": arguments, "metrics": metrics}))
    (request,) = read_trace(path)
    assert (request.expected, request.scorer) == (expected, scorer)
    if expected is not None and scorer is not None:
        assert score(scorer, expected, expected) == 1


def test_lm_eval_writes_choices_in_two_ways(tmp_path: Path) -> None:
    calls = {f"gen_args_{i}": {"arg_0": "2+2?", "arg_1": f" {letter}"} for i, letter in enumerate("ABCD")}
    path = tmp_path / "t"
    path.write_text(json.dumps({"doc_id": 0, "target": "2", "arguments": calls, "metrics": ["acc"]}))
    (request,) = read_trace(path)
    assert (request.prompt, request.expected, request.scorer) == ("2+2?", "C", "choice")
