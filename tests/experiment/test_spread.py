"""How far runs may lie from a model, against runs whose deviations are known: each is told once, and noise is none."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvload.analysis.prediction.drift import deviation, leveled
from kvload.analysis.prediction.fit import fit
from kvload.analysis.prediction.steps import Steps
from kvload.analysis.prediction.timing import ALONE, seconds
from kvload.experiment.prediction.fitting import fit_models
from kvload.experiment.prediction.run_folder import write_run
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import FEATURES, Spread, StepModel

TRUE = np.array([5e-3, 1e-3, 1e-5, 4e-8, 2e-5, 1e-9, 0.0])


def server(launch: float = 1.0) -> StepModel:
    return StepModel(
        method="none",
        engine="vllm",
        coefficients=(5e-3, 1e-3, 1e-5, 4e-8, 1.8e-5, 1e-9, launch * 28e-3),
        draws=[],
        hull={},
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        overhead_s=0.02,
        pool_tokens=131_000,
        chunk_tokens=8192,
        ahead_steps=1,
        launch_jitter=0.25,
    )


def spread_of_runs(folder: Path, launches: list[float]) -> Spread:
    """Of runs whose launches are so many times as long as usual, and which differ in nothing else but chance."""
    made = []
    for number, launch in enumerate(launches):
        rng = np.random.default_rng([7, number])
        load = Load(np.cumsum(rng.exponential(1 / 8, 110)), rng.integers(50, 2000, 110), rng.integers(20, 200, 110))
        one = server(launch)
        made.append(folder / str(number))
        write_run(made[-1], serve(load, one, seed=number), load, one, slo={}, seed=0)
    return fit_models(made).models[0].spread


def test_slow_launches_are_slow_launches_and_no_slow_front_as_well(tmp_path: Path) -> None:
    found = spread_of_runs(tmp_path, [0.75, 1.0, 1.3])
    assert 0.15 < found.launch < 0.5
    assert found.decode < 0.01
    # First tokens waited up to 8 ms longer for their step: that is told by the launch.
    assert found.overhead_s < 2e-3
    # Every launch is drawn anew in a simulation, so that how they fell is no error of it.
    assert found.ttft < 0.06
    assert found.tpot < 0.02


def steps_of(rng: np.random.Generator, count: int, noise: float) -> Steps:
    """Single steps, those with prompts a third; errors that are alike in pieces of ten."""
    prompts = (rng.random(count) < 0.33) * rng.integers(50, 2000, count)
    decodes = rng.integers(1, 60, count)
    columns = [np.ones(count), prompts > 0, decodes, decodes * rng.integers(100, 3000, count), prompts, prompts**2 / 2]
    work = np.stack([np.asarray(column, dtype=float) for column in columns], axis=1)
    errors = np.repeat(np.exp(rng.normal(0, noise, -(-count // 10))), 10)[:count]
    return Steps.single(work, work @ TRUE[: len(FEATURES)] * errors)


def test_the_noise_of_a_deviation_is_what_other_stretches_make_of_it() -> None:
    rng = np.random.default_rng(1)
    told = [deviation(TRUE, ALONE, steps_of(rng, 240, 0.1)) for _ in range(100)]
    for part, name in enumerate(("decode", "prompt")):
        values = np.array([getattr(each, name) for each in told])
        noise = np.array([each.noise[part] for each in told])
        assert values.mean() == pytest.approx(0.0, abs=0.03)
        # Of 24 pieces, somewhat too little is seen.
        assert 0.7 < np.sqrt(noise.mean()) / values.std() < 1.15
    assert told[0].launch is None
    assert told[0].noise[2] == 0


def test_drawn_coefficients_share_out_what_the_fitted_ones_take_altogether() -> None:
    steps = steps_of(np.random.default_rng(2), 300, 0.1)
    found = fit(steps, draws=12)
    draws = leveled(found.draws, found.coefficients, found.host, steps)
    for drawn in draws:
        again = deviation(found.coefficients, ALONE, Steps(steps.each, seconds(steps, drawn)))
        assert again.decode == pytest.approx(0.0, abs=1e-4)
        assert again.prompt == pytest.approx(0.0, abs=1e-4)
    # They differ, but in the level.
    assert np.ptp(draws[:, 4] / found.coefficients[4]) > 0.01
    none = leveled(np.zeros((0, 7)), found.coefficients, found.host, steps)
    assert none.shape == (0, 7)


def test_a_model_of_one_run_takes_what_was_seen_elsewhere(tmp_path: Path) -> None:
    assert spread_of_runs(tmp_path, [1.0]) == Spread()
    assert msgspec.structs.replace(Spread(), runs=3) != Spread()
