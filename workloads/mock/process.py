"""The mock server as a process of its own: running it, and starting it from a test or a calibration."""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from kvload.address import Address
from kvload.errors import ServerError, UsageError
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.server import MockServer

_PR_SET_PDEATHSIG = 1


def serve(settings: MockSettings, host: str, port: int, log_path: Path | None, processes: int = 1) -> None:
    """Run the mock server until it is interrupted or told to end; says on stdout where it listens.

    Args:
        processes: how many share the port and the log; the kernel deals connections out to them.

    Raises:
        UsageError: slots are asked for of more than one process, which do not know of each other's requests.
    """
    if processes > 1 and settings.slots is not None:
        raise UsageError("slots are those of one process", where="--processes, --slots")
    server = MockServer(settings, host, port, log_path, shared_port=processes > 1)
    others = [_fork(settings, host, server.port, log_path) for _ in range(processes - 1)]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    address = f"[{host}]" if ":" in host else host
    sys.stdout.write(json.dumps({"url": f"http://{address}:{server.port}", "model": settings.model}) + "\n")
    sys.stdout.flush()
    try:
        _serve_without_collections(server)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGTERM)
        for pid in others:
            os.waitpid(pid, 0)


def _fork(settings: MockSettings, host: str, port: int, log_path: Path | None) -> int:
    """Another process at the same port, which ends with this one; returns its id once it listens."""
    parent = os.getpid()
    ready_fd, tell_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            server = MockServer(settings, host, port, log_path, shared_port=True)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: server.stop())
            os.write(tell_fd, b"1")
            if os.getppid() == parent:
                _serve_without_collections(server)
            status = 0
        finally:
            os._exit(status)
    os.close(tell_fd)
    listens = os.read(ready_fd, 1)
    os.close(ready_fd)
    if not listens:
        os.waitpid(pid, 0)
        raise ServerError("another process of the mock server did not start", where=f"{host}:{port}")
    return pid


def _serve_without_collections(server: MockServer) -> None:
    # Nothing in the server makes reference cycles, and a collection over a thousand streams costs milliseconds.
    gc.collect()
    gc.freeze()
    gc.disable()
    server.serve()


class MockProcess:
    """A mock server in a child process, ended with the context.

    Args:
        settings: what it does.
        log_path: where it keeps its account of every request.
        processes: how many serve.

    Raises:
        ServerError: it did not start.
    """

    def __init__(self, settings: MockSettings, log_path: Path | None = None, processes: int = 1) -> None:
        faults = ",".join(f"{name}={probability}" for name, probability in settings.faults.items())
        command = [sys.executable, "-m", "kvload", "mock", "--port", "0", "--ttft", f"{settings.ttft_s}s"]
        command += ["--itl", f"{settings.itl_s}s", "--tokens-per-chunk", str(settings.tokens_per_chunk)]
        command += ["--jitter", str(settings.jitter), "--seed", str(settings.seed), "--model", settings.model]
        command += ["--default-tokens", str(settings.default_tokens), "--max-model-len", str(settings.max_model_len)]
        command += ["--fail", faults] if faults else []
        command += ["--slots", str(settings.slots)] if settings.slots is not None else []
        command += ["--log", str(log_path)] if log_path else []
        command += ["--processes", str(processes)]
        # A session of its own: Ctrl-C on the terminal is for whoever started the mock, who then ends it.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        self.url = self._wait_for_url()
        self.address = Address.parse(self.url, where="mock")

    def _wait_for_url(self, patience_s: float = 60.0) -> str:
        assert self.process.stdout is not None, "stdout is a pipe"  # noqa: S101
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and self.process.poll() is None:
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                line = self.process.stdout.readline()
                if line:
                    return str(json.loads(line)["url"])
        self.close()
        raise ServerError("the mock server did not start", hint="run 'kvload mock' to see why")

    def cpu_s(self) -> dict[int, float]:
        """Processor time used so far by each of its processes, in seconds, by process id."""
        import psutil

        process = psutil.Process(self.process.pid)
        used = {}
        for one in (process, *process.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                used[one.pid] = float(times.user + times.system)
        return used

    def close(self) -> None:
        """End it and wait for its end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
