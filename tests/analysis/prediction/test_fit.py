"""Steps rebuilt from a run's records and the model fitted to them, against a simulated server whose costs are known."""

from pathlib import Path

import numpy as np
import pytest

from kvload.analysis.prediction.errors import HeldOut, leave_out, ratio_skill
from kvload.analysis.prediction.fit import deviation, draw, fit
from kvload.analysis.prediction.steps import Steps, habits, lone_first_tokens, rebuild
from kvload.analysis.records.table import RecordTable, load
from kvload.errors import UsageError
from kvload.experiment.prediction.run_folder import write_run
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import FEATURES, Spread, StepModel

TRUE = np.array([6e-3, 4e-3, 8e-5, 1.5e-8, 4e-5, 2e-9])


def steps_of(rng: np.random.Generator, count: int, noise: float = 0.0) -> Steps:
    decodes = rng.integers(1, 64, count).astype(float)
    context = decodes * rng.integers(100, 8000, count)
    prompt = np.where(rng.random(count) < 0.3, rng.integers(10, 2000, count), 0).astype(float)
    beside = (prompt > 0).astype(float)
    work = np.stack([np.ones(count), beside, decodes, context, prompt, prompt * (prompt + 1) / 2], axis=1)
    return Steps.single(work, work @ TRUE * np.exp(rng.normal(0, noise, count)))


def test_exact_steps_give_the_coefficients_back() -> None:
    found = fit(steps_of(np.random.default_rng(0), 400))
    assert found.coefficients == pytest.approx(TRUE, rel=1e-6)


def test_stalls_do_not_bend_the_fit() -> None:
    rng = np.random.default_rng(1)
    steps = steps_of(rng, 2000, 0.02)
    seconds = np.where(rng.random(2000) < 0.01, steps.seconds * 20, steps.seconds)
    predicted = fit(Steps.single(steps.work, seconds)).seconds(steps)
    # Their mean alone would be 19 % too long.
    assert np.median(np.abs(predicted / (steps.work @ TRUE) - 1)) < 0.05


def test_the_covariance_says_how_far_coefficients_scatter() -> None:
    rng = np.random.default_rng(2)
    fits = [fit(steps_of(rng, 300, 0.05)) for _ in range(200)]
    seconds = np.array([f.coefficients for f in fits])
    said = np.sqrt(np.mean([np.diag(f.covariance) for f in fits], axis=0))
    scatter = seconds.std(axis=0)
    assert (said[:5] > 0.6 * scatter[:5]).all()
    assert (said[:5] < 1.8 * scatter[:5]).all()
    drawn = np.array([draw(fits[0].coefficients, fits[0].covariance, Spread(), rng) for _ in range(300)])
    assert (drawn >= 0).all()


def test_the_corner_is_foretold_from_the_near_steps() -> None:
    steps = steps_of(np.random.default_rng(3), 500, 0.02)
    errors = leave_out(steps, np.digitize(steps.work[:, 2], [8, 16, 32]).astype(float))
    assert HeldOut.of(errors).mape < 0.03


def test_prompt_tokens_that_cost_nothing_are_found_only_where_there_are_any() -> None:
    rng = np.random.default_rng(5)
    steps = steps_of(rng, 2000)
    floor = Steps.single(steps.work, steps.beyond(1024) @ TRUE * np.exp(rng.normal(0, 0.05, 2000)))
    found = fit(floor)
    assert 768 <= found.free_prompt_tokens <= 1280
    assert np.abs(found.seconds(floor) / (steps.beyond(1024) @ TRUE) - 1).mean() < 0.02
    assert fit(steps_of(rng, 2000, 0.05)).free_prompt_tokens == 0


def test_a_slower_run_is_told_by_its_parts() -> None:
    steps = steps_of(np.random.default_rng(6), 500, 0.03)
    factors = np.array([1.1, 0.7, 1.1, 1.1, 0.7, 0.7])
    slower = Steps.single(steps.work, steps.work @ (TRUE * factors))
    told = deviation(TRUE, 0, slower)
    assert told.decode == pytest.approx(np.log(1.1), abs=1e-6)
    assert told.prompt == pytest.approx(np.log(0.7), abs=1e-6)
    reading = Steps.single(np.diag([1.0, 0, 0, 0, 0, 0])[[0] * 8], np.full(8, TRUE[0]))
    assert deviation(TRUE, 0, reading).prompt is None


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="too few"):
        fit(steps_of(np.random.default_rng(0), 5))


def test_ratio_skill_is_none_of_the_methods_own_error() -> None:
    true = np.array([0.5, 0.6, 2.0, 1.0])
    assert ratio_skill(true, true).skill == 1
    nothing = ratio_skill(true, np.ones(4))
    assert nothing.skill == 0
    assert nothing.sign_right == 0
    assert nothing.moving == 3
    assert ratio_skill(np.ones(3), np.ones(3)).skill is None


def simulated_run(folder: Path, pool_tokens: int = 200_000, ahead_steps: int = 0) -> tuple[RecordTable, StepModel]:
    """A run of 300 requests, 30 of them alone, and the model of the server that served it."""
    rng = np.random.default_rng(4)
    count = 300
    model = StepModel(
        method="none",
        coefficients=tuple(TRUE.tolist()),
        covariance=[[0.0] * 6] * 6,
        hull=dict.fromkeys(FEATURES, (0.0, 1e12)),
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        overhead_s=0.012,
        max_sequences=64,
        chunk_tokens=4096,
        pool_tokens=pool_tokens,
        ahead_steps=ahead_steps,
    )
    gaps = np.where(np.arange(count) < 30, 5.0, rng.exponential(0.15, count))
    served_load = Load(np.cumsum(gaps), rng.integers(20, 3000, count), rng.integers(20, 200, count))
    return load(write_run(folder, serve(served_load, model), served_load, model, slo={}, seed=0)), model


def test_a_server_that_schedules_early_is_recognised(tmp_path: Path) -> None:
    for ahead in (0, 1, 2):
        table, _ = simulated_run(tmp_path / f"{ahead}", ahead_steps=ahead)
        assert habits(table, chunk_tokens=4096).ahead_steps == ahead


def test_steps_in_which_lost_requests_are_read_again_are_no_slow_decoding(tmp_path: Path) -> None:
    table, _ = simulated_run(tmp_path / "tight", pool_tokens=9_000)
    steps = rebuild(table, chunk_tokens=4096)
    assert np.abs(steps.seconds / (steps.work @ TRUE) - 1).mean() < 0.02


def test_a_run_gives_back_the_costs_of_the_server_it_was_made_against(tmp_path: Path) -> None:
    table, _ = simulated_run(tmp_path / "run")
    assert table.ok.all()
    steps = rebuild(table, chunk_tokens=4096)
    found = fit(steps)
    predicted = found.seconds(steps) / (steps.work @ TRUE) - 1
    assert np.abs(predicted).mean() < 0.02
    assert found.coefficients[:2].sum() == pytest.approx(TRUE[:2].sum(), rel=0.12)
    assert found.coefficients[4] == pytest.approx(TRUE[4], rel=0.12)
    assert habits(table, chunk_tokens=4096).ahead_steps == 0
    prompts, ttft_s = lone_first_tokens(table)
    assert len(prompts) >= 20
    one, none = np.ones_like(prompts), np.zeros_like(prompts)
    work = np.stack([one, one, none, none, prompts, prompts * (prompts + 1) / 2], axis=1)
    assert np.median(ttft_s - work @ TRUE) == pytest.approx(0.012, abs=1e-3)
