"""Step times from a designed load: on the mock, which is any OpenAI server, and on the engine, whose log tells."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Kvload

pytestmark = pytest.mark.slow


def test_any_server_is_calibrated_and_foretold(kvload: Kvload, start_mock: Callable[..., str], tmp_path: Path) -> None:
    url, file = start_mock("--ttft", "30ms", "--itl", "10ms"), tmp_path / "model.json"
    fit = ["predict", "fit", "--calibrate", url, "--seconds", "5", "--runs-out", tmp_path / "runs", "-o", file]
    assert "--method NAME" in kvload(*fit).stderr
    fit[7] = tmp_path / "again"
    done = kvload(*fit, "--method", "none", "--pool-tokens", "50000")
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(file.read_text())["models"]
    names = [Path(run).name for run in model["runs"]]
    assert "pass-1" in names
    assert "visit-1" not in names
    # It sends a token every 10 ms, however many it answers at once.
    assert 4e-3 < model["coefficients"][0] < 20e-3
    told = kvload("predict", tmp_path / "again" / "pass-1", "--model", file, "--draws", "2", "--slo", "tpot=1s")
    assert told.returncode == 0, told.stderr
    assert "100.0%" in told.stdout


def test_the_engines_log_bears_out_what_was_fitted_from_chunk_times(kvload: Kvload, tmp_path: Path) -> None:
    log, file = tmp_path / "steps.jsonl", tmp_path / "model.json"
    launched = kvload("launch", "--engine", "embedded", "--kv-memory", "64MiB", "--", "--step-log", log, timeout_s=250)
    assert launched.returncode == 0, launched.stderr
    server = launched.stdout.split()[0]
    runs = ["--seconds", "5", "--runs-out", tmp_path / "runs"]
    done = kvload("predict", "fit", "--calibrate", server, *runs, "-o", file, timeout_s=250)
    kvload("stop", server)
    assert done.returncode == 0, done.stderr
    assert "held against the engine's own log" in done.stdout
    kept = kvload("predict", "fit", tmp_path / "runs" / "pass-1", "--steps", f"none={log}", "-o", tmp_path / "log.json")
    assert kept.returncode == 0, kept.stderr
    told = kvload("predict", "steps", f"none={log}", "--model", file, "--json")
    assert told.returncode == 0, told.stderr
    stages = {each["held_out"]["stage"]: each for each in json.loads(told.stdout)}
    # Both saw the same steps: whatever else the machine does is in both.
    assert abs(stages["decode"]["total"]) < 0.3
    assert stages["decode"]["held_out"]["points"] > 50
