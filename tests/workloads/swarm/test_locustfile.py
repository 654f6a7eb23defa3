"""Our file under Locust's own command line, and workers that share neither disk nor clock with their master."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvload.rundir import RunDir
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.run.generator import LOCUSTFILE
from tests.workloads.run.test_replay import records_of, wait_for_records, write_trace
from tests.workloads.swarm.conftest import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[MockProcess]:
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.005)) as process:
        yield process


def locust(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *arguments]
    environment = os.environ | {"KVLOAD_API_KEY": "sEcReT"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


def test_locust_with_a_configuration_file(tmp_path: Path, server: MockProcess) -> None:
    write_trace(tmp_path / "t.jsonl", 10, 0.02, 5)
    (tmp_path / "locust.conf").write_text(
        f"headless = true\nhost = {server.url}\ntrace = t.jsonl\nrun-dir = mine\nslo = ttft=1s\nlimit = 8\n",
        encoding="utf-8",
    )
    process = locust(tmp_path)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    run = RunDir.open(tmp_path / "mine")
    manifest = run.manifest()
    assert (manifest.sent, manifest.partial, manifest.ended, manifest.slo) == (8, False, "completed", {"ttft": 1.0})
    assert all(record.status == "ok" for record in records_of(run).values())
    assert "kvload report mine" in output + errors
    assert "sEcReT" not in output + errors
    assert not any(b"sEcReT" in path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file())


def test_locust_interrupted(tmp_path: Path, server: MockProcess) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 200, 0.05, 100)
    process = locust(tmp_path, "--headless", "--host", server.url, "--trace", str(trace), "--run-dir", "mine")
    wait_for_records(tmp_path / "mine", 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    run = RunDir.open(tmp_path / "mine")
    records = records_of(run)
    assert len(records) == 200, errors
    assert {record.status for record in records.values()} == {"ok", "censored", "unsent"}
    assert (run.manifest().partial, run.manifest().ended) == (True, "interrupted")


def test_locust_used_wrongly(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 1, 1, 1)
    process = locust(tmp_path, "--headless", "--trace", str(trace))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--host" in errors
    assert "Traceback" not in errors


def elsewhere(folder: Path, command: list[str]) -> list[str]:
    """The command where the folder is not to be seen and the machine has another identity."""
    script = 'mount -t tmpfs none "$1" && mount --bind "$2" /proc/sys/kernel/random/boot_id && shift 2 && exec "$@"'
    other = folder.parent / "boot_id"
    other.write_text("another-machine\n", encoding="ascii")
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(folder), str(other), *command]


def can_go_elsewhere(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(elsewhere(folder, ["true"]), capture_output=True, check=False).returncode == 0


def test_a_worker_on_another_machine(tmp_path: Path, server: MockProcess) -> None:
    here = tmp_path / "here"
    here.mkdir()
    if not can_go_elsewhere(here):
        pytest.skip("needs the right to mount")
    trace = write_trace(here / "t.jsonl", 40, 0.05, 5)
    port = str(free_port())
    kvload = [sys.executable, "-m", "kvload", "replay"]
    master = [*kvload, str(trace), "--url", server.url, "--out", str(here / "run"), "--json", "--workers", "1"]
    master += ["--master", "--expect-workers", "1", "--master-port", port, "--token", "secret"]
    pipe = subprocess.PIPE
    one = subprocess.Popen(master, cwd=here, stdout=pipe, stderr=pipe, text=True)
    other = elsewhere(here, [*kvload, "--worker", "--master-port", port, "--token", "secret"])
    two = subprocess.Popen(other, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
    output, errors = one.communicate(timeout=90)
    _, worker_errors = two.communicate(timeout=60)
    assert one.returncode == 0, errors + worker_errors
    assert json.loads(output)["completed"] == 40
    records = records_of(RunDir.open(here / "run"))
    assert {record.worker for record in records.values()} == {0, 1}
    for index, record in records.items():
        assert record.status == "ok"
        assert record.worker == index % 2
        assert record.t_send_s is not None
    # one schedule on two clocks: nobody sends before it is due, but for what the clocks' difference is not known
    assert all((record.t_send_s or 0.0) > record.t_sched_s - 0.25 for record in records.values())
    chunks = {record.index: len(rows) for record, rows in RunDir.open(here / "run").records()}
    assert set(chunks.values()) == {5}


def test_a_child_without_a_parent_ends(tmp_path: Path, server: MockProcess) -> None:
    import psutil

    trace = write_trace(tmp_path / "t.jsonl", 200, 0.05, 50)
    command = [
        sys.executable,
        "-m",
        "kvload",
        "replay",
        str(trace),
        "--url",
        server.url,
        "--out",
        str(tmp_path / "run"),
    ]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_records(tmp_path / "run", 2)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert gone
    assert not alive
    time.sleep(0.1)
    # without its parent there is no final manifest, but there is every record
    assert len(records_of(RunDir.open(tmp_path / "run"))) == 200
    assert RunDir.open(tmp_path / "run").manifest().partial
