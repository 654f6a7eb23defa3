"""A run with its web page open, for the tests of the page and of its guard."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from tests.workloads.run.test_replay import write_trace


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def fetch(url: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers or {}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A replay that waits for somebody to press start."""
    trace = write_trace(tmp_path / "t.jsonl", 60, 0.1, 10)
    port = free_port()
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.005)) as mock:
        command = [sys.executable, "-m", "kvload", "replay", str(trace), "--url", mock.url, "--slo", "ttft=1s"]
        command += ["--out", str(tmp_path / "run"), "--web", "--web-port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        url = f"http://127.0.0.1:{port}/kvload/"
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    fetch(url)
                    break
                except OSError:
                    assert time.monotonic() < deadline, "the page did not come up"
                    time.sleep(0.2)
            yield url, process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=60)
