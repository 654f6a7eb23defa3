"""Which runs may be compared, and what is said about those that may not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.analysis.records.pairs import ArmRuns, Pairs, check_arms, load_arm, pair
from kvload.errors import PairingError
from kvload.rundir import RunDir
from tests.analysis.synthetic import answer, failure, mixed, write


def two(tmp_path: Path, change: dict[str, Any], manifest: dict[str, Any] | None = None) -> Pairs:
    """Two runs of ten requests that differ in request 4 of the second."""
    rng = np.random.default_rng(0)
    one = write(tmp_path / "one", [answer(rng, i, tokens=5) for i in range(10)])
    changed = [answer(rng, i, tokens=6, **(change if i == 4 else {})) for i in range(10)]
    other = write(tmp_path / "two", changed, **(manifest or {}))
    return pair(load_arm(ArmRuns("a", (one,), baseline=True)), load_arm(ArmRuns("b", (other,))))


def test_the_same_requests_are_paired(tmp_path: Path) -> None:
    pairs = two(tmp_path, {})
    assert pairs.base.request_id.tolist() == pairs.other.request_id.tolist()
    assert pairs.population.answered == 10
    assert pairs.notes == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prompt_digest": "f" * 32}, "prompt_digest"),
        ({"max_tokens": 100}, "max_tokens: 512 and 100"),
        ({"min_tokens": 3}, "min_tokens: 0 and 3"),
        ({"ignore_eos": True}, "ignore_eos: False and True"),
        ({"temperature": 0.5, "seed": 1}, r"temperature: 0.0 and 0.5"),
        ({"top_p": 0.5}, r"top_p: 1.0 and 0.5"),
        ({"seed": 3}, "seed: nan and 3"),
        ({"request_id": "other"}, "request_id: r4 and other"),
    ],
)
def test_the_first_mismatch_is_named(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(PairingError, match=text) as caught:
        two(tmp_path, change)
    assert "request 4 (r4)" in caught.value.message
    assert "1 of 10 requests" in caught.value.message


def test_modes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(PairingError, match="forced"):
        two(tmp_path, {}, {"mode": "forced"})


def test_sampling_without_a_seed_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs = [write(tmp_path / n, [answer(rng, i, tokens=5, temperature=0.7) for i in range(3)]) for n in "ab"]
    base, other = load_arm(ArmRuns("a", (runs[0],))), load_arm(ArmRuns("b", (runs[1],)))
    with pytest.raises(PairingError, match=r"temperature 0\.7 without a seed"):
        pair(base, other)
    assert pair(base, other, allow_sampling=True).population.paired == 3


def test_populations_are_intersected_and_it_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = write(tmp_path / "one", [answer(rng, i, tokens=5) for i in range(10)])
    other = [failure(rng, i, "failed", "reset") if i == 3 else answer(rng, i, tokens=5) for i in range(2, 14)]
    arms = load_arm(ArmRuns("a", (one,))), load_arm(ArmRuns("b", (write(tmp_path / "two", other),)))
    pairs = pair(*arms)
    assert pairs.base.index.tolist() == list(range(2, 10))
    found = pairs.population
    assert (found.paired, found.answered, found.only_base, found.only_other) == (8, 7, 2, 4)
    assert any(note.startswith("6 requests have a record in one arm only") for note in pairs.notes)
    assert any(note.startswith("1 pairs have a request that was not answered") for note in pairs.notes)


def test_later_turns_after_different_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arms = []
    for name, digest in (("a", "e" * 32), ("b", "f" * 32)):
        later: dict[str, Any] = {"turn": 1, "prompt_digest": digest}
        turns = [answer(rng, i, tokens=5, **(later if i == 4 else {})) for i in range(9)]
        arms.append(load_arm(ArmRuns(name, (write(tmp_path / name, turns),))))
    pairs = pair(*arms)
    assert pairs.population.follow_ups == 1
    assert 4 not in pairs.base.index


def test_repeats_are_paired_by_their_number(tmp_path: Path) -> None:
    def arm(name: str, repeats: list[int]) -> ArmRuns:
        runs = [mixed(tmp_path / f"{name}{r}", count=20, seed=r, repeat=r, arm=name) for r in repeats]
        return ArmRuns(name, tuple(runs))

    pairs = pair(load_arm(arm("a", [0, 1, 2])), load_arm(arm("b", [2, 1])))
    assert pairs.population.repeats == (1, 2)
    assert pairs.population.unpaired_repeats == (0,)
    # The synthetic runs of one seed are equal, so each repeat was paired with its own.
    np.testing.assert_array_equal(pairs.base.output_tokens, pairs.other.output_tokens)


def test_a_changed_schedule_is_said(tmp_path: Path) -> None:
    assert (
        "the two schedules differ: differences in latency are partly due to that"
        in two(tmp_path, {"t_sched_s": 0.1}).notes
    )


def test_arms_need_one_baseline_and_names(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for arms in (
        [ArmRuns("a", (run,)), ArmRuns("b", (run,))],
        [ArmRuns("a", (run,), baseline=True)],
        [ArmRuns("a", (run,), baseline=True), ArmRuns("a", (run,))],
    ):
        with pytest.raises(PairingError):
            check_arms(arms)
