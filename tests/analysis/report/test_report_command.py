"""``kvload report`` as a process."""

import json
import subprocess
import sys
from pathlib import Path

from tests.analysis.synthetic import mixed


def kvload(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvload", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_it_renders_the_same_text_again(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    first, second = kvload("report", str(run.path)), kvload("report", str(run.path))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    for word in ("199 sent = 194 done + 2 failed", "TTFT", "TPOT", "ITL", "E2E", "goodput", "schedule lag"):
        assert word in first.stdout


def test_json_goes_to_stdout_alone(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    found = kvload("report", str(run.path), "--json", "--slo", "ttft=10s")
    values = json.loads(found.stdout)
    assert values["slo"] == {"ttft": 10.0}
    assert values["slo_attainment"] == values["completed"] / values["sent"]


def test_gates_set_the_exit_code(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    assert kvload("report", str(run.path), "--fail-if", "attainment<0.5").returncode == 0
    failed = kvload("report", str(run.path), "--fail-if", "attainment<0.99")
    assert failed.returncode == 1
    assert "attainment is 0.788945" in failed.stderr
    unknown = kvload("report", str(run.path), "--fail-if", "attainmnt<0.99")
    assert unknown.returncode == 2
    assert "there is no figure 'attainmnt'" in unknown.stderr


def test_what_is_no_run_folder_is_told_without_a_traceback(tmp_path: Path) -> None:
    found = kvload("report", str(tmp_path))
    assert found.returncode == 2
    assert "manifest.json" in found.stderr
    assert "Traceback" not in found.stderr
