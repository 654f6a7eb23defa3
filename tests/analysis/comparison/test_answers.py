"""Quality inside a comparison: what is scored, against which floor, and what is said."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kvload.analysis import gates
from kvload.analysis.comparison.compare import compare
from kvload.analysis.comparison.model import Comparison, Finding
from kvload.analysis.records.pairs import ArmRuns
from tests.analysis.synthetic import arm

COUNT = 200


def runs(folder: Path, name: str, wrong: float, seed: int, expected: bool, repeats: int = 3) -> ArmRuns:
    """An arm that gives the right answer but for a share of requests, chosen by chance."""
    made = []
    for repeat in range(repeats):
        missed = np.random.default_rng([seed, repeat]).random(COUNT) < wrong

        def answer(index: int, missed: np.ndarray = missed) -> dict[str, object]:
            right = f"the number is {index}"
            values: dict[str, object] = {
                "text": "I do not know" if missed[index] else right,
                "task": f"task-{index % 2}",
            }
            return values | ({"expected": str(index), "scorer": "numeric"} if expected else {})

        made.append(arm(folder / f"{name}-{repeat}", [20] * COUNT, change=answer, repeat=repeat))
    return ArmRuns(name, tuple(made), baseline=name == "base", floor=name == "again")


def three(folder: Path, *, wrong: float, noise: float = 0.05, expected: bool = True, floor: bool = True) -> Comparison:
    arms = [runs(folder, "base", noise, 1, expected), runs(folder, "again", noise, 2, expected)]
    return compare([*(arms if floor else arms[:1]), runs(folder, "method", wrong, 3, expected)])


def finding(comparison: Comparison) -> Finding:
    return next(found for found in comparison.verdicts["method"].findings if found.topic == "quality")


def test_worse_answers_are_found_and_kept_with_both_texts(tmp_path: Path) -> None:
    comparison = three(tmp_path, wrong=0.4)
    assert finding(comparison).outcome == "worse"
    assert comparison.answers is not None
    found = comparison.answers.arms["method"]
    assert [change.task for change in found.tasks] == ["task-0", "task-1"]
    assert found.overall.base_mean == pytest.approx(0.95, abs=0.04)
    assert found.overall.difference.n == COUNT
    effect = finding(comparison).effect
    assert effect is not None
    assert effect.change.high is not None
    assert effect.change.high < -0.2
    first = found.negatives[0]
    assert first.negative > 5 * first.mirror
    assert len(found.worst) == 10
    for sample in found.worst:
        assert (sample.base_score, sample.other_score) == (1.0, 0.0)
        assert sample.base_text == f"the number is {sample.index}"
        assert sample.other_text == "I do not know"
    values = gates.comparison_values(comparison)["method"]
    assert values["quality.change"] == pytest.approx(-0.35, abs=0.08)
    assert values["negative.share"] == pytest.approx(first.negative / first.eligible)


def test_what_the_floor_does_as_well_is_no_finding(tmp_path: Path) -> None:
    comparison = three(tmp_path, wrong=0.3, noise=0.3)
    assert finding(comparison).outcome in {"same", "undecided"}
    assert comparison.answers is not None
    found = comparison.answers.arms["method"].negatives[0]
    assert found.floor_negative is not None
    assert found.negative > 20
    assert abs(found.negative - found.floor_negative) < 40


def answers(comparison: Comparison) -> Finding:
    found = comparison.verdicts["method"].finding("answers")
    assert found is not None
    return found


def test_without_expected_answers_texts_differ_and_no_score_falls(tmp_path: Path) -> None:
    comparison = three(tmp_path, wrong=0.5, noise=0.02, expected=False)
    assert finding(comparison).outcome == "unmeasured"
    assert answers(comparison).outcome == "differs"
    assert comparison.answers is not None
    assert comparison.answers.arms["method"].negatives[0].negative == 0
    words = " ".join([answers(comparison).lead, *answers(comparison).detail, comparison.verdicts["method"].headline])
    assert "fall" not in words
    assert "negative" not in words
    texts = comparison.answers.arms["method"].texts
    assert texts is not None
    assert texts.identical.estimate == pytest.approx(0.5, abs=0.08)
    assert texts.first_other == 0  # "I" instead of "the"


def test_texts_that_differ_no_more_than_two_baseline_runs_are_not_told_apart(tmp_path: Path) -> None:
    found = answers(three(tmp_path, wrong=0.1, noise=0.1, expected=False))
    assert found.outcome in {"same", "undecided"}
    assert found.effect is not None


def test_texts_without_a_second_run_of_the_baseline_are_not_judged(tmp_path: Path) -> None:
    found = answers(three(tmp_path, wrong=0.3, expected=False, floor=False))
    assert found.outcome == "undecided"
    assert "run the baseline twice" in (found.advice or "")


def test_a_bit_equal_pair_of_baselines_is_said_to_show_nothing(tmp_path: Path) -> None:
    found = answers(three(tmp_path, wrong=0.3, noise=0.0, expected=False))
    assert any("identical to the letter" in sentence for sentence in found.detail)
    assert "--floor perturb" in (found.advice or "")


def test_a_perturbed_baseline_is_what_texts_are_held_against_and_in_no_verdict(tmp_path: Path) -> None:
    arms = [runs(tmp_path, "base", 0.0, 1, False), runs(tmp_path, "again", 0.0, 2, False)]
    other_dtype = dataclasses.replace(runs(tmp_path, "bf16", 0.3, 4, False), perturbed=True)
    arms += [other_dtype, runs(tmp_path, "method", 0.3, 3, False), runs(tmp_path, "worse", 0.7, 5, False)]
    comparison = compare(arms)
    assert list(comparison.verdicts) == ["method", "worse"]
    assert comparison.comparisons[-1].effects["latency"].family == 2
    assert answers(comparison).outcome in {"same", "undecided"}
    worse = comparison.verdicts["worse"].finding("answers")
    assert worse is not None
    assert worse.outcome == "differs"
    assert "the baseline and itself in another dtype" in worse.lead


def test_a_baseline_that_scores_nothing_has_no_quality_to_lose(tmp_path: Path) -> None:
    found = finding(three(tmp_path, wrong=1.0, noise=1.0))
    assert found.outcome == "unmeasured"
    assert "scores 0.000" in found.lead


def test_no_change_of_scores_names_what_it_does_not_exclude(tmp_path: Path) -> None:
    found = finding(three(tmp_path, wrong=0.0, noise=0.0))
    assert found.outcome == "same"
    assert any("up to 1.5 % of them is not excluded" in sentence for sentence in found.detail)  # 3 of 200


def test_runs_without_texts_have_no_quality(tmp_path: Path) -> None:
    arms = [ArmRuns(name, (arm(tmp_path / name, [20] * 30),), baseline=name == "a") for name in ("a", "method")]
    comparison = compare(arms)
    assert comparison.answers is None
    assert finding(comparison).lead == "quality says nothing: no answers were kept"


def test_later_turns_with_other_prompts_are_in_no_topic(tmp_path: Path) -> None:
    def answer(name: str):  # type: ignore[no-untyped-def]
        def change(index: int) -> dict[str, object]:
            turn = index % 2
            digest = {"prompt_digest": f"{name}-{index}".ljust(32, "0")} if turn else {}
            return {
                "text": name,
                "turn": turn,
                "session": f"s{index // 2}",
                "expected": "base",
                "scorer": "exact",
            } | digest

        return change

    arms = [
        ArmRuns(name, (arm(tmp_path / name, [20] * 80, change=answer(name)),), baseline=name == "base")
        for name in ("base", "method")
    ]
    comparison = compare(arms)
    assert comparison.answers is not None
    assert comparison.comparisons[0].population.paired == 40
    assert comparison.comparisons[0].lengths is not None
    assert comparison.comparisons[0].lengths.n == 40
    assert comparison.answers.arms["method"].overall.n == 40
    assert len(comparison.answers.arms["method"].negatives[0].rows) == 40
