"""Step times from a designed load: on the mock, which is any OpenAI server, and on the engine, whose log tells."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvload.servers.probe import MODEL_DIR
from tests.e2e import waiting_engine
from tests.e2e.conftest import Kvload

pytestmark = [pytest.mark.slow, pytest.mark.quiet]


def test_any_server_is_calibrated_and_foretold(kvload: Kvload, start_mock: Callable[..., str], tmp_path: Path) -> None:
    url, file = start_mock("--ttft", "30ms", "--itl", "10ms"), tmp_path / "model.json"
    fit = ["predict", "fit", "--calibrate", url, "--seconds", "5", "--runs-out", tmp_path / "runs", "-o", file]
    assert "--method NAME" in kvload(*fit).stderr
    fit[7] = tmp_path / "again"
    done = kvload(*fit, "--method", "none", "--pool-tokens", "50000")
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(file.read_text())["models"]
    # Where the machine is so busy that passes show little, first visits count, too.
    assert "pass-1" in [Path(run).name for run in model["runs"]]
    assert sum(model["coefficients"]) > 0
    told = kvload(
        "predict", tmp_path / "again" / "pass-1", "--model", file, "--draws", "2", "--slo", "tpot=1s", "--json"
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)[0]["central"]["attainment"] == 1.0


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
    # A tenth of a minute on a real engine shows whether both mean the same steps, by a factor; how well a fit does is
    # held against an engine whose steps are known, below.
    assert abs(stages["decode"]["total"]) < 0.7
    assert stages["decode"]["held_out"]["points"] > 50


def test_what_steps_truly_cost_is_found_beside_kernels_that_are_compiled_first(
    kvload: Kvload, environ: dict[str, str], tmp_path: Path
) -> None:
    log, file = tmp_path / "steps.jsonl", tmp_path / "model.json"
    command = [sys.executable, "-u", "-m", waiting_engine.__name__, "--model", str(MODEL_DIR), "--port", "0"]
    command += ["--max-model-len", "4096", "--kv-memory", "256MiB", "--step-log", str(log)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        fit = ["predict", "fit", "--calibrate", url, "--method", "none", "--seconds", "15"]
        done = kvload(*fit, "--runs-out", tmp_path / "runs", "-o", file, timeout_s=250)
        server.terminate()
    assert done.returncode == 0, done.stderr
    told = kvload("predict", "steps", f"none={log}", "--model", file, "--json")
    assert told.returncode == 0, told.stderr
    stages = {each["held_out"]["stage"]: each for each in json.loads(told.stdout)}
    # Loops that are gone through once err by 30 % in the prompts' total time, and by 40 % in a step with prompts.
    assert abs(stages["decode"]["total"]) < 0.2, stages["decode"]
    assert abs(stages["prefill"]["total"]) < 0.25, stages["prefill"]
    assert stages["prefill"]["model"]["mape"] < 0.3, stages["prefill"]
