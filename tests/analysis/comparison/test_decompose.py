"""The parts of a change of E2E: they add up, and each sees its own cause."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.analysis.comparison.decompose import decompose, parts_of
from kvload.analysis.records.pairs import ArmRuns, LoadedArm, load_arm, pair
from tests.analysis.arms_in_memory import answered, loaded, with_answers
from tests.analysis.synthetic import arm, mixed


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return answered(tmp_path_factory.mktemp("table"), 40)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_the_parts_add_up_exactly(template: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def arm_of(name: str) -> LoadedArm:
        tokens = rng.integers(1, 300, 40)
        table = with_answers(template, tokens, rng.uniform(0.001, 0.1, 40), rng.uniform(0.01, 2, 40))
        return loaded(name, table)

    pairs = pair(arm_of("a"), arm_of("b"))
    parts = parts_of(pairs)
    np.testing.assert_allclose(sum(parts.named().values()), parts.total_s, atol=1e-12)
    found = decompose(pairs, rng=rng)
    total = sum(part.estimate or 0.0 for part in found.parts.values())
    assert found.total.estimate == pytest.approx(total, abs=1e-12)


def test_the_parts_add_up_for_real_shapes(tmp_path: Path) -> None:
    """One-chunk answers, empty answers and failures among them."""
    a, b = mixed(tmp_path / "a", seed=1), mixed(tmp_path / "b", seed=2)
    parts = parts_of(pair(load_arm(ArmRuns("a", (a,))), load_arm(ArmRuns("b", (b,)))))
    assert len(parts.rows) > 180
    np.testing.assert_allclose(sum(parts.named().values()), parts.total_s, atol=1e-12)


def one_change(template: Any, **other: Any) -> dict[str, float]:
    values: dict[str, Any] = {"tokens": np.full(40, 101.0), "tpot_s": 0.01, "ttft_s": np.full(40, 0.2)}
    base, arm_ = with_answers(template, **values), with_answers(template, **(values | other))
    found = decompose(pair(loaded("a", base), loaded("b", arm_)), rng=np.random.default_rng(0))
    return {name: part.estimate or 0.0 for name, part in found.parts.items()}


def test_each_part_sees_its_own_cause(template: Any) -> None:
    assert one_change(template, ttft_s=np.full(40, 0.3)) == pytest.approx(
        {"prefill": 0.1, "speed": 0.0, "length": 0.0}, abs=1e-9
    )
    assert one_change(template, tpot_s=0.006) == pytest.approx({"prefill": 0, "speed": -0.4, "length": 0}, abs=1e-9)
    assert one_change(template, tokens=np.full(40, 151.0)) == pytest.approx(
        {"prefill": 0, "speed": 0, "length": 0.5}, abs=1e-9
    )


def test_length_is_charged_at_the_compressed_speed(template: Any) -> None:
    found = one_change(template, tokens=np.full(40, 151.0), tpot_s=0.004)
    assert found == pytest.approx({"prefill": 0.0, "speed": -0.6, "length": 50 * 0.004}, abs=1e-9)


def test_the_share_of_the_speed_up_that_longer_answers_eat(template: Any) -> None:
    values = {"ttft_s": np.full(40, 0.2)}
    rng = np.random.default_rng(0)
    base = with_answers(template, np.full(40, 101.0), 0.01, **values)
    grown = with_answers(template, 101 + rng.integers(60, 80, 40), 0.005, **values)
    found = decompose(pair(loaded("a", base), loaded("b", grown)), rng=rng)
    assert found.eaten is not None
    expected = 0.005 * (grown.output_tokens.mean() - 101) / (0.005 * 100)
    assert found.eaten.estimate == pytest.approx(expected)
    slower = with_answers(template, np.full(40, 101.0), 0.02, **values)
    assert decompose(pair(loaded("a", base), loaded("b", slower)), rng=rng).eaten is None


def test_queueing_is_apart_where_the_server_tells_it(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", [50] * 20, change=lambda _: {"ttft_s": 0.2, "queue_s": 0.05})
    b = arm(tmp_path / "b", [50] * 20, change=lambda _: {"ttft_s": 0.5, "queue_s": 0.30})
    pairs = pair(load_arm(ArmRuns("a", (a,))), load_arm(ArmRuns("b", (b,))))
    found = decompose(pairs, rng=np.random.default_rng(0))
    assert found.parts["queueing"].estimate == pytest.approx(0.25)
    assert found.parts["prefill"].estimate == pytest.approx(0.05)
