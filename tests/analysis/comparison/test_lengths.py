"""Length differences against arithmetic done by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.analysis.comparison.figures import length_figures
from kvload.analysis.comparison.lengths import LengthChange, certain_log_ratio, compare_lengths
from kvload.analysis.records.pairs import ArmRuns, Pairs, load_arm, pair
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.layout import effects
from tests.analysis.arms_in_memory import answered, loaded, with_answers
from tests.analysis.synthetic import arm


def pairs_of(tmp_path: Path, base: list[int], other: list[int], **changes: Any) -> Pairs:
    one, two = arm(tmp_path / "base", base, **changes), arm(tmp_path / "other", other, **changes)
    return pair(load_arm(ArmRuns("base", (one,), baseline=True)), load_arm(ArmRuns("other", (two,))))


def compared(pairs: Pairs) -> LengthChange:
    found = compare_lengths(pairs, rng=np.random.default_rng(0))
    assert found is not None
    return found


def test_differences_and_ratios(tmp_path: Path) -> None:
    base, other = [100, 100, 100, 100, 200, 10], [100, 50, 40, 150, 200, 60]
    found = compared(pairs_of(tmp_path, base, other))
    differences = [(b - o) / b for b, o in zip(base, other, strict=True)]
    assert found.difference_mean.estimate == pytest.approx(np.mean(differences))
    assert found.difference_median.estimate == pytest.approx(np.median(differences))
    assert found.ratio_mean.estimate == pytest.approx(np.mean([o / b for b, o in zip(base, other, strict=True)]))
    assert found.ratio_total.estimate == pytest.approx(sum(other) / sum(base))
    assert found.shrunk.estimate == pytest.approx(2 / 6)  # -50 % and -60 %
    assert found.grown.estimate == pytest.approx(2 / 6)  # +50 % and +500 %


def test_no_sample_is_left_out_of_the_distribution(tmp_path: Path) -> None:
    base, other = [10, 10, 10, 10, 10], [10, 400, 1, 12, 25]
    found = compared(pairs_of(tmp_path, base, other))
    assert found.histogram.below == 1
    assert sum(found.histogram.counts) + found.histogram.below == found.n == 5
    zero_bin = found.histogram.edges.index(0.0)
    assert found.histogram.counts[zero_bin] == 1
    np.testing.assert_allclose(found.ecdf[0], (-39.0, 0.2), rtol=1e-6)
    assert found.ecdf[-1][1] == 1.0


def test_an_empty_answer_is_no_shorter_one(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, [0, 10, 10], [5, 10, 0])
    found = compared(pairs)
    assert (found.n, found.empty_base, pairs.population.answered) == (1, 1, 1)
    assert found.shrunk.estimate == 0.0


def test_answers_at_the_cap_are_censored(tmp_path: Path) -> None:
    found = compared(pairs_of(tmp_path, [100, 512, 300, 200], [512, 512, 300, 100]))
    assert found.cap_base.estimate == 0.25
    assert found.cap_other.estimate == 0.5
    assert found.capped.estimate == 0.5
    assert found.curve_other.censored == 2
    assert found.curve_other.median == 300.0
    assert found.naive_other.median == 300.0
    assert found.curve_other.longer[-1] == 0.5
    assert found.naive_other.longer[-1] == 0.0


def test_forced_lengths_are_refused(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, [10, 20], [10, 20], mode="forced")
    assert compare_lengths(pairs, rng=np.random.default_rng(0)) is None
    sub = tmp_path / "each"
    sub.mkdir()
    forced = pairs_of(sub, [512, 512], [512, 512], change=lambda _: {"min_tokens": 512, "ignore_eos": True})
    assert compare_lengths(forced, rng=np.random.default_rng(0)) is None


def test_answers_cut_by_time_count_with_the_tokens_they_had(tmp_path: Path) -> None:
    late = {"status": "timeout", "cause": "timeout", "finish_reason": None}
    other = arm(tmp_path / "other", [400, 50, 100], change=lambda i: late if i < 2 else {})
    base = arm(tmp_path / "base", [100, 100, 100])
    pairs = pair(load_arm(ArmRuns("base", (base,), baseline=True)), load_arm(ArmRuns("other", (other,))))
    found = compared(pairs)
    assert (found.n, found.cut_by_time, found.unstarted) == (3, 2, 0)
    assert found.capped.estimate == pytest.approx(2 / 3)
    assert found.cap_other.estimate == 0.0
    assert found.shrunk.estimate == 0.0  # 50 tokens and no end: it may have become longer
    assert found.grown.estimate == pytest.approx(1 / 3)
    # At least four times as long, nothing known, the same.
    assert length_figures(pairs).by_repeat[0] == pytest.approx(np.log(4) / 3)


@pytest.mark.parametrize(
    ("base", "other", "base_cut", "other_cut", "expected"),
    [
        (100, 200, False, False, np.log(2)),
        (100, 200, False, True, np.log(2)),  # at least that
        (200, 100, False, True, 0.0),  # may be longer or shorter
        (200, 100, True, False, -np.log(2)),
        (100, 200, True, False, 0.0),
        (100, 200, True, True, 0.0),
        (100, 0, False, False, np.log(0.5 / 100)),
    ],
)
def test_a_censored_pair_says_what_is_certain_and_the_same_both_ways_round(
    base: float, other: float, base_cut: bool, other_cut: bool, expected: float
) -> None:
    values, cuts = (np.array([base]), np.array([other])), (np.array([base_cut]), np.array([other_cut]))
    assert certain_log_ratio(*values, *cuts)[0] == pytest.approx(expected)
    assert certain_log_ratio(*values[::-1], *cuts[::-1])[0] == pytest.approx(-expected)


def test_a_cap_that_would_be_enough_is_guessed_from_how_fast_answers_end(tmp_path: Path) -> None:
    exponential = np.minimum(np.random.default_rng(0).exponential(400, 500).astype(int) + 1, 512).tolist()
    found = compared(pairs_of(tmp_path, exponential, exponential))
    assert found.enough_tokens == pytest.approx(-400 * np.log(0.05), rel=0.15)
    sub = tmp_path / "none"
    sub.mkdir()
    assert compared(pairs_of(sub, [512, 512], [512, 512])).enough_tokens is None


def test_equal_noisy_arms_inflate_in_the_mean_ratio_but_not_in_what_is_judged(tmp_path: Path) -> None:
    table = answered(tmp_path, 150)
    bare = judged = 0
    simulations = 150
    for seed in range(simulations):
        rng = np.random.default_rng([11, seed])
        typical = rng.lognormal(5, 0.7, 150)
        arms = [
            loaded(name, with_answers(table, typical * rng.lognormal(0, 0.4, 150), 0.01, np.full(150, 0.1)))
            for name in ("base", "equal")
        ]
        pairs = pair(arms[0], arms[1])
        bare += mean_ratio(pairs).excludes(1.0)
        judged += effects({"equal": length_figures(pairs)}, floor=None)["equal"].found
    assert bare / simulations > 0.5  # E[X/Y] > 1 even where X and Y are alike
    assert judged / simulations < 0.05 + 3 * (0.05 * 0.95 / simulations) ** 0.5


def mean_ratio(pairs: Pairs) -> estimates.Estimate:
    ratio = pairs.other.output_tokens / pairs.base.output_tokens
    return estimates.mean(ratio, rng=np.random.default_rng(0), resamples=200)
