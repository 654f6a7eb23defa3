"""Intervals against simulation and against other implementations."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate

SIMULATIONS = 600
# Three standard errors of a coverage of 95 % seen in that many simulations.
NOISE = 3 * (0.95 * 0.05 / SIMULATIONS) ** 0.5


def coverage(make: Callable[[np.random.Generator], Estimate], truth: float, simulations: int = SIMULATIONS) -> float:
    hits = 0
    for seed in range(simulations):
        found = make(np.random.default_rng([99, seed]))
        below = found.low is None or found.low <= truth
        hits += below and (found.high is None or truth <= found.high)
    return hits / simulations


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (512, 600), (1, 100_000)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = estimates.wilson(successes, n)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


def test_bca_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=80)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = estimates.mean(values, rng=np.random.default_rng(2), resamples=20_000)
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_the_analytic_limit_agrees_with_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).lognormal(0, 1, 1000)
    resampled = estimates.mean(values, rng=np.random.default_rng(0), resamples=20_000)
    monkeypatch.setattr(estimates, "_RESAMPLE_UP_TO", 100)
    analytic = estimates.mean(values, rng=np.random.default_rng(0))
    assert (resampled.method, analytic.method) == ("BCa bootstrap", "ABC bootstrap")
    assert resampled.half_width is not None
    assert analytic.low == pytest.approx(resampled.low, abs=0.06 * resampled.half_width)
    assert analytic.high == pytest.approx(resampled.high, abs=0.06 * resampled.half_width)


def test_means_are_covered() -> None:
    found = coverage(lambda rng: estimates.mean(rng.exponential(size=100), rng=rng, resamples=1000), 1.0)
    assert abs(found - 0.95) < NOISE + 0.01  # BCa is a little short at n = 100


def test_means_of_many_values_are_covered() -> None:
    found = coverage(lambda rng: estimates.mean(rng.exponential(size=5000), rng=rng), 1.0)
    assert abs(found - 0.95) < NOISE


def test_means_of_clustered_values_are_covered() -> None:
    clusters = np.repeat(np.arange(100), 3)

    def three_repeats(rng: np.random.Generator) -> Estimate:
        values = np.repeat(rng.normal(size=100), 3) + rng.normal(scale=0.1, size=300)
        return estimates.clustered_mean(values, clusters, rng=rng, resamples=1000)

    assert abs(coverage(three_repeats, 0.0) - 0.95) < NOISE + 0.01


def test_paired_differences_are_covered() -> None:
    def pairs(rng: np.random.Generator) -> Estimate:
        base = rng.lognormal(3, 1, 200)
        return estimates.paired_difference(base + rng.normal(0.5, 1, 200), base, rng=rng, resamples=1000)

    assert abs(coverage(pairs, 0.5) - 0.95) < NOISE


def test_a_paired_difference_without_effect_is_found_in_about_one_run_of_twenty() -> None:
    def pairs(rng: np.random.Generator) -> Estimate:
        base = rng.lognormal(3, 1, 200)
        return estimates.paired_difference(base + rng.standard_t(4, 200), base, rng=rng, resamples=1000)

    findings = sum(pairs(np.random.default_rng([7, seed])).excludes(0.0) for seed in range(SIMULATIONS)) / SIMULATIONS
    assert abs(findings - 0.05) < NOISE


@pytest.mark.parametrize(("n", "q"), [(50, 0.5), (200, 0.9), (1000, 0.99), (20, 0.99)])
def test_quantiles_are_covered(n: int, q: float) -> None:
    truth = float(scipy.stats.expon.ppf(q))
    found = coverage(lambda rng: estimates.quantile(np.sort(rng.exponential(size=n)), q), truth)
    assert found > 0.95 - NOISE  # discrete ranks: at least the level


@given(st.integers(1, 3000), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_ranks_are_scipys_binomial_quantiles(n: int, q: float) -> None:
    expected = scipy.stats.binom.ppf([0.025, 0.975], n, q)
    assert estimates._binomial_ranks(n, q, 0.95) == (int(expected[0]), int(expected[1]) + 1)


def test_ranks_of_a_million_values() -> None:
    low, high = estimates._binomial_ranks(1_000_000, 0.99, 0.95)
    expected = scipy.stats.binom.ppf([0.025, 0.975], 1_000_000, 0.99)
    assert (low, high - 1) == tuple(expected.astype(int))


def test_quantiles_of_clustered_values_are_covered() -> None:
    clusters = np.repeat(np.arange(150), 20)

    def answers(rng: np.random.Generator) -> Estimate:
        values = np.repeat(rng.normal(size=150), 20) + rng.normal(size=3000)
        return estimates.clustered_quantile(values, clusters, 0.9, quantile_of=lambda q: float(np.quantile(values, q)))

    truth = float(scipy.stats.norm.ppf(0.9, scale=2**0.5))
    assert abs(coverage(answers, truth) - 0.95) < NOISE + 0.01


def test_nothing_to_estimate_gives_none() -> None:
    empty = np.empty(0)
    rng = np.random.default_rng(0)
    assert estimates.mean(empty, rng=rng).estimate is None
    assert estimates.quantile(empty, 0.5).estimate is None
    assert estimates.wilson(0, 0).estimate is None


def test_fewer_than_twenty_values_have_no_interval_and_equal_values_have_a_point() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 19):
        few = estimates.mean(np.arange(2.0, count + 2.0), rng=rng)
        assert (few.estimate, few.low, few.high) == (2.0 + (count - 1) / 2, None, None)
    same = estimates.mean(np.full(20, 2.0), rng=rng)
    assert (same.low, same.high) == (2.0, 2.0)
