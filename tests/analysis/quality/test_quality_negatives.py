"""Negative samples against the rule written out row by row, and against chance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.quality.negatives import (
    Gate,
    NegativeCount,
    fallen,
    first_of_each,
    negative_samples,
    parse_gate,
    parse_thetas,
)
from kvload.errors import UsageError

NAN = float("nan")
SCORES = st.one_of(st.sampled_from([0.0, 0.5, 1.0, NAN]), st.floats(0, 1).map(lambda value: round(value, 2)))


def only(counts: list[NegativeCount], *methods: str, theta: float = 0.1, task: str | None = None) -> NegativeCount:
    (found,) = [each for each in counts if (each.methods, each.theta, each.task) == (methods, theta, task)]
    return found


@given(
    st.lists(st.tuples(SCORES, SCORES, SCORES, st.sampled_from(["x", "y"])), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    st.sampled_from([Gate("median"), Gate("mean"), Gate("value", 0.4)]),
)
def test_counts_are_those_of_the_rule(rows: list[tuple[float, float, float, str]], theta: float, gate: Gate) -> None:
    base, one, two = (np.array([row[column] for row in rows]) for column in range(3))
    tasks = [row[3] for row in rows]
    found = negative_samples(
        base, {"one": one, "two": two}, tasks=tasks, thetas=[theta], gate=gate, sets=[("one", "two")]
    )

    def limit(scores: np.ndarray, task: str) -> float:
        known = [score for score, name in zip(scores, tasks, strict=True) if name == task and not math.isnan(score)]
        if gate.value is not None:
            return gate.value
        return float(np.median(known) if gate.kind == "median" else np.mean(known))

    def falls(before: np.ndarray, after: np.ndarray, row: int) -> bool:
        high, low = float(before[row]), float(after[row])
        if math.isnan(high) or math.isnan(low) or high == 0 or high < limit(before, tasks[row]):
            return False
        return low < high and (high - low) / high >= theta - 1e-11

    for methods in (("one",), ("two",), ("one", "two")):
        columns = [{"one": one, "two": two}[name] for name in methods]
        both = [r for r in range(len(rows)) if not any(math.isnan(each[r]) for each in (base, *columns))]
        negative = [row for row in both if all(falls(base, column, row) for column in columns)]
        mirror = [row for row in both if all(falls(column, base, row) for column in columns)]
        count = only(found, *methods, theta=theta)
        assert (count.pairs, count.negative, count.mirror) == (len(both), len(negative), len(mirror))
        assert list(count.rows) == negative
        if len(set(tasks)) > 1:
            parts = [only(found, *methods, theta=theta, task=task) for task in ("x", "y")]
            assert sum(part.negative for part in parts) == count.negative
            assert sum(part.eligible for part in parts) == count.eligible


def test_a_zero_baseline_is_never_negative() -> None:
    """0 does not fall, and 0 <= 0 is no fall either."""
    base = np.array([0.0, 0.0, 1.0])
    (count,) = negative_samples(
        base, {"m": np.array([0.0, 0.0, 0.0])}, tasks="xxx", thetas=[0.1], gate=Gate("value", 0.0)
    )
    assert (count.eligible, count.negative, count.rows) == (1, 1, (2,))
    assert not fallen(np.zeros(3), np.zeros(3), 0.0).any()


def test_a_fall_of_just_theta_counts_and_no_fall_never_does() -> None:
    base = np.array([1.0, 0.3, 10.0, 0.7, 0.2])
    assert fallen(base, base * 0.9, 0.1).all()
    assert fallen(np.array([0.2, 1.0]), np.array([0.18, 0.9]), 0.1).all()  # edit similarities, rounded
    assert not fallen(base, base * 0.901, 0.1).any()
    assert not fallen(base, base, 0.0).any()


def test_the_net_has_an_interval_and_p_values_are_adjusted_over_the_methods() -> None:
    rng = np.random.default_rng(0)
    base = np.ones(400)
    methods = {"bad": (rng.random(400) > 0.1).astype(float), **{f"m{i}": base.copy() for i in range(9)}}
    counts = negative_samples(base, methods, tasks=["x"] * 400, thetas=[0.1, 0.5])
    bad, same = only(counts, "bad"), only(counts, "m0")
    assert bad.net.estimate == bad.negative - bad.mirror == bad.negative
    assert bad.net.low is not None
    assert 0 < bad.net.low < bad.negative
    assert same.net.low == pytest.approx(-3.0)
    assert same.net.high == pytest.approx(3.0)
    assert bad.against_mirror.p_value is not None
    assert bad.adjusted_p == pytest.approx(10 * bad.against_mirror.p_value)
    assert only(counts, "bad", theta=0.5).adjusted_p is None


def test_the_nets_interval_covers_chance() -> None:
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        first, second = (np.where(rng.random(150) < 0.2, 0.0, 1.0) for _ in range(2))
        net = negative_samples(first, {"m": second}, tasks=["x"] * 150, thetas=[0.1])[0].net
        assert net.low is not None
        assert net.high is not None
        held += net.low <= 0 <= net.high
    assert held >= 182


def test_gates_are_taken_within_a_task() -> None:
    base = np.array([0.1, 0.2, 80.0, 90.0])
    counts = negative_samples(
        base, {"m": base * 0.5}, tasks=["small"] * 2 + ["large"] * 2, thetas=[0.1], gate=Gate("mean")
    )
    assert only(counts, "m").rows == (1, 3)
    assert only(counts, "m", task="small").rows == (1,)


def test_the_second_run_of_the_baseline_stands_beside() -> None:
    base = np.array([1.0, 1.0, 1.0, 1.0, 0.5])
    second = np.array([0.0, 1.0, 1.0, NAN, 1.0])
    method = np.array([0.0, 0.0, 1.0, 1.0, 0.5])
    counts = negative_samples(base, {"m": method}, tasks="xxxxx", thetas=[0.1], floor=second, gate=Gate("value", 0.1))
    count = only(counts, "m")
    assert (count.negative, count.mirror, count.floor_negative, count.floor_mirror) == (2, 0, 1, 1)
    # the row that the second run did not answer does not count for it
    assert (count.pairs, count.floor_pairs) == (5, 4)
    assert count.against_floor is not None
    assert count.against_floor.n == 1


def test_chance_alone_is_found_about_as_often_as_the_level_says() -> None:
    """Two arms that differ by chance only: negative against mirror rejects in about 5 % of trials."""
    rng = np.random.default_rng(8)
    trials, rejected = 400, 0
    for _ in range(trials):
        quality = rng.uniform(0.2, 0.9, 150)
        base, other = ((rng.random(150) < quality).astype(float) for _ in range(2))
        (count,) = negative_samples(base, {"m": other}, tasks=["x"] * 150, thetas=[0.1])
        rejected += count.against_mirror.rejects()
    assert rejected <= 0.05 * trials + 3 * math.sqrt(trials * 0.05 * 0.95)


def test_a_real_loss_is_found() -> None:
    rng = np.random.default_rng(3)
    base = np.ones(300)
    worse = (rng.random(300) > 0.1).astype(float)
    (count,) = negative_samples(base, {"m": worse}, tasks=["x"] * 300, thetas=[0.1])
    assert count.negative == int((worse == 0).sum())
    assert count.mirror == 0
    assert count.against_mirror.rejects()


def test_what_is_asked_for_is_checked() -> None:
    base = np.ones(2)
    with pytest.raises(UsageError, match="no such method: 'z'"):
        negative_samples(base, {"m": base}, tasks="xx", sets=[("m", "z")])
    with pytest.raises(UsageError, match="scores below 0"):
        negative_samples(base, {"m": -base}, tasks="xx")
    with pytest.raises(UsageError, match="theta 1 is not"):
        negative_samples(base, {"m": base}, tasks="xx", thetas=[1.0])
    for text in ("", "-1", "nan", "most", "inf"):
        with pytest.raises(UsageError):
            parse_gate(text)
    assert [str(parse_gate(text)) for text in ("median", "mean", "0.5")] == ["median", "mean", "0.5"]
    assert parse_thetas("0.1, 20%") == [0.1, 0.2]
    for text in ("", "1", "x", "-0.1"):
        with pytest.raises(UsageError):
            parse_thetas(text)


@given(st.lists(st.integers(0, 5), max_size=20))
def test_duplicates_are_dropped_and_counted(keys: list[int]) -> None:
    kept, dropped = first_of_each(keys)
    assert [keys[row] for row in kept] == list(dict.fromkeys(keys))
    assert len(kept) + dropped == len(keys)
