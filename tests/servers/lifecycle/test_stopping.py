"""Whether the GPU is free again after a server was stopped, with other servers on it and without."""

import os
import time
from pathlib import Path

import pytest

from kvload.records import ServerInfo
from kvload.servers.host import machine
from kvload.servers.lifecycle import registry, stopping
from kvload.servers.lifecycle.process import start_mark
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.stopping import stop


def server(name: str, used_before_mib: int, *, alive: bool) -> ServerEntry:
    entry = ServerEntry(
        name=name,
        engine="vllm",
        host="127.0.0.1",
        port=1,
        url="http://127.0.0.1:1",
        token=f"token of {name}",
        state="ready",
        info=ServerInfo(url="http://127.0.0.1:1"),
        log_path="/nowhere.log",
        exit_path="/nowhere.exit",
        launched_at=time.time(),
        pid=os.getpid() if alive else 0,
        mark=(start_mark(os.getpid()) or "") if alive else "",
        gpu_used_before_mib=used_before_mib,
    )
    registry.save(entry)
    return entry


@pytest.fixture
def used(state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the GPU has in use, in MiB, to be changed by the test."""
    value = [0]
    monkeypatch.setattr(machine, "gpu_used_mib", lambda *_: value[0])
    monkeypatch.setattr(stopping, "GPU_FREE_TIMEOUT_S", 0.0)
    return value


def test_what_a_server_left_behind_is_told(used: list[int]) -> None:
    used[0] = 9000
    assert stop(server("a", 1000, alive=False)).gpu_left_mib == 8000
    used[0] = 1100
    assert stop(server("a", 1000, alive=False)).gpu_left_mib == 0


def test_memory_of_other_servers_is_not_taken_for_left_behind(used: list[int]) -> None:
    first = server("first", 0, alive=False)
    second = server("second", 30_000, alive=True)
    used[0] = 30_000
    assert stop(first).gpu_left_mib is None
    # The second was started when the first held its memory: what counts for it now is what was there before both.
    kept = registry.load("second")
    assert kept is not None
    assert kept.gpu_used_before_mib == 0
    dead = server("second", 0, alive=False)
    used[0] = 4000
    assert stop(dead).gpu_left_mib == 4000
    assert second.gpu_used_before_mib == 30_000


def test_a_server_that_died_holds_nothing_back(used: list[int]) -> None:
    server("dead", 0, alive=False)
    used[0] = 5000
    assert stop(server("last", 1000, alive=False)).gpu_left_mib == 4000
