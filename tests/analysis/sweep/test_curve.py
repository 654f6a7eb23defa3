"""Curves and capacities against simulated servers of known capacity, and the falling fit against a plain one."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.analysis.statistics.crossing import falling
from kvload.analysis.sweep.curve import curves_of
from kvload.analysis.sweep.model import Curve, Point

TARGET = 0.9


def point(arm: str, level: float, sent: int, met: int, repeat: int = 0) -> Point:
    return Point(
        arm=arm,
        level=level,
        repeat=repeat,
        run=f"{arm}-{level}-{repeat}",
        sent=sent,
        met=met,
        kept_pace=1.0,
        answered_rps=level,
        output_tokens_per_s=10.0 * met / max(sent, 1) * level,
        good_tokens=10.0 * met,
        ttft_s={50.0: 0.1, 99.0: 0.2},
        tpot_s={50.0: 0.01, 99.0: None},
        e2e_s={50.0: 1.0, 99.0: 2.0},
        duration_s=sent / level,
    )


def curves(points: list[Point], arms: list[str], **options: float) -> dict[str, Curve]:
    found, _ = curves_of(points, arms, axis="rate", baseline=arms[0], target=TARGET, **options)  # type: ignore[arg-type]
    return {curve.arm: curve for curve in found}


def plain_falling(shares: list[float], weights: list[int]) -> list[float]:
    """Pool adjacent violators, written from its definition."""
    pools = [[share * weight, weight, 1] for share, weight in zip(shares, weights, strict=True)]
    place = 0
    while place + 1 < len(pools):
        left, right = pools[place], pools[place + 1]
        if left[0] / left[1] < right[0] / right[1]:
            pools[place : place + 2] = [[a + b for a, b in zip(left, right, strict=True)]]
            place = max(place - 1, 0)
        else:
            place += 1
    return [total / weight for total, weight, count in pools for _ in range(int(count))]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=9))
def test_the_falling_fit_is_that_of_pooling_neighbours(pairs: list[tuple[float, int]]) -> None:
    shares, weights = [share for share, _ in pairs], [weight for _, weight in pairs]
    fitted = falling(np.array([shares]), np.array(weights, dtype=float))[0]
    np.testing.assert_allclose(fitted, plain_falling(shares, weights), atol=1e-9)


def server(capacity: float, steepness: float) -> Callable[[float], float]:
    """Attainment over the rate of a server that meets the target up to ``capacity``."""
    odds = TARGET / (1 - TARGET)
    return lambda rate: 1 / (1 + (rate / capacity) ** steepness / odds)


def drawn(
    rng: np.random.Generator,
    arm: str,
    attainment: Callable[[float], float],
    rates: list[float],
    repeats: int,
    drift: float,
) -> list[Point]:
    """Runs whose server is faster or slower as a whole, by ``drift`` (standard deviation of log capacity)."""
    found = []
    for repeat in range(repeats):
        for rate in rates:
            pace = float(np.exp(rng.normal(0, drift)))
            found.append(point(arm, rate, 200, int(rng.binomial(200, attainment(rate / pace))), repeat))
    return found


@pytest.mark.parametrize(("repeats", "drift"), [(1, 0.0), (3, 0.05)])
def test_intervals_hold_the_truth_as_often_as_they_say(repeats: int, drift: float) -> None:
    rates = [1.0, 2.0, 4.0, 5.0, 6.3, 8.0, 10.0, 12.6, 16.0]
    rng = np.random.default_rng(5)
    held = {"base": 0, "arm": 0, "ratio": 0}
    trials = 100
    for seed in range(trials):
        points = drawn(rng, "base", server(5.5, 8), rates, repeats, drift)
        points += drawn(rng, "arm", server(11.0, 8), rates, repeats, drift)
        found = curves(points, ["base", "arm"], seed=seed)
        ratio = found["arm"].ratio
        assert ratio is not None
        for name, value, truth in (
            ("base", found["base"].capacity, 5.5),
            ("arm", found["arm"].capacity, 11.0),
            ("ratio", ratio, 2.0),
        ):
            held[name] += (value.low or 0) <= truth <= (value.high or np.inf)
    assert min(held.values()) >= 0.9 * trials


def test_equal_servers_are_rarely_told_apart() -> None:
    rates = [2.0, 4.0, 5.6, 8.0, 16.0]
    rng = np.random.default_rng(11)
    told = 0
    for seed in range(100):
        points = drawn(rng, "base", server(6, 8), rates, 3, 0.05) + drawn(rng, "arm", server(6, 8), rates, 3, 0.05)
        ratio = curves(points, ["base", "arm"], seed=seed)["arm"].ratio
        assert ratio is not None
        told += ratio.excludes(1.0)
    assert told <= 8


def test_ends_that_no_level_bounds_are_open() -> None:
    points = [point("base", rate, 100, 100) for rate in (1.0, 2.0)] + [point("arm", 1.0, 100, 3)]
    found = curves(points, ["base", "arm"])
    assert (found["base"].capacity.estimate, found["base"].capacity.high) == (None, None)
    assert (found["base"].met_at, found["base"].missed_at) == (2.0, None)
    assert (found["arm"].met_at, found["arm"].missed_at) == (None, 1.0)
    assert found["arm"].capacity.estimate is None
    assert found["arm"].ratio is not None
    assert found["arm"].ratio.estimate is None


def test_an_arm_without_runs_is_shown_as_such() -> None:
    found = curves([point("base", 1.0, 50, 50), point("base", 2.0, 50, 0)], ["base", "arm"])
    assert found["arm"].levels == ()
    assert found["arm"].capacity.estimate is None
    assert found["base"].capacity.estimate == pytest.approx(2**0.5, rel=0.1)


def test_the_cost_is_the_price_over_the_good_tokens() -> None:
    found, _ = curves_of(
        [point("base", 2.0, 100, 95), point("base", 4.0, 100, 10)],
        ["base"],
        axis="rate",
        baseline="base",
        target=TARGET,
        price_per_hour=3.6,
    )
    # 95 good requests of 10 tokens in 50 s: 19 tokens a second, and a tenth of a cent a second
    assert found[0].cost_per_million == pytest.approx(0.001 / 19 * 1e6)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 60), st.integers(0, 60)), max_size=8))
def test_no_set_of_counts_breaks_it(rows: list[tuple[float, int, int]]) -> None:
    points = [point("base", rate, sent, min(sent, met)) for rate, sent, met in rows]
    found = curves(points, ["base", "arm"])
    value = found["base"].capacity
    if value.estimate is not None and value.low is not None:
        assert value.low <= value.estimate
