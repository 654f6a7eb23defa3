"""Counts of answers held against the server's own tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.analysis.run.summary import summarise
from kvload.experiment.options import ReplayOptions, RunOptions
from kvload.experiment.replay import replay_once
from kvload.records import RequestRecord, TokenCheck
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.run.token_counts import SAMPLE, check_counts, sampled
from tests.analysis.synthetic import answer, write


def records(count: int, **changes: Any) -> list[RequestRecord]:
    rng = np.random.default_rng(0)
    values = {"text": "a word for each of its ten tokens"} | changes
    return [answer(rng, index, tokens=10, **values)[0] for index in range(count)]


def test_every_answer_has_the_same_chance_to_be_asked_about() -> None:
    many = records(400)
    seen = [record.index for record in sampled(many)]
    assert len(set(seen)) == SAMPLE
    assert seen == [record.index for record in sampled(many)]
    assert 100 < float(np.mean(seen)) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "failed"}, {"text": None}, {"text": ""}, {"token_ids": [1] * 10}, {"reasoning": "so"},
        {"tool_calls": [{"name": "f", "arguments": "{}"}]}, {"damaged": True}, {"text": "half a \ufffd"},
        {"text": "x" * 200_000}, {"reasoning_tokens": 4}, {"output_tokens": None},
    ],
)  # fmt: skip
def test_answers_whose_text_does_not_tell_their_tokens_are_left_out(changes: dict[str, Any]) -> None:
    assert not sampled(records(3, **changes))


@pytest.mark.parametrize(
    ("counted", "tokenized", "differs"),
    [
        (160, 160, False), (160, 150, False), (160, 130, False), (160, 120, True), (160, 320, True), (160, 40, True),
        (40, 10, False),  # 16 answers of two or three tokens: marks that no text shows
        (160, 0, True),
    ],
)  # fmt: skip
def test_a_quarter_and_two_tokens_an_answer_are_allowed(counted: int, tokenized: int, differs: bool) -> None:
    assert TokenCheck(answers=16, counted=counted, tokenized=tokenized).differs is differs


def test_nobody_is_asked_twice_who_does_not_tell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write(tmp_path / "run", [answer(rng, index, tokens=10, text="a b") for index in range(30)])
    asked: list[str] = []

    def refuses(text: str) -> None:
        asked.append(text)

    assert check_counts(run, refuses) is None
    assert asked == ["a b"]
    assert check_counts(run, lambda text: 5 * len(text.split())) == TokenCheck(answers=16, counted=160, tokenized=160)


@pytest.mark.parametrize(
    ("fault", "per_chunk", "counted"),
    [(None, 1, 24), (None, 4, 24), ("chunks_counted", 4, 6), ("usage_missing", 4, 6)],
)
def test_a_server_that_counts_otherwise_than_its_tokenizer(
    tmp_path: Path, fault: str | None, per_chunk: int, counted: int
) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"id": f"r{place}", "arrival": 0.02 * place, "prompt": f"say {place}", "max_tokens": 24} for place in range(8)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    faults = {} if fault is None else {fault: 1.0}
    settings = MockSettings(ttft_s=0.02, itl_s=0.002, tokens_per_chunk=per_chunk, faults=faults)
    with MockProcess(settings, tmp_path / "truth") as server:
        run = replay_once(
            ReplayOptions(trace=trace, address=server.address, out=tmp_path / "run", run=RunOptions(calibrate=False))
        )
    assert run.manifest().token_check == TokenCheck(answers=8, counted=8 * counted, tokenized=8 * 24)
    notes = " ".join(summarise(run).notes)
    assert ("finds 192 in their texts" in notes) is (counted == 6)


@pytest.mark.parametrize(("fault", "told"), [("ends_early", "shorter"), ("runs_on", "longer"), (None, None)])
def test_a_forced_run_says_where_the_server_did_not_heed_it(
    tmp_path: Path, fault: str | None, told: str | None
) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"id": f"r{n}", "arrival": 0.02 * n, "input_length": 8, "output_length": 10} for n in range(8)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    faults = {} if fault is None else {fault: 1.0}
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.002, faults=faults), tmp_path / "truth") as server:
        run = replay_once(
            ReplayOptions(trace=trace, address=server.address, out=tmp_path / "run", run=RunOptions(calibrate=False))
        )
    assert run.manifest().mode == "forced"
    notes = " ".join(summarise(run).notes)
    assert ("than was asked for" in notes) is (told is not None)
    assert told is None or f"8 answers {told} than was asked for" in notes
