"""An engine's own log of its steps: what is counted of it, and models from it."""

import json
from pathlib import Path

import numpy as np
import pytest

from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.experiment.prediction.fitting import fit_models
from kvload.experiment.prediction.logged import log_of, logged_points, logged_steps
from kvload.experiment.prediction.shape import Overrides
from kvload.experiment.prediction.truth import truth_errors
from kvload.records import RunManifest, ServerInfo, TraceInfo

COMPILING_S = 1.5


def seconds(decode: int, context: int, prompt: int) -> float:
    return 6e-3 + (4e-3 if prompt else 0.0) + 2e-4 * decode + 5e-8 * context + 3e-5 * prompt


def write_log(path: Path, count: int = 600, seed: int = 0) -> list[float]:
    """Steps of known costs, the first of every kind behind a compiler; returns the others' seconds."""
    rng = np.random.default_rng(seed)
    now_s, lines, counted = 1000.0, [], []
    seen = set()
    for _ in range(count):
        decode = int(2 ** rng.integers(0, 6))
        prompt = int(2 ** rng.integers(5, 10)) if rng.random() < 0.3 else 0
        took_s = seconds(decode, decode * 500, prompt)
        if (decode, prompt) in seen:
            counted.append(took_s)
        else:
            took_s += COMPILING_S
        seen.add((decode, prompt))
        row = {"t": now_s, "s": took_s - 5e-4, "decode": decode, "context": decode * 500}
        lines.append(json.dumps(row | ({"prefill": [[prompt, 0]]} if prompt else {})) + "\n")
        now_s += took_s
    path.write_text("".join(lines), encoding="utf-8")
    return counted


def manifest(command: list[str], begun_s: float, took_s: float) -> RunManifest:
    return RunManifest(
        run_id="r",
        kvload_version="0",
        servers=[ServerInfo(url="http://127.0.0.1:1", command=command)],
        trace=TraceInfo(path="t", sha256="", format="kvload", rows=1, used=1),
        mode="forced",
        seed=0,
        arrivals={},
        planned=1,
        started_at=begun_s,
        duration_s=took_s,
    )


def test_the_first_step_of_a_shape_does_not_count_and_a_step_lasts_until_the_next(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    counted = write_log(log)
    points = logged_points(log)
    # What lies between two steps is theirs; after the last there is none.
    np.testing.assert_allclose(np.sort(points.steps.seconds)[:-1], np.sort(counted)[:-1], atol=6e-4)
    assert len(points.steps) == len(counted)
    assert points.steps.seconds.max() < COMPILING_S


def test_a_model_from_a_log_alone_has_the_costs_that_made_it(tmp_path: Path) -> None:
    log, other = tmp_path / "steps.jsonl", tmp_path / "other.jsonl"
    write_log(log)
    write_log(other, seed=1)
    (model,) = fit_models([], Overrides(pool_tokens=9_000), {"h2o:budget=512": log}).models
    assert model.pool_tokens == 9_000
    assert model.kept_tokens == 512
    decode, prompt = truth_errors([other], "h2o:budget=512", model)[::-1]
    for found in (decode, prompt):
        assert found.model is not None
        assert found.model.mape < 0.03
        assert found.total == pytest.approx(0.0, abs=0.02)


def test_a_run_takes_its_own_part_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    write_log(log)
    whole = logged_steps(log, None)
    times = [json.loads(line)["t"] for line in log.read_text(encoding="utf-8").splitlines()]
    half_s = times[len(times) // 2] - times[0]
    first = logged_steps(log, None, manifest([], times[0], half_s))
    rest = logged_steps(log, None, manifest([], times[0] + half_s + 1e-6, 1e6))
    assert len(first) + len(rest) == len(whole)
    with pytest.raises(UsageError, match="no steps of this run"):
        logged_steps(log, None, manifest([], 1.0, 2.0))


def test_a_servers_log_is_found_by_its_command(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    assert log_of(manifest(["server", "--step-log", str(log)], 0.0, 1.0)) is None
    write_log(log)
    assert log_of(manifest(["server", "--step-log", str(log)], 0.0, 1.0)) == log
    assert log_of(manifest(["server", "--port", "1"], 0.0, 1.0)) is None


def test_fit_takes_logs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, model = tmp_path / "steps.jsonl", tmp_path / "model.json"
    write_log(log)
    assert run(["predict", "fit", "--steps", f"none={log}", "-o", str(model)]) == 0
    assert run(["predict", "steps", f"none={log}", "--model", str(model), "--json"]) == 0
    for wrong, why in (
        (["--steps", "none"], "is not METHOD=LOG"),
        (["--steps", f"none={log}", "--steps", f"none={log}"], "one log of a method"),
        (["--steps", f"none={log}", "--points", str(log)], "--calibrate"),
        ([], "give run folders"),
        (["--steps", f"none={tmp_path / 'absent'}"], "cannot be read"),
    ):
        capsys.readouterr()
        assert run(["predict", "fit", *wrong, "-o", str(model)]) == 2 or why == "cannot be read"
        assert why in capsys.readouterr().err
