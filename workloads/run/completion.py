"""The end of a run: every planned request is accounted for, and the manifest says how it went."""

import importlib.metadata
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from kvload.errors import MachineError
from kvload.records import FailureKind, RequestRecord, RunManifest
from kvload.rundir import CHUNK_DTYPE, UNACCOUNTED, RunDir
from kvload.workloads.run.faults import Fault
from kvload.workloads.run.live import LiveBoard, LiveReport
from kvload.workloads.run.plan import ReplayPlan, shard_of
from kvload.workloads.run.recording import lost_record, unsent_record
from kvload.workloads.schedule.request import PlannedRequest

OWN_REASONS = frozenset({"former_turn", "too_long"})
"""Why a request may stay unsent although the run came to its end: reasons that are the request's own."""

_RESERVE_BYTES = 1 << 16
_RESERVE_PER_REQUEST = 512
"""Room for the final manifest and, at worst, a record for every request."""


def reserve(run: RunDir, planned: int) -> None:
    """Keep room on the disk for :func:`complete`.

    Raises:
        MachineError: there is none.
    """
    run.reserve(_RESERVE_BYTES + _RESERVE_PER_REQUEST * planned)


@dataclass
class WorkerFailure:
    """A worker that could not go on.

    Attributes:
        error, fault: what failed, and whose doing it was.
        unrecorded: requests that were sent and whose record could not be written.
        started: it had been ready to send.
    """

    error: str
    fault: Fault
    unrecorded: frozenset[int] = frozenset()
    started: bool = True


@dataclass
class Outcome:
    """What is known of a run besides its records: gathered from the events its coordinator tells.

    Attributes:
        board: the workers' figures.
        zero_ns, started_at: the run's zero on the monotonic clock and in Unix seconds; None if it never started.
        ended, fault: why it ended early and whose doing that was; None if it did not.
        over: the last worker has finished.
        lost: shards whose worker died, with the monotonic time at which that was noticed.
        failed: shards whose worker could not go on.
        errors: what went wrong in the load generator itself.
        machine: how busy this machine was, see :mod:`kvload.workloads.run.machine_use`.
    """

    board: LiveBoard
    zero_ns: int | None = None
    started_at: float | None = None
    ended: str | None = None
    fault: Fault | None = None
    over: bool = False
    lost: dict[int, int] = field(default_factory=dict)
    failed: dict[int, WorkerFailure] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    machine: dict[str, float] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Take in one event; returns a sentence for the user where there is something to say."""
        kind = event["event"]
        notice: str | None = None
        if kind == "live":
            self.board.take(msgspec.convert(event["report"], LiveReport, strict=False))
        elif kind == "started":
            self.zero_ns = event["zero_ns"]
            self.started_at = event["started_at"]
        elif kind == "worker_lost":
            self.lost[event["shard"]] = event["at_ns"]
            notice = f"worker {event['shard']} died; the others go on"
        elif kind == "worker_error":
            notice = self._worker_failed(event)
        elif kind == "master_error":
            notice = f"the load generator: {event['error']}"
            self.errors.append(notice)
            self.end_by(notice, event.get("fault") or "kvload")
        elif kind == "notice":
            notice = event["text"]
        elif kind == "stopped":
            self.end_by(event["cause"], "user" if event["cause"] == "interrupted" else None)
        elif kind == "over":
            self.over = True
        return notice

    def _worker_failed(self, event: Mapping[str, Any]) -> str:
        shard = event["shard"]
        notice = f"worker {shard}: {event['error']}" if shard is not None else f"the workers: {event['error']}"
        self.errors.append(notice)
        if shard is not None:
            unrecorded = frozenset(event.get("unrecorded") or ())
            fault: Fault = event.get("fault") or "kvload"
            self.failed[shard] = WorkerFailure(event["error"], fault, unrecorded, event.get("started", True))
        else:
            self.end_by(notice, "machine")
        return notice

    def end_by(self, reason: str, fault: Fault | None) -> None:
        """The run ends early; the first reason is the one that counts."""
        if self.ended is None:
            self.ended, self.fault = reason, fault


def complete(run: RunDir, plan: ReplayPlan, outcome: Outcome) -> RunManifest:
    """Write records for requests that nobody accounted for, and the final manifest.

    Raises:
        MachineError: they cannot be written, even in the room that was kept for them.
    """
    run.release()
    try:
        return _complete(run, plan, outcome)
    except OSError as error:
        raise MachineError(
            f"the run folder could not be completed: {error.strerror}",
            where=str(run.path),
            hint="what was measured is in it: free some room and run kvload report on it",
        ) from error


def _complete(run: RunDir, plan: ReplayPlan, outcome: Outcome) -> RunManifest:
    torn = run.torn_records()
    statuses: dict[int, tuple[str, str | None]] = {}
    failures = _Failures()
    end_s = 0.0
    clocks: set[str] = set()
    for record, _ in run.records():
        statuses[record.index] = (record.status, record.cause)
        failures.add(record)
        end_s = max(end_s, record.t_end_s or 0.0)
        if record.t_headers_s is not None:
            clocks.add(record.clock)
    missing = [request for request in plan.planned if request.index not in statuses]
    for record in _account_for(missing, run, plan, outcome):
        statuses[record.index] = (record.status, record.cause)
        failures.add(record)
    unsent = sum(status == "unsent" for status, _ in statuses.values())
    cut = sum(status == "censored" for status, _ in statuses.values())
    ended, fault = _why(statuses.values(), outcome)
    notes = list(run.manifest().notes)
    if outcome.lost:
        notes.append(f"workers {sorted(outcome.lost)} died during the run: {len(missing)} requests without an outcome")
    if torn:
        notes.append(f"{torn} records were cut short by the death of their worker")
    notes += outcome.errors
    if cut:
        notes.append(f"{cut} answers were cut off at the end of the run (censored)")
    return run.update_manifest(
        started_at=outcome.started_at,
        duration_s=end_s,
        sent=len(statuses) - unsent,
        unsent=unsent,
        partial=ended is not None,
        ended=ended or "completed",
        fault=fault,
        failures=failures.kinds(),
        client=_client(plan, outcome.board, clocks, end_s) | outcome.machine,
        notes=notes,
    )


class _Failures:
    """The ways in which requests ended other than well, with what the first of each was told."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Any, str | None]] = Counter()
        self._firsts: dict[tuple[Any, str | None], RequestRecord] = {}

    def add(self, record: RequestRecord) -> None:
        if record.status == "ok":
            return
        kind = (record.status, record.cause)
        self._counts[kind] += 1
        first = self._firsts.get(kind)
        if first is None or (first.error is None and record.error is not None):
            self._firsts[kind] = record

    def kinds(self) -> list[FailureKind]:
        return [
            FailureKind(
                status=status,
                cause=cause,
                count=count,
                first=self._firsts[status, cause].error,
                request_id=self._firsts[status, cause].request_id,
            )
            for (status, cause), count in self._counts.most_common()
        ]


def _why(statuses: Any, outcome: Outcome) -> tuple[str | None, Fault | None]:
    """Why the run is not complete, and whose doing it was; None where it is.

    It is complete if every planned request was sent, or has a reason of its own for which it was not.
    """
    if outcome.ended is not None:
        return outcome.ended, outcome.fault
    if outcome.failed:
        first = next(iter(outcome.failed.values()))
        return f"a worker failed: {first.error}", first.fault
    if outcome.lost:
        return "a worker died", "machine"
    unsent = Counter(cause for status, cause in statuses if status == "unsent" and cause not in OWN_REASONS)
    if not unsent:
        return None, None
    cause, count = unsent.most_common(1)[0]
    return f"{count} requests were not sent: {cause}", "machine" if cause == "this_machine" else "kvload"


def _account_for(
    missing: Sequence[PlannedRequest], run: RunDir, plan: ReplayPlan, outcome: Outcome
) -> list[RequestRecord]:
    """Records for requests without one: under way in a worker that died, not written down, or never sent."""
    if not missing:
        return []
    shares = shard_of(plan.planned, plan.all_workers)
    records = []
    with run.writer(UNACCOUNTED) as writer:
        for request in missing:
            record = _account_for_one(request, shares[request.index], plan, outcome)
            writer.append(record, np.empty(0, CHUNK_DTYPE))
            records.append(record)
    return records


def _account_for_one(request: PlannedRequest, shard: int, plan: ReplayPlan, outcome: Outcome) -> RequestRecord:
    failure = outcome.failed.get(shard)
    if failure is not None:
        if request.index in failure.unrecorded:
            return lost_record(request, "unrecorded", shard, f"its record could not be written: {failure.error}")
        return unsent_record(request, "worker_failed", shard)
    died_ns = outcome.lost.get(shard, time.monotonic_ns())
    was_due = outcome.zero_ns is not None and outcome.zero_ns + request.offset_s * 1e9 <= died_ns
    if was_due and request.previous is None and not plan.sending.concurrency:
        return lost_record(request, "worker_died", shard, "under way when its worker died")
    return unsent_record(request, "worker_died" if shard in outcome.lost else "interrupted", shard)


def _client(plan: ReplayPlan, board: LiveBoard, clocks: set[str], duration_s: float) -> dict[str, Any]:
    cpu = board.cpu_s()
    return {
        "workers": plan.all_workers,
        "remote_workers": plan.swarm.remote_workers,
        "clocks": sorted(clocks),
        "cpu_share": {str(worker): round(used / duration_s, 4) for worker, used in cpu.items() if duration_s > 0},
        "cpu_s": {str(worker): round(used, 3) for worker, used in cpu.items()},
        "rss_bytes": {str(worker): peak for worker, peak in board.rss_bytes().items()},
        "stale_connection_retries": board.total("retries"),
        "chunks_sharing_a_read": board.total("merged_reads"),
        "timeout_s": plan.sending.timeout_s,
        "drain_s": plan.sending.drain_s,
        "concurrency": plan.sending.concurrency,
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        # asked of its metadata: to import Locust is to have the standard library patched
        "locust": importlib.metadata.version("locust"),
        "cpus": len(os.sched_getaffinity(0)),
    }
