"""Planted keys: looked for in process lists, run folders, the state folder and everything that is printed."""

import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Kvload

pytestmark = pytest.mark.slow

MARK = f"planted-{secrets.token_hex(4)}"
"""What all of them hold, and no process of another run of these tests."""

KEYS = {
    "KVLOAD_REPLAY_HEADER": f"X-Other: {MARK}-header-1",
    "OPENAI_API_KEY": f"{MARK}-openai-2",
    "KVLOAD_API_KEY": f"{MARK}-kvload-3",
    "HF_TOKEN": f"{MARK}-hub-4",
}


def children_of(process: psutil.Process) -> list[list[str]]:
    found = []
    for child in process.children(recursive=True):
        try:
            found.append(child.cmdline())
        except psutil.Error:
            continue
    return found


def test_a_replay_leaves_no_key_anywhere(
    start_mock: Callable[..., str], environ: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    url = start_mock("--ttft", "20ms", "--itl", "5ms")
    command = [
        sys.executable,
        "-m",
        "kvload",
        "replay",
        "sample:demo",
        "--limit",
        "30",
        "--rate",
        "15",
        "--workers",
        "2",
    ]
    command += ["--workers", "2", "--url", url, "--out", str(run), "--header", f"Authorization: Bearer {MARK}-flag-5"]
    said = tmp_path / "said.txt"
    listed: list[list[str]] = []
    with said.open("w") as out:
        replay = subprocess.Popen(command, env=environ | KEYS, cwd=tmp_path, stdout=out, stderr=out)
        watched = psutil.Process(replay.pid)
        while replay.poll() is None:
            listed += children_of(watched)
            time.sleep(0.1)
    assert replay.returncode == 0, said.read_text(encoding="utf-8")
    assert any("locust" in " ".join(line) for line in listed)
    assert not any(MARK in word for line in listed for word in line)
    files = [*run.rglob("*"), *Path(environ["KVLOAD_STATE_DIR"]).rglob("*"), said]
    assert not [path for path in files if path.is_file() and MARK.encode() in path.read_bytes()]


def test_a_launch_stores_and_shows_no_key(
    kvload: Kvload, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setitem(environ, name, value)
    variables = ["--env", f"VLLM_MY_AUTH={MARK}-env-6", "--env", f"HF_ENDPOINT=https://me:{MARK}-user-7@hub"]
    launched = kvload("launch", "--engine", "embedded", "--name", "secret", "--kv-memory", "32MiB", *variables)
    try:
        assert launched.returncode == 0, launched.stderr
        shown = kvload("status", "--json").stdout + kvload("logs", "secret").stdout + launched.stderr
        assert MARK not in shown
        files = [path for path in Path(environ["KVLOAD_STATE_DIR"]).rglob("*") if path.is_file()]
        assert not [path for path in files if MARK.encode() in path.read_bytes()]
        assert not [p for p in psutil.process_iter(["cmdline"]) if MARK in " ".join(p.info["cmdline"] or ())]
    finally:
        kvload("stop", "secret")


@pytest.mark.parametrize("name", ["KVLOAD_API_KEY", "OPENAI_API_KEY"])
def test_a_key_with_a_line_end_is_an_error_without_the_key(
    kvload: Kvload, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(environ, name, f"{MARK}-line\r\n")
    done = kvload("replay", "sample:demo", "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "line end" in done.stderr
    assert MARK not in done.stdout + done.stderr
