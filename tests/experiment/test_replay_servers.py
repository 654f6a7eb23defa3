"""What a replay finds out about its servers: how clocks of a cluster's nodes stand."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kvload.errors import ServerError
from kvload.experiment import run as runs
from kvload.experiment.options import ReplayOptions
from kvload.experiment.replay import Listener
from kvload.experiment.replay_servers import ReplayServers
from kvload.records import ClockOffset
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.process import start_mark
from kvload.servers.lifecycle.rootcause import RootCause
from kvload.servers.lifecycle.starting import ServerDiedError
from tests.servers.lifecycle.test_registry import entry_of


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Stands for a server's process; what is registered lies in a folder of its own."""
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as made:
        yield made
        made.kill()


def test_clocks_of_all_nodes_are_told_with_their_age(process: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    now = time.time()
    clocks = {
        "node A": ClockOffset(offset_s=0.00012, doubt_s=0.0005, measured_at=now),
        "node B": ClockOffset(offset_s=-0.031, doubt_s=0.0007, measured_at=now - 3600),
    }
    for number, (node, clock) in enumerate(clocks.items()):
        entry = entry_of(f"fleet.{number}", process.pid, start_mark(process.pid) or "")
        info = msgspec.structs.replace(entry.info, node=node, clock=clock, gpu_kind="HA"[number] + "100")
        registry.claim(msgspec.structs.replace(entry, info=info, group="fleet", port=4000 + number))
    servers = ReplayServers(ReplayOptions(trace=tmp_path / "t", server="fleet"), {}, lambda _text: None)
    servers.find()
    unlike, note = servers.notes()
    assert "(fleet.0: H100; fleet.1: A100)" in unlike
    assert "node A +0.12 ms (known to 0.50 ms, half of the fastest way there and back);" in note
    assert "node B -31.00 ms (known to 0.70 ms, half of the fastest way there and back, measured 1 h before)." in note


def test_servers_of_this_machine_have_its_clock(process: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    registry.claim(entry_of("here", process.pid, start_mark(process.pid) or ""))
    servers = ReplayServers(ReplayOptions(trace=tmp_path / "t", server="here"), {}, lambda _text: None)
    servers.find()
    assert servers.notes() == []


class Dying:
    """A launched server whose connections break a moment before its process ends."""

    def __init__(self, cause: RootCause | None) -> None:
        self.cause = cause
        self.asked = 0

    def alive(self) -> RootCause | None:
        self.asked += 1
        return self.cause if self.asked > 2 else None


def test_a_server_that_dies_before_it_is_measured_is_told_from_one_that_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise ServerError("connection refused", where="http://127.0.0.1:1")

    monkeypatch.setattr(runs, "replay_once", refuse)
    options = ReplayOptions(trace=tmp_path / "t", out=tmp_path / "run")
    lost = RootCause("gpu_lost", "the GPU is not there, or at fault: GPU is lost")
    with pytest.raises(ServerDiedError, match="server died: the GPU is not there") as died:
        runs.replay_to_its_end(options, Dying(lost), Listener())  # type: ignore[arg-type]
    assert died.value.cause is lost
    for server in (Dying(None), None):
        with pytest.raises(ServerError, match="connection refused") as refused:
            runs.replay_to_its_end(options, server, Listener())  # type: ignore[arg-type]
        assert not isinstance(refused.value, ServerDiedError)
