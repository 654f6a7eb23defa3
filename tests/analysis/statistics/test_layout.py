"""Judging by runs, against textbook formulas, published rules and simulation."""

from typing import Any

import numpy as np
import pytest

from kvload.analysis.records.table import Floats
from kvload.analysis.statistics import layout, planning, run_figures
from kvload.analysis.statistics.layout import Effect
from kvload.analysis.statistics.run_figures import RunFigures


def figures(*values: float, se: float | None = 1e-9, requests: int = 1000) -> RunFigures:
    return RunFigures(by_repeat=dict(enumerate(values)), request_se=se, requests=requests)


def test_a_balanced_layout_is_the_textbook_two_way_analysis() -> None:
    y = np.random.default_rng(0).normal(size=(4, 3))
    found = layout.two_way(y, [0, 1, 2, 3])
    residual = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
    assert found.df == (4 - 1) * (3 - 1)
    assert found.sd == pytest.approx(np.sqrt((residual**2).sum() / 6))
    assert found.estimate == pytest.approx(y.mean(axis=1)[1:] - y.mean(axis=1)[0])
    assert found.factor == pytest.approx(np.sqrt(2 / 3))


def test_baseline_and_its_second_run_share_an_effect_and_give_a_degree_of_freedom() -> None:
    y = np.random.default_rng(1).normal(size=(5, 3))
    found = layout.two_way(y, [0, 0, 1, 2, 3])
    assert found.df == (5 - 1) * (3 - 1) + 1
    assert found.estimate[0] == pytest.approx(y[2].mean() - y[:2].mean())
    assert found.factor == pytest.approx(np.sqrt(1.5 / 3))


def test_what_drifts_with_the_repeat_changes_nothing() -> None:
    y = np.random.default_rng(2).normal(size=(4, 3))
    one, two = (layout.two_way(values, [0, 0, 1, 2]) for values in (y, y + np.array([0.0, 5.0, -7.0])))
    assert one.estimate == pytest.approx(two.estimate)
    assert one.sd == pytest.approx(two.sd)


def test_a_missing_run_is_left_out_of_the_layout() -> None:
    y = np.random.default_rng(3).normal(size=(3, 3))
    y[2, 1] = np.nan
    found = layout.two_way(y, [0, 0, 1])
    assert found.df == 8 - 3 - 1
    assert np.isfinite(found.estimate).all()


@pytest.mark.parametrize(("times", "is_found"), [(10.9, False), (11.1, True)])
def test_one_run_each_needs_eleven_times_the_a_a_difference(times: float, is_found: bool) -> None:
    # The change counts from the middle of the two baseline runs.
    found = layout.effects({"again": figures(0.01), "m": figures(0.005 + 0.01 * times)}, floor="again")
    assert found["m"].df == 1
    assert found["m"].found is is_found


def test_without_a_second_baseline_speed_is_not_judged_and_texts_are_by_requests() -> None:
    arms = {"m": figures(0.5, 0.5, 0.5, se=0.01)}
    assert layout.effects(arms, floor=None, need_floor=True)["m"].p_value is None
    assert layout.effects(arms, floor=None, need_floor=True)["m"].change.low is None
    assert layout.effects({"m": figures(0.5, se=0.01)}, floor=None)["m"].found


def test_the_interval_is_never_narrower_than_the_one_over_requests() -> None:
    found = layout.effects({"again": figures(0.0, 0.0), "m": figures(0.1, 0.1, se=0.03)}, floor="again")["m"]
    assert found.change.low == pytest.approx(0.1 - planning.t_quantile(0.975, 999) * 0.03)
    assert found.change.method == "t over requests"


def test_fewer_than_twenty_pairs_have_no_interval() -> None:
    short = run_figures.mean_change(np.ones(19), np.zeros(19, int), np.arange(19))
    assert short.request_se is None
    found = layout.effects({"again": short, "m": short}, floor="again")["m"]
    assert (found.change.low, found.p_value, found.found) == (None, None, False)


def test_no_change_in_n_requests_does_not_exclude_three_over_n() -> None:
    rows = np.zeros(100, int), np.arange(100)
    none = run_figures.mean_change(np.zeros(100), *rows, bounded=True)
    found = layout.effects({"again": none, "m": none}, floor="again")["m"]
    assert (found.change.low, found.change.high) == (-0.03, 0.03)


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm's own steps: 4p, 3p, 2p, p, never falling
        ([0.01, None, 0.02], [0.02, None, 0.02]),
        ([0.6, 0.9], [1.0, 1.0]),
    ],
)
def test_holm(raw: list[float | None], adjusted: list[float | None]) -> None:
    assert layout.holm(raw) == pytest.approx(adjusted)


def test_log_ratio_is_the_log_of_totals_and_its_error_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(4)
    base = rng.lognormal(0, 1, 300)
    other = base * rng.lognormal(0.1, 0.4, 300)
    found = run_figures.log_ratio(other, base, np.zeros(300, int), np.arange(300))
    assert found.by_repeat[0] == pytest.approx(np.log(other.sum() / base.sum()))
    draws = rng.integers(0, 300, (4000, 300))
    spread = np.log(other[draws].sum(axis=1) / base[draws].sum(axis=1)).std()
    assert found.request_se == pytest.approx(spread, rel=0.1)


def test_power_is_what_a_simulation_finds() -> None:
    rng = np.random.default_rng(5)
    runs = rng.normal(size=(20_000, 4, 3))
    runs[:, 2] += 2.0
    found = layout.two_way(runs, [0, 0, 1, 2])
    hit = np.abs(found.estimate[:, 0]) > planning.t_quantile(0.975, found.df) * found.sd * found.factor[0]
    assert planning.power(2.0, np.sqrt(1.5 / 3), found.df) == pytest.approx(hit.mean(), abs=0.012)


def test_a_plan_names_repeats_for_noise_between_runs_and_requests_for_spread_over_them() -> None:
    def effect(noise: float, se: float) -> Effect:
        arms = {"again": figures(noise, -noise, noise, se=se), "m": figures(0.02, 0.02, 0.02, se=se)}
        return layout.effects(arms, floor="again", margin=0.01)["m"]

    assert (effect(0.03, 1e-6).plan.repeats or 0) > 0
    assert effect(0.03, 1e-6).plan.requests is None
    assert (effect(1e-6, 0.02).plan.requests or 0) > 1000
    assert effect(1e-6, 0.02).plan.repeats is None


def test_relative_effects_are_the_logs_turned_back() -> None:
    found = layout.effects({"again": figures(0.0, 0.01), "m": figures(0.1, 0.12)}, floor="again")["m"]
    relative = layout.as_relative(found)
    assert found.change.estimate is not None
    assert relative.change.estimate == pytest.approx(np.exp(found.change.estimate) - 1)
    assert relative.found == found.found


@pytest.mark.parametrize(("repeats", "bound"), [(3, 0.13), (5, 0.10)])
def test_quiet_arms_do_not_speak_for_one_whose_runs_scatter(repeats: int, bound: float) -> None:
    """An equal arm of ten times the noise: by the noise of all arms alone it is found to differ in one case of four."""
    rng = np.random.default_rng(4)
    found = scattered = 0
    for _ in range(800):
        runs = rng.normal(0, 0.01, (5, repeats)) * np.array([[1], [1], [1], [1], [10]])
        arms = {
            name: RunFigures(by_repeat=dict(enumerate(runs[arm] - runs[0])), request_se=1e-4, requests=1000)
            for arm, name in enumerate(["again", "a", "b", "odd"], 1)
        }
        odd = layout.effects(arms, floor="again")["odd"]
        found += odd.found
        scattered += odd.scattered
    assert found / 800 <= bound
    assert scattered / 800 > 0.8


def test_an_arms_own_scatter_is_that_of_its_distance_from_both_runs_of_the_baseline() -> None:
    by_repeat = {0: 0.10, 1: 0.20, 2: 0.30}
    arms = {
        "again": RunFigures(by_repeat=dict.fromkeys(range(3), 0.0), request_se=1e-6, requests=1000),
        "quiet": RunFigures(by_repeat=dict.fromkeys(range(3), 0.001), request_se=1e-6, requests=1000),
        "odd": RunFigures(by_repeat=by_repeat, request_se=1e-6, requests=1000),
    }
    found = layout.effects(arms, floor="again")
    assert found["odd"].scattered
    assert not found["quiet"].scattered
    half = found["odd"].run_half
    assert half == pytest.approx(planning.t_quantile(0.975, found["odd"].df) * 0.1 / np.sqrt(3))


def tails(rng: np.random.Generator, arms: int, repeats: int) -> Floats:
    return 0.01 * rng.standard_t(2, (arms, repeats))


def spikes(rng: np.random.Generator, arms: int, repeats: int) -> Floats:
    return rng.normal(0, 0.005, (arms, repeats)) + 0.1 * (rng.random((arms, repeats)) < 0.1)


def drifting(rng: np.random.Generator, arms: int, repeats: int) -> Floats:
    """A machine that slows down by twice the noise over a repeat; the baseline's runs at the ends, in turn."""
    ends = [(0, 1) if repeat % 2 == 0 else (1, 0) for repeat in range(repeats)]
    order = np.array([[first, *range(2, arms), last] for first, last in ends])
    place = np.argsort(order, axis=1).T + arms * np.arange(repeats)
    return rng.normal(0, 0.005, (arms, repeats)) + 0.01 * place / arms


def neighbours(rng: np.random.Generator, arms: int, repeats: int) -> Floats:
    """Runs that resemble those made just before them."""
    steps = rng.normal(size=arms * repeats)
    for number in range(1, len(steps)):
        steps[number] = 0.8 * steps[number - 1] + 0.6 * steps[number]
    return 0.01 * steps.reshape(repeats, arms).T


def tied(rng: np.random.Generator, arms: int, repeats: int) -> Floats:
    return np.round(rng.normal(0, 0.01, (arms, repeats)), 2)


@pytest.mark.parametrize("noise", [tails, spikes, drifting, neighbours, tied])
def test_noise_of_other_kinds_gives_no_more_false_verdicts(noise: Any) -> None:
    rng = np.random.default_rng(6)
    false = 0
    for _ in range(300):
        runs = noise(rng, 5, 3)
        arms = {
            name: RunFigures(by_repeat=dict(enumerate(runs[arm] - runs[0])), request_se=1e-4, requests=1000)
            for arm, name in enumerate(["again", "a", "b", "c"], 1)
        }
        found = layout.effects(arms, floor="again")
        false += any(found[name].found for name in "abc")
    assert false / 300 <= 0.07
