"""Prefix hits of predictions: counted by the server, reckoned from block ids, or not known; and steps beside them."""

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvload.analysis.prediction.steps import rebuild
from kvload.analysis.records.loading import load
from kvload.cli.main import run
from kvload.experiment.prediction.check import check_runs
from kvload.experiment.prediction.fitting import fit_models
from kvload.experiment.prediction.loads import load_of_folder, read_loads
from kvload.experiment.prediction.run_folder import write_run
from kvload.records import TraceInfo
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import serve
from kvload.step_model import FEATURES, StepModel, StepModels, write
from tests.experiment.test_predict import SLO, server

COUNT, BLOCK = 200, 512


def made_trace(path: Path, seed: int = 0, rate: float = 4.0) -> Path:
    """Prompts of a few blocks that many share, and one of their own."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, COUNT))
    rows = []
    for number in range(COUNT):
        document = int(rng.integers(0, 12))
        ids = [100 * document + place for place in range(int(rng.integers(1, 6)))] + [10_000 + number]
        length = BLOCK * (len(ids) - 1) + int(rng.integers(1, BLOCK))
        rows.append(
            {
                "id": f"r{number}",
                "arrival": round(float(arrival[number]), 4),
                "input_length": length,
                "output_length": 60,
            }
            | {"block_ids": ids, "block_size": BLOCK}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def caching(pool_tokens: int = 60_000) -> StepModel:
    return msgspec.structs.replace(server(pool_tokens=pool_tokens), prefix_cache=True)


def simulated(folder: Path, trace: Path, model: StepModel) -> RunDir:
    """A run of a trace against a simulated server that keeps prefixes and counts them."""
    (wanted,) = read_loads(trace, rates=None).values()
    info = TraceInfo(
        path=trace.name,
        sha256=hashlib.sha256(trace.read_bytes()).hexdigest(),
        format="kvload",
        rows=COUNT,
        used=COUNT,
    )
    made = write_run(folder, serve(wanted, model), wanted, model, slo=SLO, seed=0, trace=info)
    # The folder as a replay of the trace writes it: under the ids of the trace.
    for shard in made.shards():
        lines = [json.loads(line) for line in shard.records_path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line["request_id"] = f"r{line['request_id']}"
        shard.records_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return made


def silent(made: RunDir) -> RunDir:
    """The same run of a server that does not count."""
    for shard in made.shards():
        lines = [json.loads(line) for line in shard.records_path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line.pop("cached_tokens", None)
        shard.records_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return made


def test_a_runs_hits_are_its_servers_count_or_its_traces_blocks_or_unknown(tmp_path: Path) -> None:
    trace = made_trace(tmp_path / "trace.jsonl")
    made = simulated(tmp_path / "runs" / "one", trace, caching())
    counted = load_of_folder(made)
    assert counted.hits == "counted"
    assert counted.cached_tokens is not None
    assert counted.cached_tokens.sum() > 0.2 * counted.prompt_tokens.sum()
    silent(made)
    reckoned = load_of_folder(made)
    assert (reckoned.hits, reckoned.cached_tokens) == ("reckoned", None)
    again = serve(reckoned, caching())
    assert [request.cached_tokens for request in again.requests] == counted.cached_tokens.tolist()
    trace.write_bytes(trace.read_bytes() + b"\n")
    assert load_of_folder(made).hits == "unknown", "another file of the same name is not what was replayed"
    made.update_manifest(servers=[msgspec.structs.replace(made.manifest().server, prefix_cache="off")])
    assert load_of_folder(made).hits == "off"


def test_a_run_with_hits_is_foretold_with_them_and_not_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = (3.0, 6.0)
    fitted = [
        simulated(tmp_path / f"fit{rate}", made_trace(tmp_path / f"{rate}.jsonl", int(rate), rate), caching()).path
        for rate in rates
    ]
    other = simulated(tmp_path / "other", made_trace(tmp_path / "b.jsonl", 9, rate=5.0), caching())
    models = fit_models(fitted)
    assert models.models[0].prefix_cache is True
    found = check_runs([other.path], models, {})
    assert found.hits == {str(other.path): "counted"}
    assert max(abs(cell.error) for cell in found.cells) < 0.06
    file = tmp_path / "model.json"
    write(file, models)
    assert run(["predict", "check", str(other.path), "--model", str(file)]) == 0
    assert "prefix hits: as counted by the server" in capsys.readouterr().out
    (tmp_path / "b.jsonl").unlink()
    blind = check_runs([silent(other).path], models, {})
    assert blind.hits == {str(other.path): "unknown"}
    assert max(abs(cell.error) for cell in blind.cells) > 0.5


def test_what_the_cache_held_is_no_work_of_the_steps(tmp_path: Path) -> None:
    made = simulated(tmp_path / "run", made_trace(tmp_path / "trace.jsonl", 3), caching(1_000_000))
    table = load(made)
    told, blind = rebuild(table, chunk_tokens=8192), rebuild(load(silent(made)), chunk_tokens=8192)
    assert told.prompts.sum() < 0.7 * blind.prompts.sum()
    coefficients = np.array(caching().coefficients[: len(FEATURES)])
    told_error, blind_error = (
        np.median(np.abs(steps.work @ coefficients[:6] / steps.seconds - 1)[steps.prompts.sum(axis=1) > 0])
        for steps in (told, blind)
    )
    assert told_error < 0.01
    assert blind_error > 0.1


def test_a_trace_with_blocks_is_foretold_by_method_with_its_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = made_trace(tmp_path / "trace.jsonl")
    small, large = caching(16_000), msgspec.structs.replace(caching(64_000), method="int4")
    evicting = msgspec.structs.replace(caching(64_000), method="snapkv", kept_tokens=512)
    file = tmp_path / "model.json"
    write(file, StepModels(kvload_version="0", models=[small, large, evicting]))
    arguments = ["predict", str(trace), "--model", str(file), "--draws", "0"]
    assert run([*arguments, "--json"]) == 0
    cells = {cell["method"]: cell for cell in json.loads(capsys.readouterr().out)}
    assert {cell["hits"] for cell in cells.values()} == {"reckoned"}
    assert 0 < cells["none"]["cached"] < cells["int4"]["cached"]
    assert cells["snapkv"]["cached"] == 0
    assert run([*arguments, "--out", str(tmp_path / "runs")]) == 0
    text = capsys.readouterr().out
    assert "prefix hits: reckoned from block ids" in text
    assert "int4: the prefix cache held" in text
    assert "snapkv: the prefix cache held" not in text
    states = {path.name.partition("-")[0]: RunDir.open(path).manifest() for path in (tmp_path / "runs").iterdir()}
    assert {name: one.server.prefix_cache for name, one in states.items()} == {
        "none": "on",
        "int4": "on",
        "snapkv": "off",
    }


def test_a_plan_says_what_it_took_from_prefix_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, file = made_trace(tmp_path / "trace.jsonl"), tmp_path / "model.json"
    write(file, StepModels(kvload_version="0", models=[caching(), server("snapkv")]))
    assert run(["plan", str(trace), "--model", str(file), "--slo", "ttft=1s"]) == 0
    text = capsys.readouterr().out
    assert "prefix hits: reckoned from block ids" in text
    assert "none: the prefix cache held" in text


def test_a_trace_taken_twice_finds_itself(tmp_path: Path) -> None:
    trace = made_trace(tmp_path / "trace.jsonl")
    (twice,) = read_loads(trace, rates=None, repeat=2).values()
    served = serve(twice, caching(10_000_000))
    cached = np.array([request.cached_tokens for request in served.requests])
    prompts = twice.prompt_tokens
    assert len(cached) == 2 * COUNT
    assert (cached[COUNT:] == (prompts[COUNT:] - 1) // 16 * 16).all()
    assert cached[:COUNT].sum() < prompts[:COUNT].sum() * 0.9
