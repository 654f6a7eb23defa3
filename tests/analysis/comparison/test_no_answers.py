"""An arm whose requests end in errors, aborts, empty answers or impossible counts is never faster, shorter or equal."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.analysis.comparison.compare import compare
from kvload.analysis.comparison.model import Comparison
from kvload.analysis.records.pairs import ArmRuns
from kvload.analysis.report import first_screen
from kvload.records import TokenCheck
from kvload.rundir import RunDir
from tests.analysis.synthetic import answer, failure, write

COUNT, REPEATS = 60, 3
TEXT = "what was answered, word by word"


def runs_of(folder: Path, name: str, odd: Any = None, every: int = 1, tpot_s: float = 0.01) -> tuple[RunDir, ...]:
    """Runs of equal answers; every ``every``-th request is what ``odd`` makes of it."""
    runs = []
    for repeat in range(REPEATS):
        rng = np.random.default_rng([1, repeat])
        records = []
        for index in range(COUNT):
            good = answer(rng, index, tokens=40, ttft_s=0.1, tpot_s=tpot_s, text=TEXT)
            records.append(good if odd is None or index % every else odd(rng, index, good))
        runs.append(write(folder / f"{name}{repeat}", records, arm=name, repeat=repeat))
    return tuple(runs)


def compared(folder: Path, odd: Any, every: int = 1, tpot_s: float = 0.01, base_odd: Any = None) -> Comparison:
    return compare(
        [
            ArmRuns("none", runs_of(folder, "none", base_odd, every), baseline=True),
            ArmRuns("none (again)", runs_of(folder, "again", base_odd, every), floor=True),
            ArmRuns("odd", runs_of(folder, "odd", odd, every, tpot_s)),
        ]
    )


def changed(**changes: Any) -> Any:
    def make(_rng: Any, _index: int, good: Any) -> Any:
        record, rows = good
        values = {name: getattr(record, name) for name in record.__struct_fields__} | changes
        return type(record)(**values), rows

    return make


ODD = {
    "errors": lambda rng, index, _good: failure(rng, index, "failed", "stream_error"),
    "aborts": changed(status="failed", cause="aborted", finish_reason="abort"),
    "refusals": lambda rng, index, _good: failure(rng, index, "refused", "http_400"),
    "empty answers": changed(t_first_s=None, t_last_s=None, text="", output_tokens=0, first_chunk_tokens=None),
    "counts of zero": changed(
        count_doubt="the server counts 0 tokens, but 40 chunks came", output_tokens_source="chunks"
    ),
}


@pytest.mark.parametrize("every", [1, 2, 9])
@pytest.mark.parametrize("kind", ODD)
def test_no_good_word_for_an_arm_that_gave_no_answers(tmp_path: Path, kind: str, every: int) -> None:
    comparison = compared(tmp_path, ODD[kind], every, tpot_s=0.004)
    verdict = comparison.verdicts["odd"]
    lost = REPEATS * len(range(0, COUNT, every))
    outcomes = {finding.topic: finding.outcome for finding in verdict.findings}
    for topic in ("latency", "lengths", "quality", "answers", "service"):
        assert outcomes.get(topic) not in {"better", "same"}, topic
    arm = comparison.arms[-1]
    assert (arm.name, arm.answered) == ("odd", REPEATS * COUNT - lost)
    said = first_screen.left_out(comparison)
    assert len(said) == 1
    assert f"{lost} of {REPEATS * COUNT} requests are no answers" in said[0]
    sentence = first_screen.sentences(comparison)[0]
    assert sentence.advice == "do not"
    assert f"{lost} of {REPEATS * COUNT} requests of odd are no answers" in sentence.text
    assert "unchanged" not in sentence.text
    assert "faster" not in sentence.text


def test_a_few_failures_leave_the_verdict_on_the_others(tmp_path: Path) -> None:
    comparison = compared(tmp_path, ODD["errors"], every=40, tpot_s=0.004)
    verdict = comparison.verdicts["odd"]
    assert verdict.broken is None
    latency = verdict.finding("latency")
    assert latency is not None
    assert latency.outcome == "better"


def test_a_baseline_without_answers_makes_nobody_faster(tmp_path: Path) -> None:
    comparison = compared(tmp_path, None, every=2, tpot_s=0.004, base_odd=ODD["aborts"])
    verdict = comparison.verdicts["odd"]
    latency = verdict.finding("latency")
    assert latency is not None
    assert (latency.outcome, verdict.broken) == ("undecided", None)
    assert "90 of 180 requests of none are no answers" in latency.lead


def test_counts_that_contradict_the_texts_are_held_against_each_other(tmp_path: Path) -> None:
    """The arm's server counts five tokens a chunk for the very texts that the baseline's counts one a chunk for."""
    comparison = compared(tmp_path, changed(output_tokens=200, unproven_tokens=160))
    arm = comparison.arms[-1]
    assert (arm.answered, arm.sent) == (0, 180)
    assert "tokens a byte by its own count" in first_screen.left_out(comparison)[0]
    assert first_screen.sentences(comparison)[0].advice == "do not"


def test_several_tokens_a_chunk_are_no_contradiction(tmp_path: Path) -> None:
    """Speculative decoding: the same tokens in a fifth of the chunks."""
    comparison = compared(tmp_path, changed(chunk_count=8, unproven_tokens=32))
    arm = comparison.arms[-1]
    assert (arm.answered, arm.sent) == (180, 180)
    assert dataclasses.asdict(comparison.verdicts["odd"])["broken"] is None


def test_arms_whose_tokenizers_say_that_they_count_unlike_are_not_compared(tmp_path: Path) -> None:
    """The arm's server counts its chunks, of which each holds four tokens: no answer by itself gives that away."""

    def checked(name: str, counted: int, odd: Any = None) -> tuple[RunDir, ...]:
        runs = runs_of(tmp_path, name, odd)
        for run in runs:
            run.update_manifest(token_check=TokenCheck(answers=16, counted=counted, tokenized=640))
        return runs

    fewer = changed(output_tokens=10, chunk_count=10)
    for counted, answered in ((160, 0), (600, 180)):
        comparison = compare(
            [
                ArmRuns("none", checked(f"none{counted}", 640), baseline=True),
                ArmRuns("none (again)", checked(f"again{counted}", 640), floor=True),
                ArmRuns("odd", checked(f"odd{counted}", counted, fewer)),
            ]
        )
        assert comparison.arms[-1].answered == answered
        if not answered:
            assert "counts 0.25 tokens for each that its tokenizer finds" in first_screen.left_out(comparison)[0]
            assert first_screen.sentences(comparison)[0].advice == "do not"


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("odd", "how"), [({"min_tokens": 60, "max_tokens": 60}, "shorter"), ({"max_tokens": 20}, "longer")]
)
def test_no_verdict_on_an_arm_that_did_other_work(tmp_path: Path, odd: dict[str, int], how: str, every: int) -> None:
    """Answers that end before the tokens that were forced, or go on behind the last that was allowed."""

    def asked(rng: Any, index: int, good: Any) -> Any:
        changes = odd | {"output_tokens": odd["max_tokens"], "chunk_count": 40}
        return changed(**changes)(rng, index, good)

    comparison = compared(tmp_path, changed(**odd), every, tpot_s=0.004, base_odd=asked)
    verdict = comparison.verdicts["odd"]
    for topic in ("latency", "service"):
        finding = verdict.finding(topic)
        assert finding is None or finding.outcome not in {"better", "same", "worse"}, topic
    lead = next(finding.lead for finding in verdict.findings if finding.topic == "latency")
    lost = REPEATS * len(range(0, COUNT, every))
    assert f"{lost} of 180 answers of odd are {how} than was asked for" in lead
    assert any(f"{lost} of 180 answers are {how} than was asked for" in note for note in comparison.notes)


def test_a_verdict_stands_where_both_servers_do_not_heed_the_lengths(tmp_path: Path) -> None:
    both = changed(min_tokens=60, max_tokens=60)
    comparison = compared(tmp_path, both, tpot_s=0.004, base_odd=both)
    latency = comparison.verdicts["odd"].finding("latency")
    assert latency is not None
    assert latency.outcome == "better"
    assert sum("shorter than was asked for" in note for note in comparison.notes) == 3


@pytest.mark.parametrize(("tokens", "cuts"), [(60, True), (100, False), (None, False)])
def test_no_verdict_on_an_arm_that_read_other_prompts(tmp_path: Path, tokens: int | None, cuts: bool) -> None:
    """A server that cuts prompts to its context without a word is faster for that."""
    comparison = compared(tmp_path, changed(prompt_tokens=tokens), tpot_s=0.004)
    latency = comparison.verdicts["odd"].finding("latency")
    assert latency is not None
    assert latency.outcome == ("undecided" if cuts else "better")
    assert ("180 of 180 prompts have another length" in latency.lead) is cuts
    assert any("one of them cut prompts" in note for note in comparison.comparisons[-1].notes) is cuts
