"""Whole replays in real processes: Locust, its workers, the mock server, and what becomes of them when they die."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kvload.address import Address
from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo
from kvload.rundir import RunDir
from kvload.workloads.mock.behaviour import FAULTS, HARMLESS, MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.mock.truth import read_truth
from kvload.workloads.run.live import Progress
from kvload.workloads.run.plan import ReplayPlan, Sending, decode_share, shard_path, spool
from kvload.workloads.run.replay import Hooks, run_replay
from kvload.workloads.schedule.request import PlannedRequest
from tests.workloads.run.test_dispatch import plan

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MockProcess]:
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.005), tmp_path / "truth") as process:
        yield process


def new_run(path: Path, url: str, planned: int) -> RunDir:
    manifest = RunManifest(
        run_id="r",
        kvload_version="0",
        servers=[ServerInfo(url=url)],
        trace=TraceInfo(path="t", sha256="", format="kvload", rows=planned, used=planned),
        mode="free",
        seed=0,
        arrivals={"kind": "trace"},
        planned=planned,
    )
    return RunDir.create(path, manifest)


def records_of(run: RunDir) -> dict[int, RequestRecord]:
    found = [record for record, _ in run.records()]
    assert len(found) == len({record.index for record in found}), "a request has two records"
    return {record.index: record for record in found}


def test_one_and_two_workers_send_the_same_trace(tmp_path: Path, server: MockProcess) -> None:
    planned = plan([number * 0.02 for number in range(30)])
    seen: list[Progress] = []
    bodies = []
    for workers in (1, 2):
        run = new_run(tmp_path / f"run{workers}", server.url, len(planned))
        manifest = run_replay(
            ReplayPlan(planned=planned, address=server.address, sending=Sending(workers=workers)),
            run,
            Hooks(seen.append),
        )
        records = records_of(run)
        assert (manifest.sent, manifest.unsent, manifest.partial, manifest.ended) == (30, 0, False, "completed")
        assert {record.worker for record in records.values()} == set(range(workers))
        assert all(record.status == "ok" and record.output_tokens == 4 for record in records.values())
        assert all(record.worker == index % workers for index, record in records.items())
        bodies.append(sorted((index, record.request_id, record.t_sched_s) for index, record in records.items()))
        assert not (run.path / "plan").exists()
        assert set(manifest.client["cpu_share"]) == {str(worker) for worker in range(workers)}
    assert bodies[0] == bodies[1]
    assert (seen[-1].state, seen[-1].done, seen[-1].in_flight) == ("ended", 30, 0)
    arrived = [truth.request_id for truth in read_truth(tmp_path / "truth")]
    assert sorted(arrived) == sorted(2 * [f"kvload-{index}" for index in range(30)])


def test_shares_are_the_whole_schedule_and_keep_conversations_together(tmp_path: Path) -> None:
    planned = [
        PlannedRequest(
            index=index,
            offset_s=index / 10,
            request_id=str(index),
            path="/",
            body=b"x",
            prompt_digest="",
            max_tokens=1,
            previous=index - 3 if index >= 3 and index % 2 else None,
        )
        for index in range(20)
    ]
    folder = spool(ReplayPlan(planned=planned, address=Address.parse("http://h"), sending=Sending(workers=3)), tmp_path)
    shares = [list(decode_share(shard_path(folder, shard).read_bytes())) for shard in range(3)]
    assert sorted((request for share in shares for request in share), key=lambda request: request.index) == planned
    for share in shares:
        own = {request.index for request in share}
        assert all(request.previous in own for request in share if request.previous is not None)


def test_every_fault_is_accounted_for(tmp_path: Path) -> None:
    planned = [
        request
        for number, fault in enumerate(sorted(FAULTS))
        for request in [plan([0.0] * (number + 1), prompt=f"fault:{fault}", tokens=8)[number]]
    ]
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.01), tmp_path / "truth") as server:
        run = new_run(tmp_path / "run", server.url, len(planned))
        manifest = run_replay(ReplayPlan(planned=planned, address=server.address, sending=Sending(timeout_s=2.0)), run)
    records = records_of(run)
    assert len(records) == len(planned) == manifest.sent
    for number, fault in enumerate(sorted(FAULTS)):
        record = records[number]
        assert (record.status == "ok") == (fault in HARMLESS), fault
        assert (record.cause is None) == (fault in HARMLESS), fault
    assert not manifest.partial
    struck = {truth.fault for truth in read_truth(tmp_path / "truth")}
    assert struck == set(FAULTS)


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_a_worker_that_is_killed_takes_only_its_own_along(tmp_path: Path, server: MockProcess) -> None:
    planned = plan([number * 0.05 for number in range(80)], tokens=40)
    run = new_run(tmp_path / "run", server.url, len(planned))
    notices: list[str] = []
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        if progress.done >= 10 and not killed:
            workers = [child for child in children_of(os.getpid()) if "--worker" in child.cmdline()]
            killed.append(workers[0].pid)
            workers[0].send_signal(signal.SIGKILL)

    manifest = run_replay(
        ReplayPlan(planned=planned, address=server.address, sending=Sending(workers=2)),
        run,
        Hooks(kill_one, on_notice=notices.append),
    )
    records = records_of(run)
    assert killed
    assert len(records) == 80
    lost = {record.worker for record in records.values() if record.cause == "worker_died"}
    assert len(lost) == 1
    (dead,) = lost
    assert all(record.status == "ok" for record in records.values() if record.worker != dead)
    own = [record for record in records.values() if record.worker == dead]
    assert {record.status for record in own} >= {"ok", "unsent"}
    assert any(f"worker {dead} died" in notice for notice in notices)
    assert manifest.partial
    assert manifest.ended == "a worker died"
    assert (manifest.sent or 0) + (manifest.unsent or 0) == 80


def write_trace(path: Path, count: int, gap_s: float, tokens: int) -> Path:
    lines = [
        json.dumps({"id": f"r{number}", "arrival": number * gap_s, "prompt": f"p{number}", "max_tokens": tokens})
        for number in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def start_replay(trace: Path, url: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvload", "replay", str(trace), "--url", url, "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out.parent)


def wait_for_records(out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = sum(path.read_bytes().count(b"\n") for path in out.glob("records/*.jsonl"))
        if lines >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no records")


@pytest.mark.parametrize("times", [1, 2])
def test_interrupts(tmp_path: Path, server: MockProcess, times: int) -> None:
    # answers of 0.5 s: at the first interrupt some are in flight, and with a second one they are cut
    trace = write_trace(tmp_path / "t.jsonl", 400, 0.05, 100)
    process = start_replay(trace, server.url, tmp_path / "run")
    wait_for_records(tmp_path / "run", 3)
    process.send_signal(signal.SIGINT)
    if times == 2:
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    manifest = RunDir.open(tmp_path / "run").manifest()
    records = records_of(RunDir.open(tmp_path / "run"))
    assert (manifest.partial, manifest.ended, len(records)) == (True, "interrupted", 400)
    counted = {status: sum(record.status == status for record in records.values()) for status in ("ok", "censored")}
    assert counted["ok"] >= 3
    assert (counted["censored"] > 0) == (times == 2)
    assert manifest.unsent == 400 - counted["ok"] - counted["censored"]
    assert "partial" in output


def test_a_server_that_dies_ends_the_run(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 2000, 0.02, 5)
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.005)) as server:
        process = start_replay(trace, server.url, tmp_path / "run")
        wait_for_records(tmp_path / "run", 5)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "the server died" in errors
    records = records_of(RunDir.open(tmp_path / "run"))
    assert len(records) == 2000
    assert any(record.status == "ok" for record in records.values())
    causes = {record.cause for record in records.values() if record.status == "unsent"}
    assert causes == {"server_died"}
    assert {record.cause for record in records.values() if record.status == "failed"} <= {
        "connect",
        "reset",
        "truncated",
    }
    assert "partial" in output


def test_keys_are_written_nowhere(tmp_path: Path, server: MockProcess) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 2, 0.01, 3)
    process = start_replay(trace, server.url, tmp_path / "run", "--header", "Authorization: Bearer sEcReT", "--json")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(output)["completed"] == 2
    everything = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"sEcReT" not in everything
    assert "sEcReT" not in output + errors


def test_wrong_use(tmp_path: Path, server: MockProcess) -> None:
    trace = write_trace(tmp_path / "t.jsonl", 2, 0.01, 3)
    for more in (
        ["--slo", "ttft=fast"],
        ["--rate", "x"],
        ["--concurrency", "2", "--rate", "3"],
        ["ttft"],
        ["--url", "ftp://x"],
        ["--fail-if", "nonsense"],
        ["--header", "no colon"],
    ):
        process = start_replay(trace, server.url, tmp_path / "run", *more)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2, (more, errors)
        assert "Traceback" not in errors
        assert not (tmp_path / "run").exists()
