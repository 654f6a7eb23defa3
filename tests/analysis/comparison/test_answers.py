"""Quality inside a comparison: what is scored, against which floor, and what is said."""

from pathlib import Path

import numpy as np
import pytest

from kvload.analysis import gates
from kvload.analysis.comparison.compare import compare
from kvload.analysis.comparison.model import Comparison, Finding
from kvload.analysis.records.pairs import ArmRuns
from tests.analysis.synthetic import arm

COUNT = 200


def runs(folder: Path, name: str, wrong: float, seed: int, expected: bool, repeats: int = 2) -> ArmRuns:
    """An arm that gives the right answer but for a share of requests, chosen by chance."""
    made = []
    for repeat in range(repeats):
        missed = np.random.default_rng([seed, repeat]).random(COUNT) < wrong

        def answer(index: int, missed: np.ndarray = missed) -> dict[str, object]:
            right = f"the number is {index}"
            values = {"text": "I do not know" if missed[index] else right, "task": f"task-{index % 2}"}
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
    assert found.beyond_floor is not None
    assert found.beyond_floor.high is not None
    assert found.beyond_floor.high < -0.2
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


def test_agreement_without_a_floor_says_nothing(tmp_path: Path) -> None:
    comparison = three(tmp_path, wrong=0.3, expected=False, floor=False)
    assert finding(comparison).outcome == "unmeasured"
    assert "second run" in finding(comparison).text


def test_agreement_is_held_against_the_floor(tmp_path: Path) -> None:
    assert finding(three(tmp_path / "a", wrong=0.5, noise=0.02, expected=False)).outcome == "worse"
    assert finding(three(tmp_path / "b", wrong=0.02, noise=0.02, expected=False)).outcome in {"same", "undecided"}


def test_runs_without_texts_have_no_quality(tmp_path: Path) -> None:
    arms = [ArmRuns(name, (arm(tmp_path / name, [20] * 30),), baseline=name == "a") for name in ("a", "method")]
    comparison = compare(arms)
    assert comparison.answers is None
    assert finding(comparison).text == "quality says nothing: no answers were kept"
