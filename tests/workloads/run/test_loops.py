"""Closed loops one after the other, from this process: each with its own number in flight, a record a request."""

import os
import signal
import threading
import time
from pathlib import Path

from kvload.address import Address
from kvload.records import RunManifest, ServerInfo, TraceInfo
from kvload.rundir import RunDir
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.truth import read_truth
from kvload.workloads.run.loops import TIME_OVER, Loop, run_loops
from kvload.workloads.run.plan import ReplayPlan, Sending
from tests.workloads.run.test_dispatch import mock, plan


def prepared(folder: Path, url: str, count: int, tokens: int = 4) -> tuple[ReplayPlan, RunDir]:
    sending = Sending(concurrency=4, drain_s=10)
    planned = ReplayPlan(planned=plan([0.0] * count, tokens), address=Address.parse(url), sending=sending)
    manifest = RunManifest(
        run_id="r",
        kvload_version="0",
        servers=[ServerInfo(url=url)],
        trace=TraceInfo(path="t", sha256="", format="kvload", rows=count, used=count),
        mode="forced",
        seed=0,
        arrivals={"kind": "trace"},
        planned=count,
    )
    return planned, RunDir.create(folder, manifest)


def test_loops_follow_each_other_with_their_own_number_in_flight(tmp_path: Path) -> None:
    with mock(MockSettings(ttft_s=0.02, itl_s=0.002), tmp_path / "log") as url:
        planned, run = prepared(tmp_path / "run", url, 10)
        ends_s = time.monotonic() + 60
        manifest = run_loops(planned, run, [Loop(4, 1), Loop(6, 3)], ends_s=ends_s, cut_s=ends_s)
    assert manifest.ended == "completed"
    assert manifest.sent == 10
    assert not manifest.partial
    spans = sorted((truth.arrival_ns, truth.end_ns) for truth in read_truth(tmp_path / "log"))
    overlaps = [sum(begin <= start < end for begin, end in spans) for start, _ in spans]
    assert overlaps[:4] == [1] * 4
    assert max(overlaps[4:]) == 3
    assert spans[4][0] >= spans[3][1]


def test_a_run_whose_time_is_over_keeps_what_it_has(tmp_path: Path) -> None:
    with mock(MockSettings(ttft_s=0.05, itl_s=0.005)) as url:
        planned, run = prepared(tmp_path / "run", url, 400)
        ends_s = time.monotonic() + 0.4
        manifest = run_loops(planned, run, [Loop(200, 2), Loop(200, 2)], ends_s=ends_s, cut_s=ends_s + 10)
    records = {record.index: record.status for record, _ in run.records()}
    assert manifest.ended == TIME_OVER
    assert manifest.partial
    assert sorted(records) == list(range(400))
    assert set(records.values()) == {"ok", "unsent"}
    assert list(records.values()).count("ok") == manifest.sent


def test_an_end_that_is_asked_for_from_outside_cuts_answers_off(tmp_path: Path) -> None:
    with mock(MockSettings(ttft_s=0.05, itl_s=0.05)) as url:
        planned, run = prepared(tmp_path / "run", url, 8, tokens=1000)
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        ends_s = time.monotonic() + 60
        manifest = run_loops(planned, run, [Loop(8, 2)], ends_s=ends_s, cut_s=ends_s)
        timer.join()
    assert (manifest.ended, manifest.fault) == ("interrupted", "user")
    statuses = [record.status for record, _ in run.records()]
    assert statuses.count("censored") == 2
    assert statuses.count("unsent") == 6
