"""Paired tests and Kaplan-Meier curves against other implementations and by simulation."""

import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.statistics import significance


def passes(lost: int, won: int, both: int = 10) -> tuple[np.ndarray, np.ndarray]:
    before = np.array([True] * lost + [False] * won + [True] * both)
    after = np.array([False] * lost + [True] * won + [True] * both)
    return before, after


def test_mcnemar_mid_p_of_the_published_example() -> None:
    # Fagerland et al. 2013, table 1 (airway hyper-responsiveness, 1 against 7 discordant): mid-p 0.039.
    found = significance.mcnemar(*passes(7, 1))
    assert found.p_value == pytest.approx(0.0391, abs=5e-5)
    assert found.n == 8


@given(st.integers(0, 60), st.integers(0, 60))
def test_mid_p_counts_half_of_the_point_on_either_side(lost: int, won: int) -> None:
    found = significance.mcnemar(*passes(lost, won))
    assert found.p_value is not None
    chances = scipy.stats.binom.pmf(np.arange(lost + won + 1), lost + won, 0.5)
    fewer = min(lost, won)
    expected = 2 * (chances[:fewer].sum() + chances[fewer] / 2)
    assert found.p_value == pytest.approx(min(1.0, expected), abs=1e-9)


def test_clustered_mcnemar_holds_its_level_where_repeats_agree() -> None:
    clusters = np.tile(np.arange(120), 3)
    rejected = naive = 0
    for seed in range(400):
        rng = np.random.default_rng([1, seed])
        # Whether a request changes is a property of the request: all its repeats do the same.
        flips = np.tile(rng.choice([-1, 0, 1], 120, p=[0.1, 0.8, 0.1]), 3)
        before, after = flips < 0, flips > 0
        rejected += significance.mcnemar(before, after, clusters).rejects()
        naive += significance.mcnemar(before, after).rejects()
    assert abs(rejected / 400 - 0.05) < 0.035
    assert naive / 400 > 0.15


def test_wilcoxon_agrees_with_scipy_and_drops_zeros() -> None:
    values = np.random.default_rng(2).normal(0.3, 1, 90)
    found = significance.wilcoxon(np.concatenate([values, np.zeros(30)]))
    assert found.p_value == pytest.approx(scipy.stats.wilcoxon(values, method="asymptotic").pvalue)
    assert found.n == 90
    assert found.estimate is not None
    assert found.estimate > 0


def test_wilcoxon_of_nothing() -> None:
    assert significance.wilcoxon(np.empty(0)).p_value is None
    assert significance.wilcoxon(np.zeros(9)).p_value == 1.0


def test_wilcoxon_finds_nothing_in_equal_arms() -> None:
    found = sum(
        significance.wilcoxon(np.random.default_rng([3, seed]).standard_t(3, 80)).rejects() for seed in range(600)
    )
    assert abs(found / 600 - 0.05) < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_kaplan_meier_agrees_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(1, 200, 300).astype(float)
    cap = rng.integers(50, 200, 300).astype(float)
    lengths, censored = np.minimum(true, cap), true > cap
    found = significance.kaplan_meier(lengths, censored)
    expected = scipy.stats.ecdf(scipy.stats.CensoredData.right_censored(lengths, censored)).sf
    np.testing.assert_allclose(found.lengths, expected.quantiles)
    np.testing.assert_allclose(found.longer, expected.probabilities, atol=1e-12)
    with warnings.catch_warnings():
        # scipy warns of the ends of the curve, where its interval is undefined; those are left out below.
        warnings.simplefilter("ignore", RuntimeWarning)
        bounds = expected.confidence_interval(method="log-log")
    known = np.isfinite(bounds.low.probabilities) & (np.array(found.longer) > 0) & (np.array(found.longer) < 1)
    np.testing.assert_allclose(np.array(found.low)[known], bounds.low.probabilities[known], atol=1e-9)
    np.testing.assert_allclose(np.array(found.high)[known], bounds.high.probabilities[known], atol=1e-9)


def test_kaplan_meier_sees_past_the_cap_where_the_naive_curve_does_not() -> None:
    rng = np.random.default_rng(0)
    true = rng.exponential(100, 20_000)
    cap = rng.uniform(20, 300, 20_000)
    found = significance.kaplan_meier(np.minimum(true, cap), true > cap)
    assert found.median == pytest.approx(np.log(2) * 100, rel=0.03)
    assert np.median(np.minimum(true, cap)) < 60


def test_a_median_beyond_the_cap_is_unknown() -> None:
    found = significance.kaplan_meier(np.full(10, 512.0), np.array([True] * 8 + [False] * 2))
    assert found.median is None
    assert found.restricted_mean == 512.0
