"""Verdicts: only where the runs allow them, and nothing called the same that was not seen."""

from pathlib import Path

import numpy as np
import pytest

from kvload.analysis import gates
from kvload.analysis.comparison.compare import compare, compare_loaded
from kvload.analysis.comparison.decision import attainment_margin, decide, quality_margin
from kvload.analysis.comparison.model import Comparison, Finding, Topic
from kvload.analysis.records.pairs import ArmRuns
from kvload.analysis.records.table import RecordTable
from kvload.analysis.statistics.layout import effects
from kvload.analysis.statistics.run_figures import RunFigures
from kvload.records import RunManifest
from tests.analysis.arms_in_memory import answered, loaded, with_answers
from tests.analysis.synthetic import arm


def figures(*values: float, se: float = 1e-9) -> RunFigures:
    return RunFigures(by_repeat=dict(enumerate(values)), request_se=se, requests=100)


@pytest.mark.parametrize(
    ("again", "method", "se", "outcome"),
    [
        ((0.001, -0.001, 0.0), (0.10, 0.101, 0.099), 1e-9, "higher"),
        ((0.001, -0.001, 0.0), (-0.10, -0.101, -0.099), 1e-9, "lower"),
        ((0.001, -0.001, 0.0), (0.005, 0.006, 0.004), 1e-9, "same"),  # surely there, and surely small
        ((0.05, -0.05, 0.02), (0.05, 0.08, 0.02), 1e-9, "undecided"),
        ((0.001, -0.001, 0.0), (0.10, 0.101, 0.099), 0.08, "undecided"),  # requests differ too much
        ((0.01,), (0.05,), 1e-9, "undecided"),  # one run each: five times the A/A difference is not enough
        ((0.001,), (0.05,), 1e-9, "higher"),
    ],
)
def test_decisions(again: tuple[float, ...], method: tuple[float, ...], se: float, outcome: str) -> None:
    found = effects({"again": figures(*again), "m": figures(*method, se=se)}, floor="again")
    assert decide(found["m"], margin=0.02) == outcome


def test_nothing_measured_is_no_decision() -> None:
    assert decide(None, margin=0.02) == "unmeasured"


def test_margins_are_relative_to_what_can_be_lost() -> None:
    assert attainment_margin(0.5) == 0.02
    assert attainment_margin(0.995) == pytest.approx(0.0005)  # 8 misses instead of 3 are a change
    assert quality_margin(0.03) == pytest.approx(0.0006)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> RecordTable:
    return answered(tmp_path_factory.mktemp("table"), 400)


def three_arms(
    template: RecordTable, seed: int, count: int, *, inflate: float = 1.0, speed: float = 1.0, repeats: int = 3
) -> Comparison:
    table = template.take(np.arange(count))
    rng = np.random.default_rng([5, seed])
    typical = rng.lognormal(5, 0.6, count)

    def made(name: str, grow: float = 1.0, fast: float = 1.0, **role: bool):  # type: ignore[no-untyped-def]
        tables = []
        for _ in range(repeats):
            noisy = typical * grow * np.where(rng.random(count) < 0.2, rng.lognormal(0, 0.2, count), 1.0)
            tpot = 0.01 * fast * rng.lognormal(0, 0.01) * rng.lognormal(0, 0.05, count)
            tables.append(with_answers(table, noisy, tpot, rng.gamma(4, 0.025, count)))
        return loaded(name, *tables, **role)

    return compare_loaded(
        [made("none", baseline=True), made("none (again)", floor=True), made("method", inflate, speed)]
    )


def finding(comparison: Comparison, topic: Topic) -> Finding:
    found = comparison.verdicts["method"].finding(topic)
    assert found is not None
    return found


def test_equal_arms_that_drift_bring_no_finding_in_about_19_of_20_comparisons(template: RecordTable) -> None:
    simulations, found = 60, {"latency": 0, "lengths": 0}
    for seed in range(simulations):
        comparison = three_arms(template, seed, 60)
        for topic in found:
            found[topic] += finding(comparison, topic).outcome in {"better", "worse"}  # type: ignore[arg-type]
    for topic, number in found.items():
        assert number / simulations < 0.05 + 3 * (0.05 * 0.95 / simulations) ** 0.5, topic


def test_a_real_effect_is_found_and_put_in_words(template: RecordTable) -> None:
    comparison = three_arms(template, 1, 400, inflate=1.3, speed=0.6)
    assert finding(comparison, "latency").outcome == "better"
    assert finding(comparison, "lengths").outcome == "worse"
    assert finding(comparison, "lengths").lead.startswith("answers are ")
    eaten = comparison.comparisons[1].decomposition.eaten
    assert eaten is not None
    assert eaten.low is not None
    assert eaten.high is not None
    assert eaten.low < 0.3 * 0.6 / 0.4 < eaten.high  # 30 % more tokens at 60 % of the time, out of 40 % gained
    assert any("of the speed-up" in sentence for sentence in finding(comparison, "latency").detail)


def test_every_verdict_states_what_it_rests_on(template: RecordTable) -> None:
    basis = finding(three_arms(template, 1, 100, speed=0.6), "latency").detail[0]
    for part in ("95 %", "3 runs each of 3 arms", "5 degrees of freedom", "p < 0.001", "count as none"):
        assert part in basis


def test_one_run_of_each_arm_says_so_and_gives_the_p_value(template: RecordTable) -> None:
    found = finding(three_arms(template, 2, 100, speed=0.97, repeats=1), "latency")
    assert found.outcome == "undecided"
    assert "11 times the A/A difference" in found.detail[0]
    assert "p = " in found.detail[0]
    assert found.advice is not None


def test_gates_see_the_arms(template: RecordTable) -> None:
    values = gates.comparison_values(three_arms(template, 2, 200, inflate=1.3))
    assert list(values) == ["method"]
    assert gates.evaluate([gates.parse("inflation.mean>1.05")], values)[0].startswith("inflation.mean>1.05: ")
    assert gates.evaluate([gates.parse("method:inflation.mean>1.5")], values) == []
    assert gates.evaluate([gates.parse("inflation.beyond_floor>0.2")], values) != []


def two_arms(folder: Path, base: list[int], other: list[int], **changes: object) -> Comparison:
    arms = []
    for name, lengths in (("base", base), ("again", base), ("method", other)):
        runs = tuple(
            arm(folder / f"{name}-{repeat}", lengths, seed=repeat, repeat=repeat, **changes)  # type: ignore[arg-type]
            for repeat in range(2)
        )
        arms.append(ArmRuns(name, runs, baseline=name == "base", floor=name == "again"))
    return compare(arms)


def test_lengths_that_were_all_cut_are_unmeasured(tmp_path: Path) -> None:
    found = finding(two_arms(tmp_path, [512] * 40, [512] * 40), "lengths")
    assert found.outcome == "unmeasured"
    assert "cut off under both" in found.lead
    assert found.advice == "raise --max-tokens beyond 512"


def test_lengths_with_cut_answers_are_never_the_same_and_longer_by_at_least(tmp_path: Path) -> None:
    base = [100 + i for i in range(37)] + [512] * 3
    found = finding(two_arms(tmp_path / "a", base, base), "lengths")
    assert found.outcome == "undecided"
    longer = finding(two_arms(tmp_path / "b", base, [min(2 * n, 512) for n in base]), "lengths")
    assert longer.outcome == "worse"
    assert longer.lead.startswith("answers are at least ")


def test_shorter_answers_are_no_praise_where_quality_is_unknown_and_no_bound_where_long_ones_were_cut(
    tmp_path: Path,
) -> None:
    base = [200] * 40
    found = finding(two_arms(tmp_path / "a", base, [100] * 40), "lengths")
    assert (found.outcome, found.lead) == ("differs", "answers are 50.0 % shorter")
    cut = finding(two_arms(tmp_path / "b", base, [50] * 38 + [512] * 2), "lengths")
    assert cut.outcome == "differs"
    assert cut.lead.startswith("answers are about ")


def test_service_under_a_load_that_strains_nobody_cannot_be_told(tmp_path: Path) -> None:
    easy = finding(two_arms(tmp_path / "a", [20] * 40, [20] * 40, slo={"e2e": 60.0}), "service")
    assert easy.outcome == "unmeasured"
    assert easy.lead.startswith("cannot tell: nearly everybody met the limits")
    hard = finding(two_arms(tmp_path / "b", [20] * 40, [20] * 40, slo={"ttft": 1e-6, "e2e": 60.0}), "service")
    assert hard.outcome == "unmeasured"
    assert hard.lead == "cannot tell: nobody met TTFT under either"


def test_goodput_counts_over_the_arrival_window_and_has_a_width(tmp_path: Path) -> None:
    comparison = two_arms(tmp_path, [20] * 40, [20] * 40, slo={"e2e": 60.0}, duration_s=99.0)
    goodput = comparison.comparisons[1].slo.goodput  # type: ignore[union-attr]
    assert (goodput.low, goodput.high) == (pytest.approx(-3 / 40), pytest.approx(3 / 40))
    # 40 arrivals, one every 50 ms, however long the last answer took.
    assert comparison.baseline.goodput_rps == pytest.approx(20.0)


def test_fewer_than_twenty_pairs_bring_no_verdict(tmp_path: Path) -> None:
    comparison = two_arms(tmp_path, [100] * 19, [200] * 19)
    found = finding(comparison, "lengths")
    assert found.outcome == "undecided"
    assert found.advice == "only 19 requests could be paired; 20 are the least"
    assert found.effect is not None
    assert found.effect.change.low is None


def test_a_drifting_machine_is_told_first(template: RecordTable) -> None:
    def made(name: str, speeds: list[float], **role: bool):  # type: ignore[no-untyped-def]
        table = template.take(np.arange(100))
        tables = [with_answers(table, np.full(100, 100.0), 0.01 * speed, np.full(100, 0.1)) for speed in speeds]
        found = loaded(name, *tables, **role)
        for run in found.runs.values():
            assert isinstance(run.manifest, RunManifest)
        return found

    comparison = compare_loaded(
        [made("none", [1.0, 1.2], baseline=True), made("again", [1.25, 1.0], floor=True), made("method", [1.1, 1.1])]
    )
    assert comparison.resolution is not None
    assert comparison.resolution.drifts
    assert 0.15 < comparison.resolution.noise < 0.3
    assert "two runs of the same server differed by" in comparison.resolution.sentence()
    alone = compare_loaded([made("none", [1.0], baseline=True), made("again", [1.01], floor=True)]).resolution
    assert alone is not None
    share = 0.01 * 0.01 * 99 / (0.1 + 0.01 * 99)  # of the time that is tokens
    assert alone.noise == pytest.approx(share, rel=0.01)
    assert alone.smallest == pytest.approx(11.0 * share, rel=0.06)
