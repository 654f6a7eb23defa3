"""The command line, and what is refused before a server serves."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvload.errors import UsageError
from kvload.servers.embedded.bench.decode import TINY_LLAMA
from kvload.servers.embedded.cache.api import CacheGeometry
from kvload.servers.embedded.model.threads import choose_threads, idle_cores, usable_cores
from kvload.servers.embedded.serving.arguments import parse_arguments
from kvload.servers.embedded.serving.server import settle_context
from tests.servers.embedded.reference_cache import ReferenceCache


@pytest.mark.parametrize("text", ["1000", "0B", "5 apples"])
def test_sizes_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--model", "m", "--kv-memory", text])
    assert "--kv-memory" in capsys.readouterr().err


def test_a_step_must_hold_more_than_all_decoding_requests(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--model", "m", "--chunk-tokens", "64", "--max-num-seqs", "64"])
    assert "--max-num-seqs" in capsys.readouterr().err


def test_the_context_is_what_model_and_cache_can_take() -> None:
    geometry = CacheGeometry(1, 1, 1, 1, torch.float32, torch.device("cpu"))
    cache = ReferenceCache(geometry, total=25, page=4)
    assert settle_context(cache, None, 80) == 80
    assert settle_context(cache, None, 5000) == 100
    assert settle_context(cache, None, None) == 100
    assert settle_context(cache, 90, 5000) == 90
    with pytest.raises(UsageError, match="cannot hold"):
        settle_context(cache, 101, 5000)
    with pytest.raises(UsageError, match="80 positions"):
        settle_context(cache, 81, 80)


def test_threads_follow_the_model_and_what_is_idle() -> None:
    assert choose_threads(10 << 20, 16, 16.0).count == 1
    assert choose_threads(300 << 20, 2, 1.9).count == 2
    assert choose_threads(300 << 20, 2, 0.3).count == 1
    assert choose_threads(300 << 20, 8, 7.8).count == 7
    assert choose_threads(300 << 20, 8, 4.1).count == 3
    assert choose_threads(300 << 20, 64, 60.0).count == 8
    assert 0 <= idle_cores() <= usable_cores() + (os.cpu_count() or 1)


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA), encoding="utf-8")
    command = [sys.executable, "-m", "kvload.servers.embedded", "--model", str(folder), "--load-format", "dummy"]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_progress_lines_then_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    with start(tmp_path, "--port", "0", "--kv-memory", "8MiB") as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("ready on http://127.0.0.1:"):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr and process.stderr.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    told = [line.strip() for line in lines[:-1]]
    assert told == ["starting", "loading config", "making random weights", "allocating cache"]


def test_a_port_that_is_taken_is_told_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start(tmp_path, "--port", str(port)) as process:
            _, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert f"127.0.0.1:{port}" in errors
    assert "Traceback" not in errors


def test_a_wrong_method_is_told_without_a_traceback(tmp_path: Path) -> None:
    with start(tmp_path, "--method", "zip") as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "no compression method 'zip'" in errors
    assert "Traceback" not in errors
