"""Servers of a cluster in this machine's registry, held by a process that stands in for the command."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kvload.errors import ServerError
from kvload.records import ServerInfo
from kvload.servers.lifecycle import held, registry
from kvload.servers.lifecycle.places.local import LocalServer
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.rootcause import RootCause
from kvload.servers.lifecycle.stopping import stop
from tests.servers.lifecycle.test_registry import entry_of


class Elsewhere:
    """A server on another node, as its place describes it."""

    is_here = False

    def __init__(self, node: str) -> None:
        info = ServerInfo(url="http://127.0.0.9:1", node=node, gpus=["0"])
        self.entry: ServerEntry = msgspec.structs.replace(entry_of("made-up-there"), info=info)
        self.dead: RootCause | None = None
        self.kept_at: Path | None = None

    def alive(self) -> RootCause | None:
        return self.dead

    def log(self) -> None: ...

    def keep_log_at(self, path: Path) -> None:
        self.kept_at = path

    def stop(self) -> None: ...


def test_they_are_found_by_name_while_they_are_held_and_not_measured_as_this_machines(state_folder: Path) -> None:
    servers = {name: Elsewhere(f"node of {name}") for name in held.names("fleet", 2)}
    with held.registered(servers, "fleet") as entries:
        assert [entry.name for entry in registry.find_all("fleet")] == ["fleet.0", "fleet.1"]
        assert all(not LocalServer(entry).is_here for entry in entries)
        assert servers["fleet.1"].kept_at == registry.find("fleet.1").log
        assert registry.is_ours(registry.find("fleet.0").log)
        with pytest.raises(registry.NameTakenError, match="'fleet' is there already"):
            held.names("fleet", 2)
        registry.claim(entry_of("local"))  # its port is another machine's
        registry.remove(entry_of("local"))
    assert registry.entries() == []
    assert held.names("fleet", 1) == ["fleet"]


def test_one_that_dies_is_told_by_name() -> None:
    servers = {"a": Elsewhere("node X"), "b": Elsewhere("node Y")}
    servers["b"].dead = RootCause("node_lost", "its node is gone")
    with pytest.raises(ServerError, match="the server 'b' died: its node is gone"):
        held.wait_for_a_death(servers)


def test_stopping_one_ends_its_holder_and_nothing_else(state_folder: Path) -> None:
    code = (
        "import contextlib, time\n"
        "from kvload.servers.lifecycle import held, interrupts\n"
        "from tests.servers.lifecycle.test_held import Elsewhere\n"
        "with contextlib.suppress(KeyboardInterrupt), interrupts.kept_back() as asked:\n"
        "    with held.registered({'one': Elsewhere('node X')}):\n"
        "        print('up', flush=True)\n"
        "        asked.pause(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        report = stop(registry.find("one"))
        assert holder.wait(30) == 0
    assert report.was_running
    assert not report.killed
    assert registry.entries() == []
