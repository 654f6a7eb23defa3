"""The end of a run: every planned request is accounted for, and the manifest says how it went."""

import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from kvload.records import RunManifest
from kvload.rundir import CHUNK_DTYPE, RunDir
from kvload.workloads.run.live import LiveBoard, LiveReport
from kvload.workloads.run.plan import ReplayPlan, shard_of
from kvload.workloads.run.recording import lost_record, unsent_record
from kvload.workloads.schedule.request import PlannedRequest


@dataclass
class Outcome:
    """What is known of a run besides its records: gathered from the events its coordinator tells.

    Attributes:
        board: the workers' figures.
        zero_ns, started_at: the run's zero on the monotonic clock and in Unix seconds; None if it never started.
        ended: why it ended early; None if it did not.
        over: the last worker has finished.
        lost: shards whose worker died, with the monotonic time at which that was noticed.
        errors: what went wrong in the load generator itself.
    """

    board: LiveBoard
    zero_ns: int | None = None
    started_at: float | None = None
    ended: str | None = None
    over: bool = False
    lost: dict[int, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

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
            notice = f"worker {event['shard']}: {event['error']}"
            self.errors.append(notice)
        elif kind == "notice":
            notice = event["text"]
        elif kind == "stopped":
            self.ended = self.ended or event["cause"]
        elif kind == "over":
            self.over = True
        return notice


def complete(run: RunDir, plan: ReplayPlan, outcome: Outcome) -> RunManifest:
    """Write records for requests that nobody accounted for, and the final manifest."""
    torn = run.torn_records()
    statuses: dict[int, str] = {}
    end_s = 0.0
    clocks: set[str] = set()
    for record, _ in run.records():
        statuses[record.index] = record.status
        end_s = max(end_s, record.t_end_s or 0.0)
        if record.t_headers_s is not None:
            clocks.add(record.clock)
    missing = [request for request in plan.planned if request.index not in statuses]
    if missing:
        _account_for(missing, statuses, run, plan, outcome)
    unsent = sum(status == "unsent" for status in statuses.values())
    cut = sum(status == "censored" for status in statuses.values())
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
        partial=outcome.ended is not None or bool(outcome.lost),
        ended=outcome.ended or ("a worker died" if outcome.lost else "completed"),
        client=_client(plan, outcome.board, clocks, end_s),
        notes=notes,
    )


def _account_for(
    missing: Sequence[PlannedRequest], statuses: dict[int, str], run: RunDir, plan: ReplayPlan, outcome: Outcome
) -> None:
    """Requests without a record were under way in a worker that died, or were never sent."""
    shares = shard_of(plan.planned, plan.all_workers)
    with run.writer("unaccounted") as writer:
        for request in missing:
            shard = shares[request.index]
            died_ns = outcome.lost.get(shard, time.monotonic_ns())
            was_due = outcome.zero_ns is not None and outcome.zero_ns + request.offset_s * 1e9 <= died_ns
            if was_due and request.previous is None and not plan.sending.concurrency:
                record = lost_record(request, "worker_died", shard, "under way when its worker died")
            else:
                cause = "worker_died" if shard in outcome.lost else "interrupted"
                record = unsent_record(request, cause, shard)
            writer.append(record, np.empty(0, CHUNK_DTYPE))
            statuses[request.index] = record.status


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
