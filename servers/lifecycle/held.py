"""Servers of a cluster in this machine's registry, for as long as a process of this machine holds them.

They are found, replayed against, shown and stopped by name as servers of this machine are: the process that stands for
one is its holder's, and its log is the copy that its place brings here. The holder answers SIGTERM by ending them.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from kvload.errors import ServerError
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.places import Server
from kvload.servers.lifecycle.process import start_mark
from kvload.servers.lifecycle.registry import ServerEntry

STOP_GRACE_S = 90.0
"""How long a holder may take to end its servers over a network."""


def names(wanted: str, count: int) -> list[str]:
    """What servers are called here: ``wanted``; ``wanted.0`` and so on where they are several.

    Raises:
        NameTakenError: living servers have that name.
    """
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in wanted)[:56]
    single = registry.load(plain)
    if any(registry.state_of(one) != "dead" for one in [*registry.members(plain), *([single] if single else [])]):
        raise registry.NameTakenError(
            f"a server named '{plain}' is there already", where="--name", hint=f"kvload stop {plain}"
        )
    return [plain] if count == 1 else [f"{plain}.{number}" for number in range(count)]


@contextlib.contextmanager
def registered(servers: Mapping[str, Server], group: str | None = None) -> Iterator[list[ServerEntry]]:
    """Have servers in the registry under names of this machine's, held by this process, until the context ends.

    Args:
        servers: by name.
        group: name that they share; None for a single one.

    Raises:
        NameTakenError: a living server has one of the names.
    """
    held: list[ServerEntry] = []
    try:
        for name, server in servers.items():
            entry = _held(name, group, server)
            registry.claim(entry)
            server.keep_log_at(entry.log)
            held.append(entry)
        yield held
    finally:
        for entry in held:
            registry.remove(entry)


def wait_for_a_death(servers: Mapping[str, Server], every_s: float = 1.0) -> None:
    """Wait until one of the servers is gone.

    Raises:
        ServerError: always, once that is so.
    """
    while True:
        for name, server in servers.items():
            if (why := server.alive()) is not None:
                raise ServerError(f"the server '{name}' died: {why.message}", where=server.entry.info.node)
        time.sleep(every_s)


def _held(name: str, group: str | None, server: Server) -> ServerEntry:
    folder = registry.folder()
    logs = folder.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    return msgspec.structs.replace(
        server.entry,
        name=registry.check_name(name),
        info=msgspec.structs.replace(server.entry.info, name=name),
        group=group,
        state="ready",
        token=secrets.token_hex(16),
        pid=os.getpid(),
        mark=start_mark(os.getpid()) or "",
        keeper_pid=0,
        keeper_mark="",
        launcher_pid=0,
        launcher_mark="",
        log_path=str(Path(logs) / f"{name}.log"),
        exit_path=str(folder / f"{name}.exit"),
        stop_grace_s=STOP_GRACE_S,
        gpu_used_before_mib=None,
    )
