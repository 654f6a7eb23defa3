"""Made-up loads by flags, and look-ups in long texts."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.analysis.quality.scorers import score
from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.workloads.schedule.build import block_reuse, build_schedule
from kvload.workloads.schedule.needle import estimated_tokens, needles, tokenizer_count
from kvload.workloads.schedule.prompts import PromptSpec, token_ids
from kvload.workloads.schedule.questions import asked, interleaved
from kvload.workloads.schedule.synthetic import (
    LongTailed,
    SyntheticSpec,
    Uniform,
    parse_lengths,
    parse_pairs,
    synthetic,
)
from kvload.workloads.traces.trace import TraceRequest

TOKENIZER = Path(__file__).parents[3] / "servers" / "probe" / "model" / "tokenizer.json"


def made(**spec: Any) -> list[TraceRequest]:
    return list(synthetic(SyntheticSpec(**spec)))


def test_fixed_lengths() -> None:
    requests = made(requests=20, input=Uniform(1024, 1024), output=Uniform(128, 128))
    assert {(each.input_length, each.output_length) for each in requests} == {(1024, 128)}
    schedule = build_schedule(requests, model="m", mode="auto")
    assert {request.max_tokens for request in schedule.planned} == {128}


def test_lengths_between_two_are_equally_likely() -> None:
    found = [each.input_length for each in made(requests=6000, input=Uniform(3, 5), seed=2)]
    counts = np.bincount(found)  # type: ignore[arg-type]
    assert set(found) == {3, 4, 5}
    # 2,000 of each, and a standard deviation of 37
    assert counts[3:].min() > 1850


def test_long_tails_have_the_mean_asked_for() -> None:
    found = np.array([each.input_length for each in made(requests=20_000, input=LongTailed(300, 10**6, 0.9))])
    assert found.mean() == pytest.approx(300, rel=0.03)
    assert np.median(found) < 230


def test_pairs_are_taken_in_turn() -> None:
    requests = made(requests=5, pairs=parse_pairs("1024:128, 8k:512", where="--isl-osl"))
    assert [(each.input_length, each.output_length) for each in requests] == [
        (1024, 128),
        (8192, 512),
        (1024, 128),
        (8192, 512),
        (1024, 128),
    ]


def test_a_shared_prefix_is_the_same_tokens_for_all_and_no_more() -> None:
    requests = made(requests=6, input=Uniform(50, 50), shared_prefix=200, prefixes=2)
    prompts = [token_ids(each, PromptSpec()) for each in requests]
    assert {len(prompt) for prompt in prompts} == {250}
    assert prompts[0][:200] == prompts[2][:200] == prompts[4][:200]
    assert prompts[1][:200] == prompts[3][:200] != prompts[0][:200]
    assert len({tuple(prompt[200:]) for prompt in prompts}) == 6
    assert block_reuse(requests) == pytest.approx(4 / 6)


def test_turns_have_the_mean_asked_for() -> None:
    requests = made(requests=20_000, turns_mean=4.0)
    sessions = {each.session for each in requests}
    assert len(requests) / len(sessions) == pytest.approx(4, rel=0.05)
    assert requests[0].turn == 0
    assert all((each.arrival is None) == bool(each.turn) for each in requests)
    assert {each.turn for each in made(requests=10, turns_mean=1.0)} == {0}


@pytest.mark.parametrize(("text", "low", "high"), [("1024", 1024, 1024), ("1k", 1024, 1024), ("512-2k", 512, 2048)])
def test_lengths_are_written_as_numbers_or_ranges(text: str, low: int, high: int) -> None:
    assert parse_lengths(text, where="--input") == Uniform(low, high)


@pytest.mark.parametrize("text", ["", "0", "x", "5-", "9-5", "1.5"])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--input"):
        parse_lengths(text, where="--input")


@pytest.mark.parametrize("text", ["", "5", "5:", "5:x", "1:2,"])
def test_other_pairs_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--isl-osl"):
        parse_pairs(text, where="--isl-osl")


@pytest.mark.parametrize(
    "spec",
    [
        {"requests": 0},
        {"sessions": 5, "requests": 4},
        {"turns_mean": 0.5},
        {"turns_mean": 2, "sessions": 1},
        {"prefixes": 0},
    ],
)
def test_what_makes_no_load_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SyntheticSpec(**spec)


# --- look-ups


@pytest.mark.parametrize("context", [256, 1024, 8192])
@pytest.mark.parametrize("count", [estimated_tokens, tokenizer_count(str(TOKENIZER))])
def test_a_look_up_fills_its_context_and_does_not_pass_it(context: int, count: Any) -> None:
    for question in needles(context, 3, token_count=count):
        (message,) = question.messages
        assert 0.85 * context - 64 < count(message["content"]) <= context


def test_the_fact_stands_once_at_its_depth_and_answers_the_question() -> None:
    for question in needles(4096, 5, depths=(0.0, 0.25, 0.5, 0.75, 1.0)):
        text = question.messages[0]["content"]
        body, asked_for = text.rsplit("\n\n", 1)
        thing = re.search(r"of the (\w+ \w+)\?", asked_for)
        assert thing is not None
        fact = f"The secret code of the {thing[1]} is {question.expected}."
        assert text.count(fact) == 1
        assert question.depth is not None
        assert body.index(fact) / len(body) == pytest.approx(question.depth, abs=0.04)
        codes = re.findall(r"is (\d{4})\.", text)
        assert len(codes) == len(set(codes)) == 4
        assert score(question.scorer, f"The code is {question.expected}.", question.expected) == 1
        assert all(score(question.scorer, code, question.expected) == (code == question.expected) for code in codes)


def test_look_ups_are_made_by_seed() -> None:
    assert needles(512, 2, seed=1) == needles(512, 2, seed=1)
    assert needles(512, 2, seed=1) != needles(512, 2, seed=2)
    first, second = needles(512, 2)
    assert first.messages != second.messages


@pytest.mark.parametrize(
    ("context", "options", "message"),
    [
        (100, {}, "256 to 131072 tokens"),
        (512, {"depths": (1.5,)}, "shares from 0 to 1"),
        (512, {"depths": ()}, "shares from 0 to 1"),
        (512, {"distractors": 100}, "at most 8"),
    ],
)
def test_what_is_no_look_up_is_refused(context: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        needles(context, 1, **options)


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer"):
        tokenizer_count(str(tmp_path))


def test_lengths_come_in_turn() -> None:
    groups = [needles(512, 3), needles(1024, 3)]
    requests = list(asked(interleaved(groups, 5), SyntheticSpec().arrivals))
    assert [each.task for each in requests] == ["needle-512", "needle-1k", "needle-512", "needle-1k", "needle-512"]


def test_the_command_makes_loads_and_look_ups(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.jsonl"
    load = ["--input", "1k", "--output", "64-128", "--shared-prefix", "100", "--requests", "3", "-o", str(out)]
    assert run(["traces", "sample", *load]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["input_length"] for row in rows] == [1124] * 3
    assert all(64 <= row["output_length"] <= 128 for row in rows)
    assert run(["traces", "sample", "--needle", "--context", "512,1k", "--requests", "4"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["needle-512", "needle-1k", "needle-512", "needle-1k"]
    assert run(["traces", "sample", "--context", "1k"]) == 2
    assert "add --needle or --probe" in capfd.readouterr().err
    assert run(["traces", "sample", "--like", "x"]) == 2
    assert "no such dataset" in capfd.readouterr().err
