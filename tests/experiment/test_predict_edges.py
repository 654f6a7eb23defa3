"""What predictions and plans say at the edges: damaged models, mixed runs, several servers, loads no server takes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kvload.balancing import Policy
from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.experiment.prediction.capacity import find_capacities
from kvload.experiment.prediction.check import check_runs
from kvload.experiment.prediction.fitting import fit_models
from kvload.experiment.prediction.forecast import Serving, figures, met, with_lengths
from kvload.experiment.prediction.loads import other_arrivals, read_loads
from kvload.experiment.prediction.outside import outside
from kvload.experiment.prediction.plan import Wanted, plan_servers
from kvload.experiment.prediction.run_folder import write_run
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import Spread, StepModels, read, write
from tests.experiment.test_predict import SLO, load_at, make_run, server

MODELS = StepModels(kvload_version="0", models=[server()])


def edited(path: Path, **changes: Any) -> Path:
    write(path, MODELS)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["models"][0] |= changes
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficients": [-1.0, 0, 0, 0, 0, 0, 0]},
        {"coefficients": [1e300, 0, 0, 0, 0, 0, 0]},
        {"draws": [[0.1, 0, 0, 0, 0, 0, -0.1]]},
        {"max_sequences": 0},
        {"chunk_tokens": 100},
        {"page_tokens": 0},
        {"pool_tokens": -5},
        {"pool_tokens": 10**13},
        {"ahead_steps": -1},
        {"kept_tokens": 0},
        {"overhead_s": -5.0},
        {"spread": {"decode": -1.0}},
        {"spread": {"ttft": 50.0}},
        {"launch_jitter": 100.0},
    ],
)
def test_a_model_that_no_server_can_be_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"model\.json"):
        read(edited(tmp_path / "model.json", **changes))


def test_a_file_of_no_models_of_two_of_a_name_or_of_a_newer_kvload_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    for models, said in (([], "no step models"), ([server(), server()], "two step models of 'none'")):
        write(path, StepModels(kvload_version="0", models=models))
        with pytest.raises(UsageError, match=said):
            read(path)
    write(path, msgspec.structs.replace(MODELS, format=99))
    with pytest.raises(UsageError, match="by a newer kvload"):
        read(path)


def test_steps_that_just_hold_every_request_are_steps(tmp_path: Path) -> None:
    just = read(edited(tmp_path / "model.json", chunk_tokens=256)).of("none")
    assert not np.isnan(serve(load_at(3.0, 20, 1), just).e2e_s).any()


def changed(folder: Path, **changes: Any) -> Path:
    """A run whose server says something else."""
    manifest = RunDir.open(folder).manifest()
    RunDir.open(folder).update_manifest(servers=[msgspec.structs.replace(manifest.server, **changes)])
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "NVIDIA H200"}, "device NVIDIA H200 here, NVIDIA H100"),
        ({"model": "other"}, "model other here, small"),
        ({"engine": "embedded"}, "engine embedded here, vllm"),
        ({"pool_tokens": 30_000}, "a cache of 30,000 tokens here, 60,000"),
        ({"tensor_parallel": 2}, "GPUs a layer 2 here, 1"),
    ],
)
def test_runs_of_unlike_servers_are_not_fitted_together(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    one = msgspec.structs.replace(server(), device="NVIDIA H100", model="small")
    folders = [make_run(tmp_path / str(seed), one, 3.0, seed) for seed in (1, 2)]
    changed(folders[1], **changes)
    with pytest.raises(UsageError, match=said):
        fit_models(folders)
    # What a check finds is said and not refused: it may be what is asked.
    notes = check_runs([folders[1]], fit_models([folders[0]]), SLO).notes
    assert any(said in note for note in notes[str(folders[1])])


def test_a_run_counts_once_wherever_it_lies(tmp_path: Path) -> None:
    import shutil

    folder = make_run(tmp_path / "run", server(), 3.0, 1)
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(UsageError, match="is the same run"):
        fit_models([folder, tmp_path / "copy"])
    models = fit_models([make_run(tmp_path / "other", server(), 4.0, 2)])
    with pytest.raises(UsageError, match="is the same run"):
        check_runs([folder, tmp_path / "copy"], models, SLO)


def spread_run(folder: Path, load: Load, replicas: int, policy: Policy) -> Path:
    write_run(folder, serve(load, server(), replicas=replicas, policy=policy), load, server(), slo=SLO, seed=0)
    return folder


def test_a_run_over_several_servers_is_fitted_and_held_server_by_server(tmp_path: Path) -> None:
    # Steps of two servers that are taken for one's are half as long and half as full.
    models = fit_models([spread_run(tmp_path / "fit", load_at(6.0, 300, 1), 2, "round-robin")])
    assert models.models[0].coefficients[0] == pytest.approx(6e-3, rel=0.05)
    assert models.models[0].spread.runs == 2
    checked = check_runs([spread_run(tmp_path / "at", load_at(8.0, 300, 2), 2, "least-loaded")], models, SLO)
    for cell in checked.cells:
        assert abs(cell.error) < 0.06, cell
    silent = spread_run(tmp_path / "silent", load_at(8.0, 60, 2), 1, "round-robin")
    manifest = RunDir.open(silent).manifest()
    RunDir.open(silent).update_manifest(servers=[manifest.server, manifest.server])
    with pytest.raises(UsageError, match="no record says which"):
        fit_models([silent])


def test_what_was_not_answered_is_left_out_on_both_sides_and_told(tmp_path: Path) -> None:
    load = load_at(3.0, 150, 2)
    load.prompt_tokens[::10] = 70_000
    checked = check_runs(
        [spread_run(tmp_path / "at", load, 1, "round-robin")],
        fit_models([make_run(tmp_path / "fit", server(), 3.0, 1)]),
        SLO,
    )
    (notes,) = checked.notes.values()
    assert notes == ["15 of 150 requests were not answered: left out"]
    (attainment,) = [cell for cell in checked.cells if cell.figure == "attainment"]
    assert attainment.measured > 0.95


def test_answers_of_one_token_have_no_cell_of_their_tpot(tmp_path: Path) -> None:
    models = fit_models([make_run(tmp_path / "fit", server(), 3.0, 1)])
    load = replace(load_at(3.0, 50, 2), output_tokens=np.ones(50, np.int64))
    cells = check_runs([spread_run(tmp_path / "at", load, 1, "round-robin")], models, SLO).cells
    assert {cell.figure for cell in cells} == {"ttft.p50", "ttft.p99", "e2e.mean", "attainment"}
    assert np.isfinite([cell.error for cell in cells]).all()


def test_limits_on_percentiles_of_a_run_are_no_limits_of_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(tmp_path / "fit", server(), 3.0, 1)
    file = tmp_path / "model.json"
    assert run(["predict", "fit", str(made), "-o", str(file)]) == 0
    for command in (["predict", str(made)], ["plan", str(made)], ["predict", str(made), "--rate", "auto"]):
        assert run([*command, "--model", str(file), "--slo", "p99_ttft=1s"]) == 2
        assert "ttft=1s, which 99 % of the requests" in capsys.readouterr().err
    other = make_run(tmp_path / "other", server(), 4.0, 2)
    RunDir.open(other).update_manifest(slo={"ttft": 0.5, "p99_tpot": 1e-6})
    assert run(["predict", "check", str(other), "--model", str(file)]) == 0
    assert "attainment" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "4", "--speed", "2"], "exclude each other"),
        (["--burstiness", "2"], "gaps of their own"),
        (["--rate", "inf"], "has no rate"),
        (["--rate", "0"], "not a rate above 0"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    file = tmp_path / "model.json"
    write(file, MODELS)
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"id": "a", "arrival": 0, "input_length": 9, "output_length": 2}\n' * 1, encoding="utf-8")
    assert run(["predict", str(trace), "--model", str(file), *options]) == 2
    assert said in capsys.readouterr().err


def test_goodput_counts_as_a_report_does_and_has_no_window_where_all_come_at_once(tmp_path: Path) -> None:
    even = Load(np.arange(50) / 4.0, np.full(50, 100), np.full(50, 5))
    assert figures(serve(even, server()), even, SLO)["goodput"] == pytest.approx(4.0)
    late = replace(even, arrival_s=even.arrival_s + 1000.0)
    served = serve(late, server())
    assert figures(served, late, SLO) == pytest.approx(figures(serve(even, server()), even, SLO))
    assert served.busy == pytest.approx(serve(even, server()).busy)
    trace = tmp_path / "t.jsonl"
    rows = [f'{{"id": "{i}", "arrival": 7.0, "input_length": 100, "output_length": 5}}\n' for i in range(9)]
    trace.write_text("".join(rows), encoding="utf-8")
    ((rate, once),) = read_loads(trace, rates=None).items()
    assert rate == float("inf")
    assert np.isnan(figures(serve(once, server()), once, SLO)["goodput"])


def test_requests_beyond_the_context_are_refused_and_longer_answers_end_there() -> None:
    load = Load(np.arange(3.0), np.array([100, 900, 1000]), np.array([50, 100, 50]))
    short = msgspec.structs.replace(server(), max_model_len=1000)
    assert [request.refused for request in serve(load, short).requests] == [False, False, True]
    longer = with_lengths(load, np.array([3.0]), 0, short.max_model_len)
    assert longer.output_tokens.tolist() == [150, 100, 50]
    assert with_lengths(load, np.array([3.0]), 0).output_tokens.tolist() == [150, 300, 150]


def test_prompts_that_are_longer_than_measured_ones_are_outside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fit_models([make_run(tmp_path / "fit", server(), 3.0, 1)]).of("none")
    inside, beyond = load_at(3.0, 60, 5), load_at(3.0, 60, 5)
    beyond.prompt_tokens[::6] = 25_000
    roomy = msgspec.structs.replace(model, pool_tokens=400_000)
    # Two long prompts in a step are rare, in what was measured as well.
    assert max(outside(serve(inside, roomy), roomy).values(), default=0.0) < 0.1
    assert outside(serve(beyond, roomy), roomy)["prompt_work"] > 0.2
    file = tmp_path / "model.json"
    write(file, StepModels(kvload_version="0", models=[roomy]))
    folder = tmp_path / "beyond"
    write_run(folder, serve(beyond, roomy), beyond, roomy, slo=SLO, seed=0)
    for command in (["predict", str(folder), "--draws", "0"], ["plan", str(folder), "--target", "0.8"]):
        assert run([*command, "--model", str(file), "--slo", "ttft=20s"]) == 0
        assert "longer prompts than were measured" in capsys.readouterr().out.replace("\n", " ")


def exactly(load: Load, share: float, slo_s: float) -> float:
    """A limit on TTFT that this share of a load meets on one server."""
    ttft_s = np.sort(serve(load, server()).ttft_s)
    return float(ttft_s[round(share * len(load)) - 1]) * (1 + 1e-9) + slo_s


def test_a_share_that_is_just_met_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1,000 times 1 - 0.9 is less than 100 in binary.
    load = load_at(6.0, 1000, 5)
    limit_s = exactly(load, 0.9, 0.0)
    monkeypatch.setattr("kvload.servers.simulator.cluster.ASK_EVERY", 1)
    found = plan_servers(load, server(), Wanted({"ttft": limit_s}, 0.9, 8, "round-robin"))
    assert (found.servers, found.attainment) == (1, 0.9)


@pytest.mark.parametrize("policy", ["round-robin", "least-loaded", "sticky"])
def test_giving_up_early_changes_no_plan_under_any_policy(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    rng = np.random.default_rng(3)
    # One session comes all the time and the others hardly ever: their servers are not looked at for long.
    session = np.where(rng.random(1500) < 0.7, 0, rng.integers(1, 40, 1500))
    load = replace(load_at(12.0, 1500, 5), session=session)
    crowded = msgspec.structs.replace(server(), token_s=2e-3)
    plans = []
    for every in (1, 10**9):
        monkeypatch.setattr("kvload.servers.simulator.cluster.ASK_EVERY", every)
        plans.append(plan_servers(load, crowded, Wanted({"ttft": 0.4, "tpot": 0.02}, 0.9, 12, policy)))
    assert plans[0] == plans[1]


def test_giving_up_early_changes_no_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    # Draws whose runs are faster than their simulation: what the simulation misses, such a run may meet.
    model = msgspec.structs.replace(server(), spread=Spread(ttft=0.5, tpot=0.3))
    models = StepModels(kvload_version="0", models=[model])

    def arriving(load: Load, rate: float, number: int) -> Load:
        return other_arrivals(load, rate, 1.0, number)

    found = []
    for every in (1, 10**9):
        monkeypatch.setattr("kvload.servers.simulator.cluster.ASK_EVERY", every)
        found.append(
            find_capacities(load_at(5.0, 200, 1), models, ["none"], SLO, arriving, target=0.9, serving=Serving(draws=6))
        )
    assert found[0] == found[1]


def test_servers_are_paid_for_from_the_first_arrival_to_the_last_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = replace(load_at(3.0, 40, 1), arrival_s=np.full(40, 100.0))
    wanted = Wanted({"e2e": 60.0}, 1.0, 4, "round-robin")
    found = plan_servers(load, server(), wanted)
    served = serve(load, server(), replicas=found.servers or 0)
    assert found.hours == pytest.approx((found.servers or 0) * np.max(served.e2e_s) / 3600)
    file, trace = tmp_path / "model.json", tmp_path / "t.jsonl"
    write(file, MODELS)
    rows = [f'{{"id": "{i}", "arrival": {i}, "input_length": 100, "output_length": 50}}\n' for i in range(61)]
    trace.write_text("".join(rows), encoding="utf-8")
    asked = ["plan", str(trace), "--model", str(file), "--slo", "ttft=1s", "--json", "--gpu-hour", "3", "--gpus", "2"]
    assert run(asked) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert 60 / 3600 < plan["hours"] < 62 / 3600
    assert plan["gpu_hours"] == pytest.approx(2 * plan["hours"])
    assert plan["cost"] == pytest.approx(6 * plan["hours"])
    assert plan["cost_per_million_tokens"] == pytest.approx(plan["cost"] / (61 * 50) * 1e6)


@pytest.mark.parametrize(
    ("make_larger", "slo", "reason", "most"),
    [
        (lambda load: load.prompt_tokens.__setitem__(slice(0, 20), 90_000), {"ttft": 60.0}, "size", 0.8),
        (lambda load: load.prompt_tokens.__setitem__(slice(0, 20), 20_000), {"ttft": 0.5}, "alone", 0.8),
        (lambda load: load.output_tokens.__setitem__(slice(0, 20), 2000), {"e2e": 5.0}, "alone", 0.8),
    ],
)
def test_what_no_number_of_servers_mends_is_said(
    make_larger: Callable[[Load], None], slo: dict[str, float], reason: str, most: float
) -> None:
    load = load_at(3.0, 100, 4)
    make_larger(load)
    found = plan_servers(load, server(), Wanted(slo, 0.9, 256, "least-loaded"))
    assert (found.servers, found.reason, found.hours) == (None, reason, None)
    assert found.attainment == pytest.approx(most)
    # The same of a server for each request.
    each = serve(load, server(), replicas=100)
    assert met(each, slo).mean() <= most


def test_draws_that_are_too_few_for_an_interval_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    write(file, MODELS)
    made = make_run(tmp_path / "run", server(), 3.0, 1, count=20)
    for draws, said in (("0", "simulated. No server"), ("3", "what 3 simulations span"), ("9", "the middle 80 %")):
        assert run(["predict", str(made), "--model", str(file), "--draws", draws]) == 0
        assert said in capsys.readouterr().out.replace("\n", " ")


def test_a_method_that_is_asked_for_twice_is_predicted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.json"
    write(file, MODELS)
    made = make_run(tmp_path / "run", server(), 3.0, 1, count=20)
    asked = ["predict", str(made), "--model", str(file), "--draws", "0", "--json", "--method", "none"]
    assert run([*asked, "--method", "none"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
