"""One worker's side of a run, inside a Locust process: gets its share, walks it, gives back records and figures."""

import gc
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import msgspec
import numpy as np
import numpy.typing as npt

from kvload.records import RequestRecord
from kvload.rundir import CHUNK_DTYPE, RecordWriter, RunDir
from kvload.workloads.run.dispatch import Dispatcher, Limits
from kvload.workloads.run.faults import describe, fault_of
from kvload.workloads.run.live import LiveMeter, LiveReport
from kvload.workloads.run.plan import PlanSettings, decode_share, plan_folder, shard_path
from kvload.workloads.schedule.request import PlannedRequest
from kvload.workloads.swarm.messages import Finished, Live, Message, Records

REPORT_EVERY_S = 0.5
_MIRRORED_AT_ONCE = 8
_SLICE_NS = 8_000_000
"""How long Locust's greenlets may have to wait while answers are read."""


class ReplayWorker:
    """Walks one share of the schedule in this process.

    The streaming client's own epoll descriptor is watched by gevent's loop; everything it does happens in that one
    callback, between Locust's greenlets and without threads. Whatever fails here ends the worker and is told to the
    master: :meth:`fail`.

    Args:
        send: sends a message to the master.
        headers: the user's headers.
        mirror: takes every record for Locust's own statistics.
    """

    def __init__(
        self, send: Callable[[Message], None], headers: Mapping[str, str], mirror: Callable[[RequestRecord], None]
    ) -> None:
        self._send = send
        self._headers = headers
        self._mirror = mirror
        self._mirrored: list[RequestRecord] = []
        self._dispatcher: Dispatcher | None = None
        self._watcher: Any = None
        self._writer: RecordWriter | None = None
        self._outbox: list[tuple[bytes, bytes]] = []
        self._encoder = msgspec.json.Encoder()
        self._meter = LiveMeter({})
        self._planned: list[PlannedRequest] = []
        self._shard = 0
        self._pass_word = ""
        self._settings: PlanSettings | None = None
        self._cpu_start_s = 0.0
        self._closed = False
        self._told = False
        self._error: Exception | None = None
        self._unrecorded: list[int] = []
        self.finished = gevent.event.Event()

    def assign(self, settings: PlanSettings, shard: int, pass_word: str, share: bytes | None) -> None:
        """Take on a share.

        Args:
            pass_word: goes with everything that is sent to the master.
            share: its bytes, where they came over the network; None where the run folder is within reach.
        """
        if self._settings is not None:
            return
        self._settings = settings
        self._shard = shard
        self._pass_word = pass_word
        self._meter = LiveMeter(settings.slo)
        if share is None:
            share = shard_path(plan_folder(settings), shard).read_bytes()
            self._writer = RunDir(Path(settings.run_path)).writer(f"worker-{shard}")
        self._planned = list(decode_share(share))

    def go(self, zero_ns: int) -> None:
        """Start, with the run's zero at ``zero_ns`` of this process's monotonic clock."""
        settings = self._settings
        if settings is None or self._dispatcher is not None or self._told:
            return
        limits = Limits(
            max_concurrency=settings.part_of(settings.sending.max_concurrency, self._shard),
            concurrency=settings.part_of(settings.sending.concurrency, self._shard),
            timeout_s=settings.sending.timeout_s,
            drain_s=settings.sending.drain_s,
        )
        dispatcher = self._dispatcher = Dispatcher(
            self._planned,
            settings.address,
            zero_ns=zero_ns,
            sink=self._take,
            limits=limits,
            headers=self._headers,
            worker=self._shard,
            others=settings.others,
            servers=settings.servers,
        )
        self._planned = []
        self._cpu_start_s = time.process_time()
        # Streams make no reference cycles; what Locust makes is collected after the run. A full collection with a
        # thousand streams in flight would stop everything for tens of milliseconds.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 1000)
        self._watcher = gevent.get_hub().loop.io(dispatcher.loop.fileno(), 1)
        dispatcher.begin()
        self._watcher.start(self._turn)
        gevent.spawn(self._report_until_finished)
        gevent.spawn(self._mirror_until_finished)

    def stop(self, cause: str, *, cut: bool) -> None:
        """Send nothing more; with ``cut`` also end what is in flight."""
        if self._dispatcher is None:
            self.go(time.monotonic_ns() + 1_000_000_000)
        if self._dispatcher is not None:
            self._dispatcher.stop(cause, cut=cut)
            if self._dispatcher.finished:
                self._finish()
        else:
            self._finish()

    def fail(self, error: Exception) -> None:
        """This worker cannot go on: what it has is recorded as far as that goes, and the master is told why."""
        self._error = self._error or error
        self._finish()
        if self._dispatcher is None:
            # nothing reports for a worker that never started
            self._tell_the_end()

    def close(self) -> None:
        """The process ends: cut what is in flight and record it, now."""
        if self._dispatcher is None or self._closed:
            return
        self._closed = True
        self._finish()
        self._dispatcher.close()
        self._send_records()
        if self._writer is not None:
            self._writer.close()

    def _turn(self) -> None:
        """The watcher's callback: runs in the hub, must not raise, and leaves time for Locust's greenlets."""
        dispatcher = self._dispatcher
        if dispatcher is None or self.finished.is_set():
            return
        until_ns = time.monotonic_ns() + _SLICE_NS
        try:
            dispatcher.turn()
            while not dispatcher.finished and dispatcher.rest(until_ns):
                dispatcher.turn()
        except Exception as error:
            if not isinstance(error, OSError):
                gevent.get_hub().handle_error(self, type(error), error, error.__traceback__)
            self.fail(error)
            return
        if dispatcher.finished or self._error is not None:
            self._finish()

    def _finish(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
        self.finished.set()

    def _take(self, record: RequestRecord, chunks: npt.NDArray[np.void]) -> None:
        if self._writer is None:
            self._outbox.append((self._encoder.encode(record), chunks.astype(CHUNK_DTYPE, copy=False).tobytes()))
        else:
            try:
                self._writer.append(record, chunks)
            except OSError as error:
                # nothing more can be recorded, so nothing more is sent; the parent accounts for these
                self._error = self._error or error
                if record.status != "unsent":
                    self._unrecorded.append(record.index)
        self._meter.add(record, chunks)
        self._mirrored.append(record)

    def _report_until_finished(self) -> None:
        try:
            while not self.finished.wait(REPORT_EVERY_S):
                self._report()
            self._report()
        except Exception as error:
            self.fail(error)
        self._tell_the_end()

    def _tell_the_end(self) -> None:
        """Close, and say to the master that this is all, whatever happened."""
        if self._told:
            return
        self._told = True
        try:
            self.close()
            gc.unfreeze()
        except Exception as problem:
            self._error = self._error or problem
        error = self._error
        finished = Finished(
            pass_word=self._pass_word,
            error=None if error is None else describe(error),
            fault=None if error is None else fault_of(error),
            unrecorded=self._unrecorded,
        )
        self._send(finished)

    def _mirror_until_finished(self) -> None:
        """Feed Locust's statistics a few records at a time: a batch of them would make requests late."""
        while self._mirrored or not self.finished.is_set():
            for record in self._mirrored[:_MIRRORED_AT_ONCE]:
                self._mirror(record)
            del self._mirrored[:_MIRRORED_AT_ONCE]
            gevent.sleep(0.002 if self._mirrored else 0.05)

    def _report(self) -> None:
        dispatcher = self._dispatcher
        if dispatcher is None:
            return
        self._send_records()
        counts = dispatcher.counts
        report = LiveReport(
            worker=self._shard,
            planned=counts.planned,
            sent=counts.sent,
            done=counts.done,
            failed=counts.failed,
            unsent=counts.unsent,
            answered=counts.answered,
            in_flight=dispatcher.loop.in_flight,
            cpu_s=time.process_time() - self._cpu_start_s,
            rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            retries=counts.retries,
            merged_reads=counts.merged_reads,
            **self._meter.take(),  # type: ignore[arg-type]
        )
        self._send(Live(pass_word=self._pass_word, report=msgspec.json.encode(report)))

    def _send_records(self) -> None:
        outbox, self._outbox = self._outbox, []
        if outbox:
            records, chunks = [entry[0] for entry in outbox], [entry[1] for entry in outbox]
            self._send(Records(pass_word=self._pass_word, records=records, chunks=chunks))
