"""A router between kvload and two servers, as processes: who answered stands in the records."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kvload.rundir import RunDir

pytestmark = pytest.mark.slow


def started(arguments: list[str], log: Path, word: str) -> tuple[subprocess.Popen[bytes], str]:
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "kvload", *arguments], stdout=out, stderr=subprocess.STDOUT)
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        text = log.read_text(errors="replace")
        if word in text:
            return process, "http://127.0.0.1:" + text.split(word, 1)[1].split('"')[0].split(" ")[0].strip()
        time.sleep(0.1)
    process.kill()
    raise AssertionError(log.read_text(errors="replace"))


def test_a_replay_through_a_router_records_who_answered(tmp_path: Path) -> None:
    processes = []
    try:
        urls = []
        for name in ("full", "small"):
            process, url = started(["mock", "--ttft", "5ms", "--itl", "1ms"], tmp_path / name, "http://127.0.0.1:")
            processes.append(process)
            urls.append(f"{name}={url}")
        serve = ["route", "serve", "--policy", "random", "--share", "0.5", "--to", urls[0], "--to", urls[1]]
        process, url = started(serve, tmp_path / "router", "routing on http://127.0.0.1:")
        processes.append(process)
        replay = ["replay", "sample:demo", "--url", url, "--limit", "40", "--concurrency", "4", "--max-tokens", "8"]
        replay += ["--no-calibrate", "--quiet", "--out", str(tmp_path / "run")]
        done = subprocess.run([sys.executable, "-m", "kvload", *replay], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.wait(20) == 0
    run = RunDir.open(tmp_path / "run")
    manifest = run.manifest()
    assert [server.name for server in manifest.servers] == [None, "full", "small"]
    counts = Counter(record.server for record, _ in run.records())
    assert set(counts) == {1, 2}
    assert sum(counts.values()) == 40
    assert f"answered by: full {counts[1]}, small {counts[2]}" in manifest.notes
