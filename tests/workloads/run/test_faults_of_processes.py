"""What becomes of a run when its processes, its machine or its user fail: it ends, says so, and loses no request."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvload.address import Address
from kvload.errors import ExitStatus
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.run.plan import ReplayPlan, Sending
from kvload.workloads.run.replay import run_replay
from tests.workloads.run.test_dispatch import plan
from tests.workloads.run.test_replay import new_run, records_of, start_replay, wait_for_records, write_trace

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[MockProcess]:
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.005)) as process:
        yield process


def replay_command(trace: Path, server: MockProcess, out: Path) -> list[str]:
    return [sys.executable, "-m", "kvload", "replay", str(trace), "--url", server.url, "--out", str(out)]


def limited(command: list[str], limit: str) -> list[str]:
    """The command under a limit of the shell's ``ulimit``."""
    return ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command]


def ended(process: subprocess.Popen[str], out: Path, status: int) -> tuple[RunManifest, str]:
    """Wait for a replay that must end with this status, with a finished manifest and without a traceback."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == status, output + errors
    assert "Traceback" not in errors
    manifest = RunDir.open(out).manifest()
    assert manifest.partial
    assert manifest.ended not in {None, "completed"}
    return manifest, errors


@pytest.mark.parametrize("header", ["Connection: close", "Transfer-Encoding: x", "X(y): z", "A: \u20ac"])
def test_a_header_that_cannot_be_sent_is_refused_before_anything_starts(
    tmp_path: Path, server: MockProcess, header: str
) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 2, 0.01, 3)
    process = start_replay(trace, server.url, tmp_path / "run", "--header", header)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitStatus.USAGE
    assert "header" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_cannot_start_ends_the_run(tmp_path: Path, workers: int) -> None:
    planned = plan([0.01 * number for number in range(10)])
    run = new_run(tmp_path / "run", "http://no-such-host.invalid", len(planned))
    address = Address("http", "no-such-host.invalid", 80)
    manifest = run_replay(ReplayPlan(planned=planned, address=address, sending=Sending(workers=workers)), run)
    records = records_of(run)
    assert (len(records), manifest.sent, manifest.unsent) == (10, 0, 10)
    assert (manifest.partial, manifest.fault) == (True, "server")
    assert "cannot be resolved" in (manifest.ended or "")
    assert {record.cause for record in records.values()} == {"worker_failed"}


def test_too_few_files_are_this_machines_fault(tmp_path: Path, server: MockProcess) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 300, 0.0, 100)
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
    pipe = subprocess.PIPE
    process = subprocess.Popen(limited(command, "-n 64"), stdout=pipe, stderr=pipe, text=True)
    manifest, errors = ended(process, tmp_path / "run", ExitStatus.MACHINE)
    records = records_of(RunDir.open(tmp_path / "run"))
    assert len(records) == 300
    unsent = [record for record in records.values() if record.status == "unsent"]
    assert len(unsent) == manifest.unsent
    assert len(unsent) > 200
    assert {record.cause for record in unsent} == {"this_machine"}
    assert all("open files" in (record.error or "") for record in unsent)
    assert "this_machine" in errors


def on_a_small_disk(folder: Path, size: str, command: list[str]) -> list[str]:
    """The command with a disk of its own, of that size, mounted on the folder; the folder's files are kept outside."""
    script = (
        'mount -t tmpfs -o size="$2" none "$1"; keep="$3"; shift 3; "$@"; code=$?; cp -r "$0"/. "$keep"; exit $code'
    )
    return ["unshare", "--mount", "sh", "-c", script, str(folder), str(folder), size, str(folder) + ".kept", *command]


def mounts(folder: Path) -> bool:
    """Whether this user may do that."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(on_a_small_disk(folder, "1m", ["true"]), check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_loses_no_request(tmp_path: Path, server: MockProcess, workers: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "disk.kept").mkdir()
    if not mounts(disk):
        pytest.skip("needs the right to mount")
    trace = write_trace(tmp_path / "t.jsonl", 400, 0.01, 400)
    command = replay_command(trace, server, disk / "run")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        on_a_small_disk(disk, "1200k", [*command, "--workers", str(workers)]), stdout=pipe, stderr=pipe, text=True
    )
    manifest, errors = ended(process, tmp_path / "disk.kept" / "run", ExitStatus.MACHINE)
    records = records_of(RunDir.open(tmp_path / "disk.kept" / "run"))
    assert len(records) == 400, errors
    assert "No space left" in (manifest.ended or "")
    assert sum(record.status == "ok" for record in records.values()) > 10
    assert (manifest.sent or 0) + (manifest.unsent or 0) == 400
    assert {record.cause for record in records.values() if record.status == "unsent"} <= {"worker_failed", "stopped"}


def test_no_room_at_the_start_is_said(tmp_path: Path, server: MockProcess) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 400, 0.01, 4)
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
    process = subprocess.run(limited(command, "-f 20"), capture_output=True, text=True, check=False)
    assert process.returncode == ExitStatus.MACHINE, process.stderr
    assert "no room" in process.stderr
    assert "Traceback" not in process.stderr


def locusts(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "locust" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    ("workers", "signals", "status"),
    [
        (1, [signal.SIGHUP], ExitStatus.INTERRUPTED),
        (3, [signal.SIGHUP], ExitStatus.INTERRUPTED),
        (2, [signal.SIGTERM], ExitStatus.INTERRUPTED),
    ],
)
def test_the_end_of_the_session_ends_the_run_in_order(
    tmp_path: Path, server: MockProcess, workers: int, signals: list[int], status: int
) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 400, 0.05, 100)
    process = start_replay(trace, server.url, tmp_path / "run", "--workers", str(workers))
    wait_for_records(tmp_path / "run", 3)
    for number in signals:
        process.send_signal(number)
    manifest, _ = ended(process, tmp_path / "run", status)
    assert (manifest.ended, manifest.fault) == ("interrupted", "user")
    assert len(records_of(RunDir.open(tmp_path / "run"))) == 400
    assert not (tmp_path / "run" / "plan").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_death_of_the_master_is_told(tmp_path: Path, server: MockProcess, workers: int) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 200, 0.05, 40)
    process = start_replay(trace, server.url, tmp_path / "run", "--workers", str(workers))
    wait_for_records(tmp_path / "run", 3)
    found = locusts(process.pid)
    master = next(child for child in found if "--worker" not in child.cmdline())
    master.kill()
    manifest, _ = ended(process, tmp_path / "run", ExitStatus.MACHINE)
    assert (manifest.ended, manifest.fault) == ("the load generator ended unexpectedly", "machine")
    assert len(records_of(RunDir.open(tmp_path / "run"))) == 200
    psutil.wait_procs(found, timeout=10)
    assert not [child for child in found if child.is_running()]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_interrupt_ends_a_run_whose_master_hangs(tmp_path: Path, server: MockProcess, workers: int) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 200, 0.05, 40)
    process = start_replay(trace, server.url, tmp_path / "run", "--workers", str(workers), "--drain", "100ms")
    wait_for_records(tmp_path / "run", 3)
    found = locusts(process.pid)
    master = next(child for child in found if "--worker" not in child.cmdline())
    master.suspend()
    process.send_signal(signal.SIGINT)
    ended(process, tmp_path / "run", ExitStatus.INTERRUPTED)
    assert len(records_of(RunDir.open(tmp_path / "run"))) == 200
    psutil.wait_procs(found, timeout=10)
    assert not [child for child in found if child.is_running()]


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path, server: MockProcess, workers: int) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 200, 0.05, 40)
    process = start_replay(trace, server.url, tmp_path / "run", "--workers", str(workers))
    wait_for_records(tmp_path / "run", 3)
    found = locusts(process.pid)
    assert len(found) == (1 if workers == 1 else 1 + workers)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(found, timeout=30)
    assert not alive


class Stranger:
    """Whoever speaks Locust's protocol at the master's port."""

    def __init__(self, port: int) -> None:
        import zmq

        self.socket: Any = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, b"stranger")
        self.socket.setsockopt(zmq.RCVTIMEO, 300)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def close(self) -> None:
        self.socket.close(0)

    def say(self, kind: str, data: Any) -> None:
        import msgpack

        self.socket.send(msgpack.dumps((kind, data, "stranger")))

    def hear(self) -> list[tuple[str, Any]]:
        import msgpack
        import zmq

        heard: list[tuple[str, Any]] = []
        while True:
            try:
                kind, data, _ = msgpack.loads(self.socket.recv(), strict_map_key=False)
            except zmq.Again:
                return heard
            heard.append((kind, data))


def test_a_stranger_gets_no_work_and_is_not_believed(tmp_path: Path, server: MockProcess) -> None:
    from kvload.workloads.swarm import messages

    trace = write_trace(tmp_path / "t.jsonl", 60, 0.02, 5)
    process = start_replay(trace, server.url, tmp_path / "run", "--workers", "2", "-q")
    port = None
    while port is None:
        time.sleep(0.05)
        for child in locusts(process.pid):
            words = child.cmdline()
            if "--master-bind-port" in words:
                port = int(words[words.index("--master-bind-port") + 1])
    stranger = Stranger(port)
    heard: list[tuple[str, Any]] = []
    while process.poll() is None:
        stranger.say("client_ready", "2.47.0")
        join = messages.Join(
            version="0", nonce="n", proof="0" * 64, client="stranger", machine="m", pid=1, host="elsewhere"
        )
        for message in (join, messages.Finished(pass_word="x"), messages.WantsShare(pass_word="0")):
            stranger.say(message.kind(), messages.encode(message))
        stranger.say("kvload_finished", {"shard": 0, "error": None})
        heard += stranger.hear()
    stranger.close()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    manifest = RunDir.open(tmp_path / "run").manifest()
    assert (manifest.ended, manifest.sent) == ("completed", 60)
    kinds = {kind for kind, _ in heard}
    assert "kvload_assign" not in kinds
    assert "kvload_share" not in kinds
    assert b"p1" not in repr(heard).encode()


def test_a_worker_that_joined_writes_through_its_master(tmp_path: Path, server: MockProcess) -> None:
    from tests.workloads.swarm.conftest import free_port

    trace = write_trace(tmp_path / "t.jsonl", 60, 0.05, 20)
    port = str(free_port())
    more = ["--master", "--expect-workers", "1", "--master-port", port, "--token", "t", "--workers", "0"]
    process = start_replay(trace, server.url, tmp_path / "run", *more)
    command = [sys.executable, "-m", "kvload", "replay", "--worker", "--master-port", port, "--token", "t"]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    wait_for_records(tmp_path / "run", 3)
    locusts(process.pid)[0].kill()
    ended(process, tmp_path / "run", ExitStatus.MACHINE)
    worker.send_signal(signal.SIGINT)
    worker.wait(30)
    assert len(records_of(RunDir.open(tmp_path / "run"))) == 60


def test_a_worker_with_another_token_or_version_says_so(tmp_path: Path, server: MockProcess) -> None:
    from tests.workloads.swarm.conftest import free_port

    trace = write_trace(tmp_path / "t.jsonl", 5, 0.01, 5)
    port = str(free_port())
    more = ["--master", "--expect-workers", "1", "--master-port", port, "--token", "t", "--workers", "0"]
    process = start_replay(trace, server.url, tmp_path / "run", *more)
    command = [sys.executable, "-m", "kvload", "replay", "--worker", "--master-port", port, "--token"]
    wrong = subprocess.run([*command, "other"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert wrong.returncode == ExitStatus.USAGE, wrong.stderr
    assert "token" in wrong.stderr
    right = subprocess.run([*command, "t"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, right.returncode) == (0, 0), errors + right.stderr
    assert "stranger" in errors


def test_records_that_come_after_the_end_do_not_spoil_the_folder(tmp_path: Path) -> None:
    import numpy as np

    from kvload.analysis.records.loading import load
    from kvload.rundir import CHUNK_DTYPE, UNACCOUNTED
    from kvload.workloads.run.recording import lost_record, unsent_record

    planned = plan([0.0, 0.1, 0.2])
    run = new_run(tmp_path / "run", "http://h", 3)
    nothing = np.empty(0, CHUNK_DTYPE)
    with run.writer(UNACCOUNTED) as writer:
        for request in planned:
            writer.append(lost_record(request, "worker_died", 0, "gone"), nothing)
    with run.writer("worker-0") as writer:
        writer.append(unsent_record(planned[1], "interrupted"), nothing)
    assert {index: record.cause for index, record in records_of(run).items()} == {
        0: "worker_died",
        1: "interrupted",
        2: "worker_died",
    }
    assert load(run).index.tolist() == [0, 1, 2]


def test_pipes_are_this_process_s_own() -> None:
    from kvload.workloads.swarm.pipes import own_pipes

    told = ["-f", "locustfile.py", "--worker", "--kvload-control-fd", "7", "--host", "http://127.0.0.1:1"]
    own = own_pipes(told)
    assert (own.events_fd, own.control_fd) == (None, 7)
    assert own_pipes(["--kvload-events-fd", "4"]).events_fd == 4
