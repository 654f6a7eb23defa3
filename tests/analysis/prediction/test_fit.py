"""Steps rebuilt from a run's records and the model fitted to them, against a simulated server whose costs are known."""

from pathlib import Path

import numpy as np
import pytest

from kvload.analysis.prediction.drift import deviation, draw
from kvload.analysis.prediction.errors import HeldOut, leave_out, ratio_skill
from kvload.analysis.prediction.fit import Part, fit, fit_together
from kvload.analysis.prediction.steps import Steps, habits, lone_first_tokens, rebuild
from kvload.analysis.prediction.timing import LAUNCH, Host, paths, seconds
from kvload.analysis.records.loading import load
from kvload.analysis.records.table import Floats, RecordTable
from kvload.errors import UsageError
from kvload.experiment.prediction.run_folder import write_run
from kvload.rundir import RecordWriter, RunDir
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import FEATURES, Spread, StepModel

TRUE = np.array([6e-3, 4e-3, 8e-5, 1.5e-8, 4e-5, 2e-9])
LAUNCHED = np.array([6e-3, 1e-3, 3e-5, 4e-8, 2e-5, 2e-9, 30e-3])


def steps_of(rng: np.random.Generator, count: int, noise: float = 0.0) -> Steps:
    decodes = rng.integers(1, 64, count).astype(float)
    context = decodes * rng.integers(100, 8000, count)
    prompt = np.where(rng.random(count) < 0.3, rng.integers(10, 2000, count), 0).astype(float)
    beside = (prompt > 0).astype(float)
    work = np.stack([np.ones(count), beside, decodes, context, prompt, prompt * (prompt + 1) / 2], axis=1)
    return Steps.single(work, work @ TRUE * np.exp(rng.normal(0, noise, count)))


def test_exact_steps_give_the_coefficients_back() -> None:
    found = fit(steps_of(np.random.default_rng(0), 400))
    assert found.coefficients == pytest.approx([*TRUE, 0], rel=1e-6)


def steps_at(rng: np.random.Generator, costs: Floats, count: int = 300, noise: float = 0.1) -> Steps:
    """Steps whose prompts have two lengths alone, so that a token's cost and its attention's are hardly told apart."""
    steps = steps_of(rng, count)
    work = steps.work.copy()
    work[:, 4] = work[:, 1] * rng.choice([1000.0, 1400.0], count)
    work[:, 5] = work[:, 4] * (work[:, 4] + 1) / 2
    return Steps.single(work, work @ costs * np.exp(rng.normal(0, noise, count)))


def test_methods_share_what_prompts_cost_unless_their_steps_speak_against_it() -> None:
    rng = np.random.default_rng(11)
    costs = [TRUE * np.array([1, 1, scale, scale, 1, 1]) for scale in (1.0, 0.6, 0.3)]
    long = np.array([[1.0, 1, 0, 0, 8000, 8000 * 8001 / 2]])
    apart, together = [], []
    for _ in range(6):
        parts = [Part(steps_at(rng, each), Host()) for each in costs]
        apart += [float(fit(part.steps).coefficients[:6] @ long[0]) for part in parts]
        found = fit_together(parts, draws=4)
        assert len({tuple(each.coefficients[4:6]) for each in found}) == 1
        assert all(each.draws.shape == (4, 7) for each in found)
        together += [float(each.coefficients[:6] @ long[0]) for each in found]
    true_s = float(TRUE @ long[0])
    assert np.sqrt(np.mean((np.array(together) - true_s) ** 2)) < np.sqrt(np.mean((np.array(apart) - true_s) ** 2))
    slow = TRUE * np.array([1, 1, 1, 1, 3, 3])
    other = Part(steps_at(rng, slow), Host())
    first, second, odd = fit_together([*parts[:2], other])
    assert (first.coefficients[4:6] == second.coefficients[4:6]).all()
    assert odd.seconds(other.steps) == pytest.approx(other.steps.work @ slow, rel=0.1)


def test_stalls_do_not_bend_the_fit() -> None:
    rng = np.random.default_rng(1)
    steps = steps_of(rng, 2000, 0.02)
    seconds = np.where(rng.random(2000) < 0.01, steps.seconds * 20, steps.seconds)
    predicted = fit(Steps.single(steps.work, seconds)).seconds(steps)
    # Their mean alone would be 19 % too long.
    assert np.median(np.abs(predicted / (steps.work @ TRUE) - 1)) < 0.05


def noisy_in_pieces(rng: np.random.Generator, count: int, pieces: int, noise: float) -> Steps:
    """Steps whose errors are the same throughout a piece of the time, as those of a busy host are."""
    steps = steps_of(rng, count)
    shared = np.repeat(rng.normal(0, noise, pieces), -(-count // pieces))[:count]
    return Steps.single(steps.work, steps.seconds * np.exp(shared + rng.normal(0, noise / 3, count)))


def test_draws_hold_the_truth_where_errors_come_in_pieces_and_far_beyond_what_was_measured() -> None:
    rng = np.random.default_rng(2)
    work = np.array([[1.0, 0, 200, 200 * 9000, 0, 0], [1, 0, 40, 40 * 1000, 0, 0], [1, 1, 8, 8000, 6000, 1.8e7]])
    true_s = work @ TRUE
    held = np.zeros(len(work))
    times = 40
    for _ in range(times):
        found = fit(noisy_in_pieces(rng, 300, 20, 0.06), draws=24)
        drawn_s = found.draws[:, :6] @ work.T
        low, high = np.quantile(drawn_s, [0.1, 0.9], axis=0)
        held += (low <= true_s) & (true_s <= high)
    # Twenty pieces are few: intervals from them are somewhat narrow. Independent errors would hold about 25 %.
    assert (held / times > 0.45).all()
    assert (held / times < 0.97).all()


def test_draws_spread_both_parts_and_stay_above_nothing() -> None:
    rng = np.random.default_rng(3)
    found = fit(steps_of(rng, 300, 0.05), draws=8)
    drawn = np.array([draw(found.coefficients, found.draws, Spread(), rng) for _ in range(300)])
    assert (drawn >= 0).all()
    sure = np.array([draw(found.coefficients, found.draws[:0], Spread(decode=0.0), rng) for _ in range(20)])
    assert np.ptp(sure[:, 0]) == 0
    assert np.ptp(sure[:, 4]) > 0


def test_the_corner_is_foretold_from_the_near_steps() -> None:
    steps = steps_of(np.random.default_rng(3), 500, 0.02)
    errors = leave_out(steps, np.digitize(steps.work[:, 2], [8, 16, 32]).astype(float))
    assert HeldOut.of(errors).mape < 0.03


def test_a_launch_is_found_only_where_there_is_one() -> None:
    rng = np.random.default_rng(5)
    plain = steps_of(rng, 2000)
    work = plain.work @ np.array([*TRUE[:1], 0, *TRUE[2:]])
    true_s = np.maximum(work, 40e-3 * plain.work[:, 1]) + TRUE[1] * plain.work[:, 1]
    found = fit(Steps.single(plain.work, true_s * np.exp(rng.normal(0, 0.05, 2000))))
    assert found.coefficients[LAUNCH] == pytest.approx(40e-3, rel=0.1)
    assert np.abs(found.seconds(plain) / true_s - 1).mean() < 0.02
    assert fit(steps_of(rng, 2000, 0.05)).coefficients[LAUNCH] == 0


def test_a_slower_run_is_told_by_its_parts() -> None:
    steps = steps_of(np.random.default_rng(6), 500, 0.03)
    expected = np.array([*TRUE, 40e-3])
    factors = np.array([1.1, 0.7, 1.1, 1.1, 0.7, 0.7, 1.3])
    slower = Steps(steps.each, seconds(steps, expected * factors))
    told = deviation(expected, Host(), slower)
    assert told.decode == pytest.approx(np.log(1.1), abs=1e-6)
    assert told.prompt == pytest.approx(np.log(0.7), abs=1e-6)
    assert told.launch == pytest.approx(np.log(1.3), abs=1e-6)
    reading = Steps.single(np.diag([1.0, 0, 0, 0, 0, 0])[[0] * 8], np.full(8, TRUE[0]))
    assert deviation(expected, Host(), reading).prompt is None
    assert deviation(expected, Host(), reading).launch is None


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


def simulated_run(
    folder: Path,
    pool_tokens: int = 200_000,
    ahead_steps: int = 0,
    costs: tuple[float, ...] = (*TRUE.tolist(), 0.0),
    jitter: float = 0.0,
) -> tuple[RecordTable, StepModel]:
    """A run of 300 requests, 30 of them alone, and the model of the server that served it."""
    rng = np.random.default_rng(4)
    count = 300
    model = StepModel(
        method="none",
        coefficients=costs,  # type: ignore[arg-type]
        draws=[],
        hull=dict.fromkeys(FEATURES, (0.0, 1e12)),
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        overhead_s=0.012,
        max_sequences=64,
        chunk_tokens=4096,
        pool_tokens=pool_tokens,
        ahead_steps=ahead_steps,
        launch_jitter=jitter,
    )
    gaps = np.where(np.arange(count) < 30, 5.0, rng.exponential(0.15, count))
    served_load = Load(np.cumsum(gaps), rng.integers(20, 3000, count), rng.integers(20, 200, count))
    return load(write_run(folder, serve(served_load, model, seed=1), served_load, model, slo={}, seed=0)), model


def test_a_server_that_schedules_early_is_recognised(tmp_path: Path) -> None:
    for ahead in (0, 1, 2):
        table, _ = simulated_run(tmp_path / f"{ahead}", ahead_steps=ahead)
        assert habits(table, chunk_tokens=4096).ahead_steps == ahead


def test_launches_are_seen_and_the_rest_of_a_step_found_beside_them(tmp_path: Path) -> None:
    table, _ = simulated_run(tmp_path / "run", ahead_steps=1, costs=tuple(LAUNCHED.tolist()), jitter=0.25)
    shown = habits(table, chunk_tokens=4096)
    assert shown.ahead_steps == 1
    host = Host.seen(1, shown.launches_s)
    assert host.launch_s == pytest.approx(30e-3, rel=0.06)
    assert host.jitter == pytest.approx(0.25, rel=0.35)
    steps = rebuild(table, chunk_tokens=4096)
    found = fit(steps, host)
    assert found.coefficients[4] == pytest.approx(LAUNCHED[4], rel=0.15)
    assert found.seconds(steps).sum() == pytest.approx(steps.seconds.sum(), rel=0.01)
    # The simulator's own launches vary, so that single stretches do.
    assert np.abs(found.errors).mean() < 0.08


def test_the_longest_path_of_steps_is_what_the_simulator_takes() -> None:
    rng = np.random.default_rng(8)
    model = StepModel(
        method="none",
        coefficients=tuple(LAUNCHED.tolist()),
        draws=[],
        hull={},
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        pool_tokens=1_000_000,
        chunk_tokens=8192,
        ahead_steps=1,
    )
    # One long answer decodes throughout; prompts of answers of one token come beside it, alone and in a row.
    arrivals = np.array([0.0, *np.sort(rng.uniform(0.3, 3.0, 30))])
    load_ = Load(arrivals, np.array([50, *rng.integers(20, 3000, 30)]), np.array([500, *[1] * 30]))
    served = serve(load_, model)
    log = served.replicas[0].log
    rows = []
    for place, stretch in enumerate(log[1:], 1):
        for step in range(stretch.steps):
            fresh = [r for r in served.requests[1:] if r.since is None and r.spans and r.spans[0][0] == place]
            tokens = float(sum(r.prompt_tokens for r in fresh)) if step == 0 else 0.0
            work = float(sum(r.prompt_tokens * (r.prompt_tokens + 1) / 2 for r in fresh)) if step == 0 else 0.0
            rows.append([1.0, float(tokens > 0), stretch.decodes, stretch.context + step, tokens, work])
    steps = Steps(np.array(rows)[None], np.array([log[-1].end_s(log[-1].steps) - log[0].end_s(1)]))
    assert seconds(steps, LAUNCHED, Host(ahead_steps=1))[0] == pytest.approx(steps.seconds[0], rel=1e-3)
    assert seconds(steps, LAUNCHED, Host())[0] > 1.01 * steps.seconds[0]
    assert paths(steps, LAUNCHED, Host(ahead_steps=1))[0, LAUNCH] >= 1


def gather_chunks(run: RunDir, out: Path, from_s: float) -> RecordTable:
    """The run as a front shows it that hands every second step's tokens out with those of the next, without a count."""
    records = [(record, chunks.copy()) for record, chunks in run.records()]
    begun_us = [round((record.t_send_s or 0.0) * 1e6) for record, _ in records]
    moments = [start + chunks["us"].astype(np.int64) for start, (_, chunks) in zip(begun_us, records, strict=True)]
    steps = np.unique(np.concatenate(moments))
    dropped = steps[steps > from_s * 1e6][::2]
    gathered = RunDir.create(out, run.manifest())
    with RecordWriter(gathered.shard("gathered")) as writer:
        for (record, chunks), times in zip(records, moments, strict=True):
            kept = ~np.isin(times, dropped)
            kept[[0, -1]] = True
            writer.append(record, chunks[kept])
    return load(gathered)


def test_steps_whose_tokens_were_handed_out_as_one_chunk_are_counted(tmp_path: Path) -> None:
    table, _ = simulated_run(tmp_path / "run")
    whole = fit(rebuild(table, chunk_tokens=4096)).coefficients
    gathered = gather_chunks(RunDir.open(tmp_path / "run"), tmp_path / "gathered", from_s=170.0)
    assert gathered.chunk_count.sum() < 0.9 * table.chunk_count.sum()
    found = fit(rebuild(gathered, chunk_tokens=4096))
    assert found.coefficients[0] == pytest.approx(whole[0], rel=0.05)


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
