"""Predictions from run folders: fitted, held against other runs of the same (simulated) server, and planned with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.experiment.prediction.cells import guesses
from kvload.experiment.prediction.check import check_runs
from kvload.experiment.prediction.fitting import fit_models
from kvload.experiment.prediction.forecast import Serving, predict
from kvload.experiment.prediction.loads import other_arrivals, read_loads
from kvload.experiment.prediction.plan import Wanted, plan_servers
from kvload.experiment.prediction.run_folder import write_run
from kvload.experiment.prediction.shape import method_of
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import Spread, StepModel, StepModels, read, write

SLO = {"ttft": 0.5, "tpot": 0.03}


def server(method: str = "none", scale: float = 1.0, pool_tokens: int = 60_000) -> StepModel:
    """A server whose decode attention costs ``scale`` times the baseline's."""
    return StepModel(
        method=method,
        engine="vllm",
        coefficients=(6e-3, 3e-3, 1e-4, scale * 6e-8, 4e-5, 2e-9, 0.0),
        draws=[],
        hull={},
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        overhead_s=0.01,
        pool_tokens=pool_tokens,
        max_sequences=256,
        chunk_tokens=8192,
    )


def load_at(rate: float, count: int, seed: int) -> Load:
    rng = np.random.default_rng(seed)
    return Load(
        np.cumsum(rng.exponential(1 / rate, count)), rng.integers(50, 3000, count), rng.integers(20, 250, count)
    )


def make_run(folder: Path, model: StepModel, rate: float, seed: int, count: int = 150) -> Path:
    load = load_at(rate, count, seed)
    write_run(folder, serve(load, model), load, model, slo=SLO, seed=seed)
    return folder


def test_rates_that_were_not_fitted_are_foretold(tmp_path: Path) -> None:
    models = fit_models([make_run(tmp_path / "fit", server(), 3.0, 1)])
    cells = check_runs([make_run(tmp_path / f"at{rate}", server(), rate, 2) for rate in (1.0, 4.0)], models, {}).cells
    assert {cell.figure for cell in cells} == {"ttft.p50", "ttft.p99", "tpot.mean", "e2e.mean", "attainment"}
    for cell in cells:
        assert abs(cell.error) < 0.06, cell
    with pytest.raises(UsageError, match="was fitted from this run"):
        check_runs([tmp_path / "fit"], models, {})
    RunDir.open(tmp_path / "at4.0").update_manifest(partial=True, ended="interrupted")
    with pytest.raises(UsageError, match="was cut off"):
        check_runs([tmp_path / "at4.0"], models, {})


def test_a_run_that_was_fitted_from_is_known_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, rate in (("one", 3.0), ("other", 5.0)):
        (tmp_path / folder).mkdir()
        make_run(tmp_path / folder / "run", server(), rate, 3)
    monkeypatch.chdir(tmp_path / "one")
    models = fit_models([Path("run")])
    copied = tmp_path / "copied"
    shutil.copytree("run", copied)
    with pytest.raises(UsageError, match="was fitted from this run"):
        check_runs([copied], models, SLO)
    # Another folder of that name is another run.
    monkeypatch.chdir(tmp_path / "other")
    assert check_runs([Path("run")], models, SLO).cells


def test_the_ratio_of_methods_is_foretold_with_its_sign(tmp_path: Path) -> None:
    fitted = [make_run(tmp_path / name, server(name, scale), 3.0, 1) for name, scale in (("none", 1.0), ("int4", 0.3))]
    models = fit_models(fitted)
    assert [model.method for model in models.models] == ["none", "int4"]
    (_, faster) = predict({5.0: load_at(5.0, 300, 9)}, models, ["none", "int4"], SLO, Serving(draws=20))
    true = serve(load_at(5.0, 300, 9), server("int4", 0.3)), serve(load_at(5.0, 300, 9), server())
    expected = np.nanmean(true[0].e2e_s) / np.nanmean(true[1].e2e_s)
    ratio, low, high = faster.ratio["e2e.mean"]
    assert ratio == pytest.approx(expected, rel=0.05)
    assert low <= ratio <= high
    assert ratio < 1


def test_longer_answers_eat_the_speed_up() -> None:
    models = StepModels(kvload_version="0", models=[server(), server("kivi-2", 0.5)])
    load = {3.0: load_at(3.0, 200, 1)}
    plain = predict(load, models, ["none", "kivi-2"], SLO, Serving(draws=0))[1]
    longer = predict(
        load, models, ["none", "kivi-2"], SLO, Serving(draws=0), length_ratios={"kivi-2": np.array([1.4, 1.6])}
    )[1]
    assert plain.ratio["e2e.mean"][0] < 1 < longer.ratio["e2e.mean"][0]


def test_a_plan_needs_fewer_servers_where_the_cache_holds_more() -> None:
    wanted = Wanted(SLO, 0.95, 64, "least-loaded")
    load = load_at(15.0, 300, 3)
    tight = plan_servers(load, server(pool_tokens=8_000), wanted)
    roomy = plan_servers(load, server(pool_tokens=400_000), wanted)
    assert tight.servers is not None
    assert roomy.servers is not None
    assert roomy.servers < tight.servers
    assert tight.reason == "memory"
    assert plan_servers(load, server(), Wanted({"ttft": 1e-4}, 0.95, 4, "round-robin")).servers is None
    with pytest.raises(UsageError, match="--slo"):
        plan_servers(load, server(), Wanted({}, 0.95, 4, "round-robin"))


def test_the_command_line_from_runs_to_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_run(tmp_path / "fit", server(), 3.0, 1)
    file = tmp_path / "model.json"
    assert run(["predict", "fit", str(made), "-o", str(file)]) == 0
    assert (
        run(["predict", str(made), "--model", str(file), "--rate", "1,8", "--slo", "ttft=500ms", "--draws", "2"]) == 0
    )
    assert "goodput/s" in capsys.readouterr().out
    out = tmp_path / "simulated"
    arguments = ["predict", str(made), "--model", str(file), "--out", str(out), "--json", "--draws", "0"]
    assert run(arguments) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["method"] == "none"
    (folder,) = out.iterdir()
    assert run(["report", str(folder)]) == 0
    assert "simulated" in capsys.readouterr().out
    assert run(["plan", str(made), "--model", str(file), "--slo", "ttft=500ms", "--gpu-hour", "2"]) == 0
    assert "GPU-hours" in capsys.readouterr().out
    longer = tmp_path / "lengths.json"
    longer.write_text('{"none": [40.0, 60.0]}', encoding="utf-8")
    planned = ["plan", str(made), "--model", str(file), "--slo", "ttft=500ms", "--rate", "3", "--json"]
    capsys.readouterr()
    servers = []
    for extra in ([], ["--lengths", str(longer)]):
        assert run([*planned, *extra]) == 0
        servers.append(json.loads(capsys.readouterr().out)[0]["servers"])
    assert servers[0] < servers[1]
    longer.write_text('{"h2o": [40.0]}', encoding="utf-8")
    assert run([*planned, "--lengths", str(longer)]) == 2
    assert "no ratios of none" in capsys.readouterr().err
    for wrong in (
        ["predict", str(tmp_path / "no.jsonl"), "--model", str(file)],
        ["predict", str(made), "--model", "no"],
    ):
        assert run(wrong) == 2
    assert run(["predict", str(made), "--model", str(file), "--method", "h2o"]) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"kvload_version": "1", "models": [{}]}', "[" * 100_000])
def test_a_damaged_file_of_models_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"model\.json"):
        read(path)
    write(path, StepModels(kvload_version="1", models=[server()]))
    assert read(path).of("none") == server()
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["format"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match="by an older kvload"):
        read(path)


def test_ratios_are_held_against_guesses_without_a_model(tmp_path: Path) -> None:
    methods = {"none": 1.0, "int4": 0.3}
    models = fit_models([make_run(tmp_path / f"fit-{name}", server(name, x), 3.0, 1) for name, x in methods.items()])
    runs = [
        make_run(tmp_path / f"{name}-{rate}-{turn}", server(name, x), rate, 2)
        for name, x in methods.items()
        for rate in (2.0, 9.0)
        for turn in ((0, 1) if name == "none" else (0,))
    ]
    found = check_runs(runs, models, {})
    # Loads of one rate are the same; those of the two are not: the records tell, not the names.
    assert {ratio.run for ratio in found.ratios} == {str(tmp_path / f"int4-{rate}-0") for rate in (2.0, 9.0)}
    assert len(found.again["e2e.mean"]) == 2
    assert max(found.again["e2e.mean"]) == 0
    ours, same, *_ = guesses(found.ratios)
    assert ours.skill.moving >= 3
    assert ours.skill.skill is not None
    assert ours.skill.skill > 0.9
    assert ours.skill.sign_right == 1
    assert same.skill.skill == 0
    assert ours.error["e2e.mean"] < same.error["e2e.mean"]


def test_a_run_that_is_slower_than_the_others_widens_what_may_be(tmp_path: Path) -> None:
    loads = [(3.0, 1), (4.0, 2), (2.0, 3)]
    alike = [make_run(tmp_path / f"a{seed}", server(), rate, seed) for rate, seed in loads]
    narrow = fit_models(alike).models[0].spread
    slow = msgspec.structs.replace(server(), coefficients=tuple(1.3 * x for x in server().coefficients))
    wide = fit_models([*alike[:2], make_run(tmp_path / "slow", slow, 2.0, 3)]).models[0].spread
    assert narrow.runs == wide.runs == 3
    assert narrow.decode < 0.02
    assert wide.decode > 0.1
    assert wide.prompt > 0.1
    assert fit_models(alike[:1]).models[0].spread.runs == 0


def test_a_search_that_gives_up_early_finds_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    load = load_at(20.0, 3000, 5)
    wanted = Wanted(SLO, 0.95, 64, "least-loaded")
    early = plan_servers(load, server(), wanted)
    monkeypatch.setattr("kvload.servers.simulator.cluster.ASK_EVERY", 10**9)
    whole = plan_servers(load, server(), wanted)
    assert early == whole
    assert early.servers is not None
    assert early.servers > 2


def test_a_trace_is_taken_several_times_over_a_day_s_ramps(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [f'{{"id": "{i}", "arrival": {i * 2.0}, "input_length": {100 + i}, "output_length": 40}}' for i in range(50)]
    trace.write_text("\n".join(rows), encoding="utf-8")
    ((_, recorded),) = read_loads(trace, rates=None, repeat=3).items()
    assert recorded.arrival_s.tolist() == [2.0 * i for i in range(150)]
    assert recorded.prompt_tokens.tolist() == [100 + i for i in range(50)] * 3
    ((rate, ramped),) = read_loads(trace, rates=None, ramps="1-3/1m,3-1/1m", repeat=4).items()
    # 2 a second on average for the first two minutes, and half of the 200 requests by the peak.
    assert rate == pytest.approx(200 / ramped.arrival_s[-1], rel=0.01)
    assert np.searchsorted(ramped.arrival_s, 60) == pytest.approx(120, abs=25)
    with pytest.raises(UsageError, match="one of them"):
        read_loads(trace, rates="2", ramps="1/1m")


def test_other_arrivals_widen_what_may_be() -> None:
    models = StepModels(
        kvload_version="0", models=[msgspec.structs.replace(server(), spread=Spread(decode=0.001, prompt=0.001))]
    )
    load = {9.0: load_at(9.0, 200, 1)}
    (same,) = predict(load, models, ["none"], SLO, Serving(draws=8))

    def again(each: Load, rate: float, number: int) -> Load:
        return other_arrivals(each, rate, 1.0, number)

    (other,) = predict(load, models, ["none"], SLO, Serving(draws=8), arriving=again)
    wide = [each.high["ttft.p99"] / each.low["ttft.p99"] for each in (same, other)]
    assert wide[1] > 1.5 * wide[0]


def test_what_is_said_lies_among_what_may_be_where_the_load_itself_is_a_lucky_one() -> None:
    models = StepModels(kvload_version="0", models=[server(), server("int4", 0.3, 200_000)])
    even = replace(load_at(9.0, 200, 1), arrival_s=np.arange(200) / 9.0)

    def again(each: Load, rate: float, number: int) -> Load:
        return other_arrivals(each, rate, 1.0, number)

    found = predict({9.0: even}, models, ["none", "int4"], SLO, Serving(draws=8), arriving=again)
    for each in found:
        for name in ("ttft.p50", "ttft.p99", "tpot.mean", "attainment"):
            assert each.low[name] <= each.central[name] <= each.high[name]
    for central, low, high in found[1].ratio.values():
        assert low <= central <= high


def test_a_prediction_of_many_rates_fits_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = StepModels(kvload_version="0", models=[server(), server("fp8-e4m3", 0.5), server("int4", 0.3, 200_000)])
    file = tmp_path / "model.json"
    write(file, models)
    made = make_run(tmp_path / "run", server(), 3.0, 1, count=60)
    capsys.readouterr()
    arguments = ["predict", str(made), "--model", str(file), "--rate", "2,20,60", "--slo", "ttft=500ms", "--draws", "3"]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if not line.startswith(("one server", "none:", "fp8-e4m3:", "int4:"))]
    assert len(rows) > 20
    assert max(map(len, rows)) <= 80
    # A matter is told once for each method, not once for each rate.
    assert sum("near saturation" in line for line in lines) == 3
    assert sum(" to " in line for line in lines) >= 9


def test_steps_are_held_out_of_what_runs_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / f"at{rate}", server(), rate, 3) for rate in (2.0, 8.0)]
    assert run(["predict", "steps", *(f"none={folder}" for folder in runs), "--json"]) == 0
    stages = {each["held_out"]["stage"]: each["held_out"] for each in json.loads(capsys.readouterr().out)}
    assert stages["decode"]["by_batch"]["mape"] < 0.02
    assert stages["decode"]["by_length"]["mape"] < 0.02
    assert stages["prefill"]["by_batch"]["mape"] < 0.1
    assert run(["predict", "steps", str(runs[0])]) == 2
    assert "METHOD=LOG" in capsys.readouterr().err


def test_an_arm_given_by_its_address_is_the_method_it_is_named_after(tmp_path: Path) -> None:
    manifest = RunDir.open(make_run(tmp_path / "run", server(), 3.0, 1, count=20)).manifest()
    named = msgspec.structs.replace(manifest, arm="int4")
    assert method_of(named, tmp_path) == "int4"
    assert method_of(msgspec.structs.replace(manifest, arm="none-again"), tmp_path) == "none"
    launched = msgspec.structs.replace(manifest.servers[0], command=["serve"], method="kivi-4")
    assert method_of(msgspec.structs.replace(named, servers=[launched]), tmp_path) == "kivi-4"
    unknown = msgspec.structs.replace(manifest.servers[0], method=None)
    silent = msgspec.structs.replace(manifest, servers=[unknown], arm=None)
    assert method_of(silent, tmp_path, "h2o") == "h2o"
    with pytest.raises(UsageError, match="--method"):
        method_of(silent, tmp_path)


def test_what_runs_carry_is_held_against_what_they_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = [make_run(tmp_path / f"fit{rate}", server(), rate, 3) for rate in (3.0, 6.0)]
    runs = [make_run(tmp_path / f"at{rate}", server(), rate, 9) for rate in (2.0, 8.0, 16.0, 32.0)]
    models = fit_models(fitted)
    found = check_runs(runs, models, SLO)
    (cell,) = found.capacities
    assert 2.0 < cell.measured < 32.0
    assert cell.low <= cell.predicted <= cell.high
    assert abs(cell.error) < 0.15
    # Runs that all meet the limits do not say what is carried.
    assert check_runs(runs[:1], models, SLO).capacities == []
    file = tmp_path / "model.json"
    write(file, models)
    capsys.readouterr()
    assert run(["predict", "check", *map(str, runs), "--model", str(file), "--slo", "ttft=500ms,tpot=30ms"]) == 0
    assert "carries, req/s" in capsys.readouterr().out
