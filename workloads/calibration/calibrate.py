"""The client's own error: a run against the mock server at a given load, checked against the mock's own account.

Sending and receiving are witnessed twice, on one clock: by the client and by the mock server. What they disagree about
is the client's error (with the few tens of microseconds the loopback takes).
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload.records import RunManifest, ServerInfo, TraceInfo
from kvload.rundir import RunDir
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.mock.truth import TrueAnswer, read_truth
from kvload.workloads.run.plan import ReplayPlan, Sending
from kvload.workloads.run.replay import Hooks, run_replay
from kvload.workloads.schedule.request import PlannedRequest

MAX_RATE = 2000.0
BUSY_MACHINE = 0.95
BUSY_MOCK = 0.9
BUSY_CLIENT = 0.9
LATE_MOCK_S = 0.005
_CHUNKS_A_MOCK = 30_000
"""Chunks a second that one process of the mock server writes with room to spare."""

_PROMPT = list(range(1000, 1128))


@dataclass(frozen=True)
class Load:
    """What the client is put under.

    Attributes:
        rate: requests per second, evenly spaced.
        tokens: length of every answer, one token a chunk.
        ttft_s, itl_s: the mock server's times.
        duration_s: how long requests are sent.
    """

    rate: float = 20.0
    tokens: int = 128
    ttft_s: float = 0.05
    itl_s: float = 0.01
    duration_s: float = 4.0

    @property
    def streams(self) -> float:
        """Requests in flight in the steady state."""
        return self.rate * (self.ttft_s + (self.tokens - 1) * self.itl_s)

    @property
    def requests(self) -> int:
        """How many are sent."""
        return max(2, math.ceil(self.rate * self.duration_s))

    @property
    def chunk_rate(self) -> float:
        """Chunks per second in the steady state."""
        return self.rate * self.tokens


@dataclass(frozen=True)
class Calibration:
    """The client's own error and cost at one load; None where nothing was measured.

    Attributes:
        achieved_rate: requests sent per second.
        cpu_us_per_chunk: processor time of all workers, in microseconds, per chunk received.
        cpu_share: of a core, of the busiest worker, while requests were in flight.
        mock_processes: how many the mock server ran in.
        mock_cpu_share: of a core, of its busiest process: near 1 the mock is the limit, not the client.
        mock_late_p99_s: written by the mock after it was due.
        machine_cpu_share: of all cores, of everything that ran on the machine.
        lag_*: sent after it was due. ttft_error_*, itl_error_*: absolute difference to the mock's own account.
        rss_bytes: the largest worker's peak of resident memory.
        shared_reads: share of chunks that came in one read with a later one, and so have its time.
    """

    rate: float
    streams: float
    workers: int
    requests: int
    chunks: int
    achieved_rate: float | None
    cpu_us_per_chunk: float | None
    cpu_share: float | None
    mock_processes: int
    mock_cpu_share: float | None
    mock_late_p99_s: float | None
    machine_cpu_share: float | None
    lag_p50_s: float | None
    lag_p99_s: float | None
    ttft_error_p50_s: float | None
    ttft_error_p99_s: float | None
    itl_error_p50_s: float | None
    itl_error_p99_s: float | None
    rss_bytes: int | None
    shared_reads: float | None
    clock: str
    failed: int

    def as_dict(self) -> dict[str, Any]:
        """For the run's manifest."""
        return {**asdict(self), "limit": self.limit()}

    def limit(self) -> str | None:
        """What could not do more at this load: ``machine``, ``mock`` or ``client``; None if nothing was at its end.

        Where it is not the client, errors and lag are not the client's alone.
        """
        return limit_of(self.machine_cpu_share, self.mock_cpu_share, self.mock_late_p99_s, self.cpu_share)


def limit_of(
    machine_share: float | None, mock_share: float | None, mock_late_s: float | None, client_share: float | None
) -> str | None:
    """What was at its end: ``machine``, ``mock`` or ``client``; None if nothing was.

    Args:
        machine_share: of all cores; the other shares are of one.
    """
    if (machine_share or 0.0) > BUSY_MACHINE:
        return "machine"
    if (mock_share or 0.0) > BUSY_MOCK or (mock_late_s or 0.0) > LATE_MOCK_S:
        return "mock"
    return "client" if (client_share or 0.0) > BUSY_CLIENT else None


def load_of(planned: Sequence[PlannedRequest], concurrency: int | None) -> Load:
    """The load a schedule puts on the client: its mean rate, its mean answer, at typical server times."""
    tokens = max(1, min(256, round(sum(request.max_tokens for request in planned) / max(len(planned), 1))))
    span = max((request.offset_s for request in planned), default=0.0)
    load = Load(tokens=tokens)
    if concurrency is not None or span <= 0:
        streams = concurrency or len(planned)
        rate = streams / (load.ttft_s + (tokens - 1) * load.itl_s)
    else:
        rate = (len(planned) - 1) / span if len(planned) > 1 else 1.0
    return Load(rate=min(max(rate, 1.0), MAX_RATE), tokens=tokens)


def calibrate(load: Load, *, workers: int = 1) -> Calibration:
    """Put the client under a load against a mock server on this machine and compare both accounts.

    Raises:
        ServerError: the mock server did not start.
        KeyboardInterrupt: it was interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="kvload-calibration-") as folder:
        truth_path = Path(folder) / "truth.jsonl"
        planned = _schedule(load)
        run = RunDir.create(Path(folder) / "run", _manifest(len(planned)))
        processes = mock_processes(load, workers)
        with MockProcess(MockSettings(ttft_s=load.ttft_s, itl_s=load.itl_s), truth_path, processes) as mock:
            meter = Meter(mock)
            sending = Sending(workers=workers, timeout_s=60.0, drain_s=30.0)
            plan = ReplayPlan(planned=planned, address=mock.address, sending=sending)
            manifest = run_replay(plan, run, Hooks(on_start=meter.start, on_end=meter.end))
        if manifest.ended == "interrupted":
            raise KeyboardInterrupt
        truth = {answer.request_id: answer for answer in read_truth(truth_path)}
        return _compare(load, workers, run, manifest, truth, meter)


def mock_processes(load: Load, workers: int) -> int:
    """How many processes the mock server needs for a load, as far as the machine's cores go."""
    spare = len(os.sched_getaffinity(0)) - max(workers, 1)
    return max(1, min(math.ceil(load.chunk_rate / _CHUNKS_A_MOCK), spare))


class Meter:
    """Processor time while requests are under way.

    Attributes:
        mock_share: of a core, of the mock server's busiest process.
        machine_share: of all cores, of everything that runs.
    """

    def __init__(self, mock: MockProcess) -> None:
        self._mock = mock
        self._mock_s: dict[int, float] = {}
        self._busy_s = self._wall_s = 0.0
        self.mock_share: float | None = None
        self.machine_share: float | None = None

    def start(self, _zero: float = 0.0) -> None:
        """The first request is about to be sent."""
        self._mock_s, self._busy_s, self._wall_s = self._mock.cpu_s(), _busy_s(), time.monotonic()

    def end(self) -> None:
        """The last answer has ended."""
        elapsed = time.monotonic() - self._wall_s
        if self._wall_s and elapsed > 0:
            used = self._mock.cpu_s()
            self.mock_share = max(
                (used[pid] - before for pid, before in self._mock_s.items() if pid in used), default=0
            )
            self.mock_share /= elapsed
            self.machine_share = (_busy_s() - self._busy_s) / elapsed / (os.cpu_count() or 1)


def _busy_s() -> float:
    """Processor time of everything on this machine, and what its host took from it, in seconds."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def lateness_s(truth: Iterable[TrueAnswer], load: Load) -> npt.NDArray[np.float64]:
    """How late the mock wrote every chunk, in seconds."""
    late = [
        np.asarray(answer.writes_ns, np.int64)
        - (answer.arrival_ns + round(load.ttft_s * 1e9) + np.arange(len(answer.writes_ns)) * round(load.itl_s * 1e9))
        for answer in truth
    ]
    return np.concatenate(late) / 1e9 if late else np.empty(0)


def request_body(load: Load) -> bytes:
    """What every request of a load asks for."""
    fields = {"model": "mock", "prompt": _PROMPT, "max_tokens": load.tokens, "stream": True}
    return json.dumps({**fields, "stream_options": {"include_usage": True}}).encode()


def _schedule(load: Load) -> list[PlannedRequest]:
    body = request_body(load)
    return [
        PlannedRequest(
            index=index,
            offset_s=index / load.rate,
            request_id=str(index),
            path="/v1/completions",
            body=body,
            prompt_digest="",
            max_tokens=load.tokens,
        )
        for index in range(load.requests)
    ]


def _manifest(planned: int) -> RunManifest:
    return RunManifest(
        run_id="calibration",
        kvload_version="",
        servers=[ServerInfo(url="")],
        trace=TraceInfo(path="", sha256="", format="", rows=planned, used=planned),
        mode="free",
        seed=0,
        arrivals={},
        planned=planned,
    )


def _compare(
    load: Load, workers: int, run: RunDir, manifest: RunManifest, truth: Mapping[str, TrueAnswer], meter: Meter
) -> Calibration:
    lags, ttft_errors, clocks = [], [], set()
    itl_errors = []
    chunks = failed = 0
    sends = []
    for record, rows in run.records():
        failed += record.status != "ok"
        chunks += len(rows)
        if record.t_send_s is None:
            continue
        sends.append(record.t_send_s)
        lags.append(record.t_send_s - record.t_sched_s)
        answer = truth.get(f"kvload-{record.index}")
        ttft_s = record.ttft_s
        if record.status != "ok" or ttft_s is None or answer is None or len(rows) != len(answer.writes_ns):
            continue
        clocks.add(record.clock)
        true_ttft = (answer.writes_ns[0] - answer.arrival_ns) / 1e9
        ttft_errors.append(abs(ttft_s - true_ttft))
        gaps = np.diff(rows["us"].astype(np.float64)) * (record.chunk_tick_us * 1e-6)
        itl_errors.append(np.abs(gaps - np.diff(answer.writes_ns) / 1e9))
    cpu_s = manifest.client.get("cpu_s", {})
    shares = manifest.client.get("cpu_share", {})
    span = max(sends) - min(sends) if len(sends) > 1 else 0.0
    all_itl = np.concatenate(itl_errors) if itl_errors else np.empty(0)
    return Calibration(
        rate=load.rate,
        streams=load.streams,
        workers=workers,
        requests=manifest.planned,
        chunks=chunks,
        achieved_rate=(len(sends) - 1) / span if span > 0 else None,
        cpu_us_per_chunk=sum(cpu_s.values()) / chunks * 1e6 if chunks and cpu_s else None,
        cpu_share=max(shares.values(), default=None),
        mock_processes=mock_processes(load, workers),
        mock_cpu_share=meter.mock_share,
        mock_late_p99_s=_quantile(lateness_s(truth.values(), load), 0.99),
        machine_cpu_share=meter.machine_share,
        lag_p50_s=_quantile(lags, 0.5),
        lag_p99_s=_quantile(lags, 0.99),
        ttft_error_p50_s=_quantile(ttft_errors, 0.5),
        ttft_error_p99_s=_quantile(ttft_errors, 0.99),
        itl_error_p50_s=_quantile(all_itl, 0.5),
        itl_error_p99_s=_quantile(all_itl, 0.99),
        rss_bytes=max(manifest.client.get("rss_bytes", {}).values(), default=None),
        shared_reads=manifest.client.get("chunks_sharing_a_read", 0) / chunks if chunks else None,
        clock=",".join(sorted(clocks)),
        failed=failed,
    )


def _quantile(values: Any, share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None
