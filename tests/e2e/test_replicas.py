"""Replicas under one name: launched, replayed, looked at, one killed, stopped."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from kvload.rundir import RunDir
from tests.e2e.conftest import Kvload, read_records

pytestmark = pytest.mark.slow


def test_two_replicas_from_launch_to_stop(kvload: Kvload, tmp_path: Path) -> None:
    launched = kvload(
        "launch", "--engine", "embedded", "--name", "pair", "--kv-memory", "32MiB", "--replicas", "2", timeout_s=240
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.strip() == "pair"
    entries = {entry["name"]: entry for entry in json.loads(kvload("status", "--json").stdout)}
    assert set(entries) == {"pair.0", "pair.1"}
    assert {entry["group"] for entry in entries.values()} == {"pair"}
    rows = [
        {"id": f"r{i}", "session": f"s{i % 4}", "arrival": 0.1 * i, "input_length": 20, "output_length": 4}
        for i in range(24)
    ]
    trace = tmp_path / "t.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for policy, shares in (("round-robin", {0: 12, 1: 12}), ("sticky", {0: 12, 1: 12}), ("least-loaded", None)):
        out = tmp_path / policy
        done = kvload("replay", trace, "--server", "pair", "--policy", policy, "--out", out, timeout_s=240)
        assert done.returncode == 0, done.stderr
        run = RunDir.open(out)
        assert [server.name for server in run.manifest().servers] == ["pair.0", "pair.1"]
        records = read_records(out)
        counts = Counter(record.get("server", 0) for record in records)
        assert sum(counts.values()) == 24
        assert shares is None or dict(counts) == shares
        # each server's own counters agree with what the records say it answered
        for place in (0, 1):
            samples = [sample for sample in run.scrapes(place) if sample.generation_tokens is not None]
            grown = (samples[-1].generation_tokens or 0) - (samples[0].generation_tokens or 0)
            mine = sum(record["output_tokens"] for record in records if record.get("server", 0) == place)
            assert grown == mine
        for place in (0, 1):
            assert run.server_log_path(place).is_file()
        together = run.scrapes()
        assert max(sample.pool_tokens or 0 for sample in together) == sum(
            server.pool_tokens or 0 for server in run.manifest().servers
        )
    places: dict[str, set[int]] = {}
    for record in read_records(tmp_path / "sticky"):
        places.setdefault(record["session"], set()).add(record.get("server", 0))
    assert all(len(servers) == 1 for servers in places.values())
    assert "each with a log of its own" in kvload("logs", "pair").stderr
    assert kvload("logs", "pair.1").returncode == 0
    os.kill(entries["pair.1"]["pid"], signal.SIGKILL)
    dead = kvload("replay", trace, "--server", "pair")
    assert dead.returncode == 3
    assert "pair.1" in dead.stderr
    stopped = kvload("stop", "pair")
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(kvload("status", "--json").stdout) == []
