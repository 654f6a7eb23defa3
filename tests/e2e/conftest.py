"""Real processes: the command line as a user types it, in a state folder of the test's own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Kvload = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose servers nobody else sees."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KVLOAD_")}
    return kept | {"KVLOAD_STATE_DIR": str(tmp_path_factory.mktemp("state")), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def kvload(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Kvload:
    """Runs ``kvload ARGUMENTS`` and returns what it printed and its exit code."""
    folder = tmp_path_factory.mktemp("work")

    def run(*arguments: str | Path, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "kvload", *map(str, arguments)]
        return subprocess.run(
            command, env=environ, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


@pytest.fixture(scope="module")
def start_mock(environ: dict[str, str]) -> Iterator[Callable[..., str]]:
    """Starts mock servers with the given options and returns their addresses; ends them after the module."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> str:
        command = [sys.executable, "-u", "-m", "kvload", "mock", *options]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                return found[0]
        raise AssertionError("the mock server did not start")

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def read_records(run: Path) -> list[dict[str, Any]]:
    """A run's records as plain JSON, read without kvload's own reader."""
    lines = [line for path in sorted((run / "records").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]
