"""The master's side of a run inside a Locust process: hands out shares, gathers records and figures, tells the parent.

With workers on this machine only their figures pass through here: records go straight to the run folder. Records of
workers elsewhere come as messages and are written here at once, whatever the web page does.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import msgspec
import numpy as np

from kvload import __version__
from kvload.records import RequestRecord, ServerSample
from kvload.rundir import CHUNK_DTYPE, RecordWriter, RunDir
from kvload.workloads.client.network import machine_id
from kvload.workloads.run.faults import describe, fault_of
from kvload.workloads.run.history import LiveHistory
from kvload.workloads.run.live import LiveBoard, LiveReport
from kvload.workloads.run.plan import read_settings, shard_path
from kvload.workloads.swarm import messages
from kvload.workloads.swarm.messages import Assign, Finished, Go, Hello, Join, Message, Ping, Pong, Refuse, Share, Stop

START_DELAY_NS = 600_000_000
REMOTE_START_DELAY_NS = 1_500_000_000
START_PATIENCE_S = 60.0
"""How long workers of this machine may take to be there, and any worker to get ready, beside what its share takes."""

GREET_AGAIN_S = 1.0
"""A client that has not answered is greeted again: Locust drops what comes before a worker's handlers are there."""

SHARE_BYTES_PER_S = 5e6
_PART_BYTES = 1 << 20
_LOOK_EVERY_S = 0.2


@dataclass
class _Worker:
    """A worker as the master sees it."""

    client_id: str | None
    shard: int
    pass_word: str
    machine: str
    pid: int
    ready_until: float
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
        token: what workers prove to know.
        tell: takes one event (a JSON object) for the parent process.
        when_over: called once when the last worker has finished or is lost.
    """

    def __init__(
        self,
        runner: Any,
        plan_folder: Path,
        token: str,
        tell: Callable[[dict[str, Any]], None],
        when_over: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._folder = plan_folder
        self._token = token
        self._tell = tell
        self._when_over = when_over
        self.settings = read_settings(plan_folder)
        self._run = RunDir(Path(self.settings.run_path))
        self._report = msgspec.json.Decoder(LiveReport)
        self._record = msgspec.json.Decoder(RequestRecord)
        self.board = LiveBoard(self.settings.slo)
        self.history = LiveHistory()
        self._workers: dict[int, _Worker] = {}
        self._greeted: dict[str | None, str] = {}
        self._greeted_at_s: dict[str | None, float] = {}
        self._refused: set[str | None] = set()
        self._begun_s = 0.0
        self.zero_ns: int | None = None
        self.state = "waiting"
        self._stop_cause: str | None = None

    def begin(self) -> None:
        """Greet whoever is there and, when every share is with a worker that is ready, start them."""
        if self.state != "waiting":
            return
        self.state = "preparing"
        self._begun_s = time.monotonic()
        if getattr(self._runner, "clients", None) is None:
            self._greet(None)

    def look(self) -> None:
        """Greet workers that came, and notice those that left, do not get ready, or never come."""
        if self.state not in {"preparing", "running"}:
            return
        clients = getattr(self._runner, "clients", None)
        if clients is not None:
            for client in list(clients.all):
                self._greet(client.id)
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.finished or worker.lost:
                continue
            client = None if clients is None else clients.get(worker.client_id)
            if clients is not None and (client is None or client.state == "missing"):
                self._lose(worker)
            elif not worker.ready and now > worker.ready_until:
                self._fail(worker, "it did not get ready in time")
        missing = self.settings.shards - len(self._workers)
        if missing and self.settings.remote_workers == 0 and now > self._begun_s + START_PATIENCE_S:
            self._tell({"event": "worker_error", "shard": None, "error": f"{missing} workers did not come"})
            self.stop("worker_failed", cut=True)
        self._check_over()

    def _greet(self, client_id: str | None) -> None:
        """Greet a client, and once more after a while: one that is not set up yet does not hear it."""
        now_s = time.monotonic()
        there = client_id in self._refused or any(each.client_id == client_id for each in self._workers.values())
        if there or len(self._workers) >= self.settings.shards:
            return
        if now_s < self._greeted_at_s.get(client_id, -math.inf) + GREET_AGAIN_S:
            return
        self._greeted_at_s[client_id] = now_s
        nonce = self._greeted.setdefault(client_id, messages.new_nonce())
        self._message(Hello(version=__version__, nonce=nonce), client_id)

    def joins(self, join: Join) -> None:
        """A worker says that it is there: if it is one of this run, it gets its share."""
        client_id = None if getattr(self._runner, "clients", None) is None else join.client
        nonce = self._greeted.get(client_id)
        if nonce is None or any(worker.client_id == client_id for worker in self._workers.values()):
            return
        if not messages.proves(join.proof, self._token, "join", nonce, join.client):
            self._refused.add(client_id)
            self._tell({"event": "notice", "text": "a stranger at the master's port was given no work"})
            self._message(Refuse(reason="it does not know the run's token: --token"), client_id)
            return
        if join.version != __version__:
            reason = f"it is kvload {join.version}, the master is kvload {__version__}"
            self._refused.add(client_id)
            self._tell({"event": "notice", "text": f"a worker on {join.host} was given no work: {reason}"})
            self._message(Refuse(reason=reason), client_id)
            return
        shard = len(self._workers)
        if shard >= self.settings.shards or self.state != "preparing":
            self._message(Refuse(reason="the run has all its workers"), client_id)
            return
        size = shard_path(self._folder, shard).stat().st_size
        until = time.monotonic() + START_PATIENCE_S + size / SHARE_BYTES_PER_S
        pass_word = messages.new_nonce()
        self._workers[shard] = _Worker(client_id, shard, pass_word, join.machine, join.pid, until)
        assign = Assign(
            shard=shard,
            machine=machine_id(),
            settings=self.settings,
            pass_word=pass_word,
            proof=messages.proof(self._token, "assign", join.nonce, pass_word),
        )
        self._message(assign, client_id)

    @property
    def waits_for_workers(self) -> bool:
        """The run wants to start, and no worker has come yet."""
        return self.state == "preparing" and not self._workers

    def known(self, pass_word: str) -> _Worker | None:
        """The worker that was given this pass word."""
        return next((worker for worker in self._workers.values() if worker.pass_word == pass_word), None)

    def wants_share(self, worker: _Worker) -> None:
        """A worker elsewhere asks for its share's bytes."""
        data = shard_path(self._folder, worker.shard).read_bytes()
        for start in range(0, max(len(data), 1), _PART_BYTES):
            part = Share(data=data[start : start + _PART_BYTES], last=start + _PART_BYTES >= len(data))
            self._message(part, worker.client_id)
        worker.writer = self._run.writer(f"worker-{worker.shard}")

    def is_ready(self, worker: _Worker) -> None:
        """A worker has its share and waits for the start."""
        worker.ready = True
        self._go_when_all_are_ready()

    def _go_when_all_are_ready(self) -> None:
        there = [worker for worker in self._workers.values() if not worker.lost]
        everyone = len(self._workers) == self.settings.shards and all(worker.ready for worker in there)
        if not everyone or not there or self.zero_ns is not None or self.state != "preparing":
            return
        remote = any(worker.machine != machine_id() for worker in there)
        self.zero_ns = time.monotonic_ns() + (REMOTE_START_DELAY_NS if remote else START_DELAY_NS)
        wall_ns = self.zero_ns + time.time_ns() - time.monotonic_ns()
        self.state = "running"
        self._tell({"event": "started", "zero_ns": self.zero_ns, "started_at": wall_ns / 1e9})
        for worker in there:
            self._message(Go(machine=machine_id(), zero_ns=self.zero_ns, zero_wall_ns=wall_ns), worker.client_id)

    def stop(self, cause: str, *, cut: bool) -> None:
        """Tell every worker to send nothing more, and with ``cut`` to end what is in flight.

        A run that has not started has nothing in flight and is over at once.
        """
        self._stop_cause = cause
        self._tell({"event": "stopped", "cause": cause})
        for worker in self._workers.values():
            if worker.ready and not worker.finished and not worker.lost:
                self._message(Stop(cause=cause, cut=cut), worker.client_id)
        if self.zero_ns is None and self.state != "over":
            self._over()

    def take_live(self, worker: _Worker, encoded: bytes) -> None:
        """A worker's figures."""
        report = self._report.decode(encoded)
        report.worker = worker.shard
        self.board.take(report)
        worker.sent = report.sent
        self._tell({"event": "live", "report": msgspec.to_builtins(report, str_keys=True)})

    def take_records(self, worker: _Worker, records: list[bytes], chunks: list[bytes]) -> None:
        """Records of a worker elsewhere."""
        if worker.writer is None:
            return
        for record, rows in zip(records, chunks, strict=True):
            worker.writer.append(self._record.decode(record), np.frombuffer(rows, CHUNK_DTYPE))

    def take_sample(self, sample: ServerSample) -> None:
        """A scrape of the server's metrics, for the page."""
        self.history.cache_usage = sample.cache_usage

    def tell_time(self, worker: _Worker, ping: Ping) -> None:
        """The master's time, for a worker on another machine."""
        self._message(Pong(here_ns=ping.here_ns, master_ns=time.time_ns()), worker.client_id)

    def has_finished(self, worker: _Worker, finished: Finished) -> None:
        """A worker has accounted for its whole share, or has failed."""
        if worker.finished:
            return
        worker.finished = True
        if worker.writer is not None:
            worker.writer.close()
        if finished.error:
            self._tell(
                {
                    "event": "worker_error",
                    "shard": worker.shard,
                    "error": finished.error,
                    "fault": finished.fault,
                    "unrecorded": finished.unrecorded,
                    "started": worker.ready,
                }
            )
        if not worker.ready:
            # it failed before the start: the others need not wait for it
            worker.lost = True
            self._go_when_all_are_ready()
        self._check_over()

    def _fail(self, worker: _Worker, error: str) -> None:
        self.has_finished(worker, Finished(pass_word=worker.pass_word, error=error, fault="kvload"))
        self._message(Refuse(reason=error), worker.client_id)

    def _check_over(self) -> None:
        ended = all(worker.finished or worker.lost for worker in self._workers.values())
        if self.state != "over" and ended and len(self._workers) == self.settings.shards:
            self._over()

    def _over(self) -> None:
        self.state = "over"
        self._tell({"event": "over"})
        self._when_over()

    def has_failed(self, error: Exception) -> None:
        """A fault in the master itself: nothing more is sent, and the parent is told."""
        self._tell({"event": "master_error", "error": describe(error), "fault": fault_of(error)})
        if self.state != "over":
            self.stop("load_generator_failed", cut=True)
        if self.state != "over":
            gevent.spawn_later(2.0, self._over_at_last)

    def _over_at_last(self) -> None:
        if self.state != "over":
            self._over()

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
        self._go_when_all_are_ready()

    def _message(self, message: Message, client_id: str | None) -> None:
        self._runner.send_message(message.kind(), messages.encode(message), client_id)

    def draw(self) -> None:
        """One point more for the page's charts."""
        if self.zero_ns is not None and self.state != "over":
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
