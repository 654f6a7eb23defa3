"""From answers that grew in a comparison to predictions: as if the trace itself had the longer answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvload.cli.main import run
from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo
from kvload.rundir import CHUNK_DTYPE, RunDir
from kvload.step_model import StepModels, write
from tests.experiment.test_predict import server

pytest.importorskip("sklearn")

FACTORS = (1.0, 1.0, 1.5, 2.5)
SLO = "ttft=2s,tpot=20ms,e2e=2s"


def write_arm(folder: Path, method: str, lengths: npt.NDArray[np.int64]) -> None:
    count = len(lengths)
    manifest = RunManifest(
        run_id=folder.name,
        kvload_version="0",
        servers=[ServerInfo(url="http://127.0.0.1:1", method=method)],
        trace=TraceInfo(path="t.jsonl", sha256="a" * 64, format="kvload", rows=count, used=count),
        mode="free",
        seed=0,
        arrivals={},
        planned=count,
        partial=False,
        ended="completed",
    )
    with RunDir.create(folder, manifest).writer("worker-0") as writer:
        for index, tokens in enumerate(lengths.tolist()):
            record = RequestRecord(
                index=index,
                request_id=f"r{index}",
                prompt_digest=f"{index:032x}",
                max_tokens=4096,
                t_sched_s=0.0,
                t_send_s=0.0,
                t_first_s=0.1,
                t_last_s=0.2,
                t_end_s=0.2,
                status="ok",
                prompt_tokens=50,
                output_tokens=tokens,
                output_tokens_source="usage",
                first_chunk_tokens=1,
                finish_reason="stop",
                text="yes",
            )
            writer.append(record, np.zeros(1, CHUNK_DTYPE))


def write_trace(path: Path, outputs: npt.NDArray[np.int64]) -> Path:
    rng = np.random.default_rng(5)
    rows = [
        {"id": str(place), "arrival": place / 4, "input_length": int(rng.integers(50, 1500)), "output_length": tokens}
        for place, tokens in enumerate(outputs.tolist())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A comparison's length ratios, models of methods that cost the same, and a trace."""
    base = np.random.default_rng(1).integers(40, 200, 400)
    grown = np.round(base * np.resize(FACTORS, len(base))).astype(np.int64)
    study = tmp_path / "study"
    write_arm(study / "r0-none", "none", base)
    write_arm(study / "r0-none-again", "none", base)
    write_arm(study / "r0-kivi-2", "kivi-2", grown)
    lengths, models = tmp_path / "lengths.json", tmp_path / "model.json"
    assert run(["lengths", str(study), "-o", str(lengths)]) == 0
    write(models, StepModels(kvload_version="0", models=[server(), server("kivi-2")]))
    trace = write_trace(tmp_path / "trace.jsonl", np.random.default_rng(2).integers(40, 200, 600))
    return lengths, models, trace


def told(trace: Path, models: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    command = ["predict", str(trace), "--model", str(models), "--slo", SLO, "--draws", "0", "--json", *more]
    assert run(command) == 0
    return {each["method"]: each["central"] for each in json.loads(capsys.readouterr().out)}


def test_answers_that_grew_are_foretold_as_a_trace_with_those_lengths(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths, models, trace = files
    ratios = json.loads(lengths.read_text(encoding="utf-8"))["kivi-2"]
    # Rounding to whole tokens blurs them.
    assert np.mean(np.round(ratios, 1) == 1.0) == pytest.approx(0.5, abs=0.02)
    assert np.mean(np.round(ratios, 1) == 2.5) == pytest.approx(0.25, abs=0.02)
    outputs = np.array([json.loads(line)["output_length"] for line in trace.read_text(encoding="utf-8").splitlines()])
    factors = np.random.default_rng(3).permutation(np.resize(FACTORS, len(outputs)))
    truly = told(write_trace(tmp_path / "longer.jsonl", np.round(outputs * factors).astype(np.int64)), models, capsys)
    plain, grown = told(trace, models, capsys), told(trace, models, capsys, "--lengths", str(lengths))
    assert grown["none"] == plain["none"]
    for figure in ("e2e.mean", "e2e.p50", "ttft.mean", "tpot.mean", "tokens_per_s"):
        assert grown["kivi-2"][figure] == pytest.approx(truly["kivi-2"][figure], rel=0.04), figure
    assert grown["kivi-2"]["attainment"] == pytest.approx(truly["kivi-2"]["attainment"], abs=0.03)
    # They grow by 1.5 times, of which nothing is in the trace.
    assert grown["kivi-2"]["e2e.mean"] > 1.35 * plain["kivi-2"]["e2e.mean"]
    assert grown["kivi-2"]["attainment"] < plain["kivi-2"]["attainment"] - 0.05


def test_simulated_run_folders_have_the_longer_answers(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths, models, trace = files
    out = tmp_path / "simulated"
    told(trace, models, capsys, "--lengths", str(lengths), "--out", str(out))
    tokens = {}
    for folder in out.iterdir():
        made = RunDir.open(folder)
        tokens[made.manifest().arm] = sum(record.output_tokens or 0 for record, _ in made.records())
    assert tokens["kivi-2"] == pytest.approx(1.5 * (tokens["none"] or 0), rel=0.05)


def test_methods_without_ratios_are_named(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths, models, trace = files
    more = StepModels(kvload_version="0", models=[server(), server("kivi-2"), server("int4")])
    write(models, more)
    command = ["predict", str(trace), "--model", str(models), "--draws", "0", "--lengths", str(lengths)]
    assert run(command) == 0
    said = capsys.readouterr().err
    assert "kivi-2: answers drawn" in said
    assert "int4: no ratios" in said
    assert "none:" not in said
    assert run([*command, "--method", "int4"]) == 2
    assert "there are: kivi-2" in capsys.readouterr().err
