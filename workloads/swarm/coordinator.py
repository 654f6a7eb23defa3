"""The master's side of a run inside a Locust process: hands out shares, gathers records and figures, tells the parent.

With workers on this machine only their figures pass through here: records go straight to the run folder. Records of
workers elsewhere come as Locust messages and are written here at once, whatever the web page does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import msgspec
import numpy as np

from kvload.records import RequestRecord, ServerSample
from kvload.rundir import CHUNK_DTYPE, RecordWriter, RunDir
from kvload.workloads.client.network import machine_id
from kvload.workloads.run.history import LiveHistory
from kvload.workloads.run.live import LiveBoard, LiveReport
from kvload.workloads.run.plan import read_settings, shard_path

START_DELAY_NS = 600_000_000
REMOTE_START_DELAY_NS = 1_500_000_000
_PART_BYTES = 1 << 20


@dataclass
class _Worker:
    """A worker as the master sees it."""

    client_id: str | None
    shard: int
    machine: str | None = None
    pid: int | None = None
    ready: bool = False
    finished: bool = False
    lost: bool = False
    sent: int = 0
    writer: RecordWriter | None = None


class Coordinator:
    """Runs in the master, or in the only process of a run without workers of its own.

    Args:
        runner: Locust's runner.
        plan_folder: the spooled plan.
        tell: takes one event (a JSON object) for the parent process.
        when_over: called once when the last worker has finished or is lost.
    """

    def __init__(
        self, runner: Any, plan_folder: Path, tell: Callable[[dict[str, Any]], None], when_over: Callable[[], None]
    ) -> None:
        self._runner = runner
        self._folder = plan_folder
        self._tell = tell
        self._when_over = when_over
        self.settings = read_settings(plan_folder)
        self._run = RunDir(Path(self.settings.run_path))
        self._report = msgspec.json.Decoder(LiveReport)
        self._record = msgspec.json.Decoder(RequestRecord)
        self.board = LiveBoard(self.settings.slo)
        self.history = LiveHistory()
        self._workers: dict[int, _Worker] = {}
        self.zero_ns: int | None = None
        self.state = "waiting"
        self._stop_cause: str | None = None

    def begin(self) -> None:
        """Hand out the shares and, when all workers are ready, start them."""
        if self.state != "waiting":
            return
        self.state = "preparing"
        clients = getattr(self._runner, "clients", None)
        ids = [None] if clients is None else [client.id for client in clients.all][: self.settings.shards]
        for shard, client_id in enumerate(ids):
            self._workers[shard] = _Worker(client_id, shard)
        if len(ids) < self.settings.shards:
            self._tell({"event": "notice", "text": f"only {len(ids)} of {self.settings.shards} workers are there"})
        for worker in self._workers.values():
            # with the machine's id the worker can tell whether the run folder is within its reach
            data = {"shard": worker.shard, "machine": machine_id(), "settings": msgspec.json.encode(self.settings)}
            self._message("kvload_assign", data, worker)
        if clients is not None:
            gevent.spawn(self._watch_workers)
        gevent.spawn(self._draw_history)

    def wants_share(self, shard: int) -> None:
        """A worker elsewhere asks for its share's bytes."""
        worker = self._workers[shard]
        data = shard_path(self._folder, shard).read_bytes()
        for start in range(0, max(len(data), 1), _PART_BYTES):
            part = {"data": data[start : start + _PART_BYTES], "last": start + _PART_BYTES >= len(data)}
            self._message("kvload_share", part, worker)
        worker.writer = self._run.writer(f"worker-{shard}")

    def is_ready(self, shard: int, machine: str, pid: int) -> None:
        """A worker has its share and waits for the start."""
        worker = self._workers[shard]
        worker.ready, worker.machine, worker.pid = True, machine, pid
        self._go_when_all_are_ready()

    def _go_when_all_are_ready(self) -> None:
        if not all(other.ready or other.lost for other in self._workers.values()) or self.zero_ns is not None:
            return
        remote = any(other.machine not in {None, machine_id()} for other in self._workers.values())
        self.zero_ns = time.monotonic_ns() + (REMOTE_START_DELAY_NS if remote else START_DELAY_NS)
        wall_ns = self.zero_ns + time.time_ns() - time.monotonic_ns()
        self.state = "running"
        self._tell({"event": "started", "zero_ns": self.zero_ns, "started_at": wall_ns / 1e9})
        for other in self._workers.values():
            data = {"machine": machine_id(), "zero_ns": self.zero_ns, "zero_wall_ns": wall_ns}
            self._message("kvload_go", data, other)
        if self._stop_cause is not None:
            self.stop(self._stop_cause, cut=False)

    def stop(self, cause: str, *, cut: bool) -> None:
        """Tell every worker to send nothing more, and with ``cut`` to end what is in flight."""
        self._stop_cause = cause
        self._tell({"event": "stopped", "cause": cause})
        if self.state == "waiting":
            self._over()
        for worker in self._workers.values():
            if worker.ready and not worker.finished and not worker.lost:
                self._message("kvload_stop", {"cause": cause, "cut": cut}, worker)

    def take_live(self, encoded: bytes) -> None:
        """A worker's figures."""
        report = self._report.decode(encoded)
        self.board.take(report)
        if report.worker in self._workers:
            self._workers[report.worker].sent = report.sent
        self._tell({"event": "live", "report": msgspec.to_builtins(report, str_keys=True)})

    def take_records(self, shard: int, records: list[bytes], chunks: list[bytes]) -> None:
        """Records of a worker elsewhere."""
        writer = self._workers[shard].writer
        if writer is None:
            return
        for record, rows in zip(records, chunks, strict=True):
            writer.append(self._record.decode(record), np.frombuffer(rows, CHUNK_DTYPE))

    def take_sample(self, sample: ServerSample) -> None:
        """A scrape of the server's metrics, for the page."""
        self.history.cache_usage = sample.cache_usage

    def has_finished(self, shard: int, error: str | None) -> None:
        """A worker has accounted for its whole share, or has failed."""
        worker = self._workers[shard]
        worker.finished = True
        if worker.writer is not None:
            worker.writer.close()
        if error:
            self._tell({"event": "worker_error", "shard": shard, "error": error})
        self._check_over()

    def _check_over(self) -> None:
        if self.state != "over" and all(worker.finished or worker.lost for worker in self._workers.values()):
            self._over()

    def _over(self) -> None:
        self.state = "over"
        self._tell({"event": "over"})
        self._when_over()

    def _watch_workers(self) -> None:
        """Notice workers that Locust has given up, or that left."""
        while self.state not in {"over"}:
            clients = self._runner.clients
            for worker in self._workers.values():
                if worker.finished or worker.lost:
                    continue
                client = clients.get(worker.client_id) if worker.client_id in clients else None
                if client is None or client.state == "missing":
                    self._lose(worker)
            self._check_over()
            gevent.sleep(0.5)

    def lose_local(self, pid: int) -> None:
        """The parent saw a worker process of this machine end: sooner than Locust misses its heartbeats."""
        for worker in self._workers.values():
            if (worker.machine, worker.pid) == (machine_id(), pid) and not (worker.finished or worker.lost):
                self._lose(worker)
        self._check_over()

    def _lose(self, worker: _Worker) -> None:
        worker.lost = True
        if worker.writer is not None:
            worker.writer.close()
        self._tell({"event": "worker_lost", "shard": worker.shard, "at_ns": time.monotonic_ns(), "sent": worker.sent})
        if any(other.ready and not other.lost for other in self._workers.values()):
            self._go_when_all_are_ready()

    def _message(self, kind: str, data: dict[str, Any], worker: _Worker) -> None:
        self._runner.send_message(kind, data, worker.client_id)

    def _draw_history(self) -> None:
        """One point a second for the page's charts."""
        while self.state != "over":
            gevent.sleep(1.0)
            if self.zero_ns is not None:
                self.history.add(self.point())

    def point(self) -> dict[str, Any]:
        """The run as it stands, for the page: totals, and percentiles of the last seconds."""
        elapsed = 0.0 if self.zero_ns is None else (time.monotonic_ns() - self.zero_ns) / 1e9
        return self.history.point(self.board, elapsed)

    def history_since(self, number: int) -> dict[str, Any]:
        """What the page asks for: the points from that number on, and the run as it stands."""
        points, following = self.history.since(number)
        now = self.point()
        return {
            "state": self.state,
            "server": self.settings.address.url,
            "points": points,
            "next": following,
            "now": now,
        }
