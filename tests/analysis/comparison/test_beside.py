"""The same arm alone and beside others, against data whose spread is known."""

import numpy as np
import pytest

from kvload.analysis.comparison.beside import interference, placement
from kvload.analysis.records.table import RecordTable
from tests.analysis.arms_in_memory import answered, with_answers

COUNT = 40


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> RecordTable:
    return answered(tmp_path_factory.mktemp("beside"), COUNT)


def a_run(template: RecordTable, factor: float) -> RecordTable:
    """A run in which everything takes ``factor`` times as long."""
    tokens = np.full(COUNT, 50.0)
    return with_answers(template, tokens, 0.02 * factor, np.full(COUNT, 0.3 * factor))


def test_equal_runs_are_over_the_floor_as_often_as_the_level_says(template: RecordTable) -> None:
    """Runs drift by 2 % each; the single run alone is one more of them: 5 in 100 stand out, for any number of runs."""
    rng = np.random.default_rng(3)
    trials, over = 400, 0
    for _ in range(trials):
        factors = np.exp(rng.normal(0, 0.02, 7))
        found = interference(a_run(template, factors[0]), [a_run(template, factor) for factor in factors[1:]])
        over += next(change for change in found if change.metric == "tpot").is_over
    assert 0.02 <= over / trials <= 0.085  # 0.05 within three standard errors


def test_a_slowdown_beside_others_is_told(template: RecordTable) -> None:
    beside = [a_run(template, factor) for factor in (1.099, 1.10, 1.101)]
    found = {change.metric: change for change in interference(a_run(template, 1.0), beside)}
    assert found["tpot"].relative == pytest.approx(0.10, abs=0.001)
    assert found["ttft"].relative == pytest.approx(0.10, abs=0.001)
    assert found["tpot"].is_over
    assert found["tpot"].runs == (1, 3)
    assert found["tpot"].requests == COUNT


def test_one_run_beside_tells_the_change_and_no_floor(template: RecordTable) -> None:
    (change, *_) = interference(a_run(template, 1.0), [a_run(template, 1.2)])
    assert change.relative == pytest.approx(0.2, abs=0.001)
    assert change.floor is None
    assert not change.is_over


def test_a_slower_gpu_is_told_and_equal_ones_are_not(template: RecordTable) -> None:
    quick, slow = [a_run(template, f) for f in (1.0, 1.002, 0.998)], [a_run(template, f) for f in (1.05, 1.049, 1.051)]
    found = {(change.metric, change.second): change for change in placement({"GPU 0": quick, "GPU 1": slow})}
    assert found["tpot", "GPU 1"].is_over
    assert found["tpot", "GPU 1"].relative == pytest.approx(0.05, abs=0.002)
    equal = placement({"GPU 0": quick, "GPU 1": [a_run(template, f) for f in (1.001, 0.999, 1.0)]})
    assert not any(change.is_over for change in equal)
    assert placement({"GPU 0": quick}) == []


def test_of_equal_gpus_one_stands_out_as_often_as_the_level_says_however_many_they_are(template: RecordTable) -> None:
    rng = np.random.default_rng(5)
    trials, over = 300, 0
    for _ in range(trials):
        groups = {f"GPU {n}": [a_run(template, f) for f in np.exp(rng.normal(0, 0.02, 3))] for n in range(4)}
        over += any(change.is_over for change in placement(groups) if change.metric == "tpot")
    assert over / trials <= 0.08  # 0.05 at most, and three standard errors


def test_only_requests_that_all_runs_answered_count(template: RecordTable) -> None:
    fewer = a_run(template, 1.0).take(np.arange(10))
    (change, *_) = interference(fewer, [a_run(template, 1.0), a_run(template, 1.0)])
    assert change.requests == 10
    assert interference(fewer, [a_run(template, 1.0).take(np.arange(20, 30))]) == []
