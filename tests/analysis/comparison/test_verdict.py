"""Verdicts: only where the intervals allow them, and about as many false ones as the level says."""

import numpy as np
import pytest

from kvload.analysis import gates
from kvload.analysis.comparison.compare import Comparison, compare_loaded
from kvload.analysis.comparison.verdict import decide, more_needed
from kvload.analysis.records.table import RecordTable
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from tests.analysis.arms_in_memory import answered, loaded, with_answers


def estimate(value: float, half: float, n: int = 100) -> Estimate:
    return Estimate(estimate=value, low=value - half, high=value + half, method="test", n=n)


@pytest.mark.parametrize(
    ("change", "beyond", "noise", "outcome"),
    [
        (estimate(0.10, 0.05), None, None, "higher"),
        (estimate(-0.10, 0.05), None, None, "lower"),
        (estimate(0.005, 0.01), None, None, "same"),
        (estimate(0.05, 0.10), None, None, "undecided"),
        (estimate(0.10, 0.05), estimate(0.09, 0.05), estimate(0.01, 0.02), "higher"),
        (estimate(0.10, 0.05), estimate(0.03, 0.05), estimate(0.07, 0.05), "undecided"),  # the floor explains it
        (estimate(0.10, 0.05), estimate(0.25, 0.05), estimate(-0.15, 0.05), "undecided"),  # the floor moved further
        (estimate(0.05, 0.01), estimate(0.005, 0.01), estimate(0.045, 0.01), "same"),
    ],
)
def test_decisions(change: Estimate, beyond: Estimate | None, noise: Estimate | None, outcome: str) -> None:
    assert decide(change, beyond=beyond, noise=noise).outcome == outcome


def test_nothing_measured_is_no_decision() -> None:
    assert decide(Estimate(estimate=None, method="none", n=0)).outcome == "unmeasured"


def test_the_number_of_further_requests_is_the_one_that_decides() -> None:
    change = estimate(0.05, 0.10, n=100)
    needed = more_needed(change)
    assert needed == 300  # half the interval needs four times the requests
    assert more_needed(estimate(0.0, 0.04, n=100)) == 300  # to show that it lies within 2 %
    assert more_needed(estimate(0.1, 0.05)) is None


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> RecordTable:
    return answered(tmp_path_factory.mktemp("table"), 400)


def three_arms(template: RecordTable, seed: int, count: int, inflate: float, speed: float) -> Comparison:
    table = template.take(np.arange(count))
    rng = np.random.default_rng([5, seed])
    typical = rng.lognormal(5, 0.6, count)

    def arm(name: str, grow: float = 1.0, fast: float = 1.0, **role: bool):  # type: ignore[no-untyped-def]
        noisy = typical * grow * np.where(rng.random(count) < 0.2, rng.lognormal(0, 0.2, count), 1.0)
        tpot = 0.01 * fast * rng.lognormal(0, 0.05, count)
        return loaded(name, with_answers(table, noisy, tpot, rng.gamma(4, 0.025, count)), **role)

    arms = [arm("none", baseline=True), arm("none (again)", floor=True), arm("method", inflate, speed)]
    return compare_loaded(arms)


def test_equal_arms_bring_no_finding_in_about_19_of_20_runs(
    template: RecordTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "_RESAMPLE_UP_TO", 10)  # the analytic intervals, as thousands of requests would get
    simulations, found = 150, {"capacity": 0, "latency": 0, "lengths": 0}
    for seed in range(simulations):
        for finding in three_arms(template, seed, 80, 1.0, 1.0).verdicts["method"].findings:
            if finding.topic in found:
                found[finding.topic] += finding.outcome in {"better", "worse"}
    for topic, number in found.items():
        assert number / simulations < 0.05 + 3 * (0.05 * 0.95 / simulations) ** 0.5, topic


def test_a_real_effect_is_found_and_put_in_words(template: RecordTable) -> None:
    comparison = three_arms(template, 1, 400, 1.3, 0.6)
    verdict = comparison.verdicts["method"]
    outcomes = {finding.topic: finding.outcome for finding in verdict.findings}
    assert outcomes["latency"] == "better"
    assert outcomes["lengths"] == "worse"
    eaten = comparison.comparisons[1].decomposition.eaten
    assert eaten is not None
    assert eaten.low is not None
    assert eaten.high is not None
    assert eaten.low < 0.3 * 0.6 / 0.4 < eaten.high  # 30 % more tokens at 60 % of the time, out of 40 % gained
    assert "of the speed-up" in verdict.headline


def test_gates_see_the_arms(template: RecordTable) -> None:
    values = gates.comparison_values(three_arms(template, 2, 200, 1.3, 1.0))
    assert list(values) == ["method"]
    assert gates.evaluate([gates.parse("inflation.mean>1.05")], values)[0].startswith("inflation.mean>1.05: ")
    assert gates.evaluate([gates.parse("method:inflation.mean>1.5")], values) == []
