"""The servers that were launched: one JSON file each in kvload's state folder.

An entry is believed only as far as its processes prove it: pid and start of the process must both agree, so a number
that now belongs to a stranger is never taken for the server.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from kvload.address import Address
from kvload.config import state_dir
from kvload.errors import ServerError, UsageError
from kvload.records import ServerInfo
from kvload.servers.lifecycle import rootcause
from kvload.servers.lifecycle.process import is_alive
from kvload.servers.lifecycle.rootcause import RootCause

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

State = Literal["starting", "ready", "dead"]


class PortHeldError(UsageError):
    """A living entry has the port that another is to listen on."""


class NameTakenError(UsageError):
    """Another living entry has the name."""


class ServerEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One launched server.

    Attributes:
        state: as the launcher left it; see :func:`state_of` for what is true now.
        pid, mark: the engine's main process and when it started (see :func:`.process.start_mark`); 0 and
            empty until it runs.
        keeper_pid, keeper_mark: the process that waits for it and leads its session.
        launcher_pid, launcher_mark: who is starting it.
        token: random value in the environment of all its processes.
        info: what goes into a run's manifest; command and environment have their secrets masked.
        vocab_size: tokens of the vocabulary, where the model says.
        reset_path: where a POST empties the prefix cache.
        launched_at: Unix seconds.
        gpu_used_before_mib: memory in use on its GPUs, or on all, before it was started.
        group: name that it shares with its replicas.
    """

    name: str
    engine: str
    host: str
    port: int
    url: str
    token: str
    state: State
    info: ServerInfo
    log_path: str
    exit_path: str
    launched_at: float
    pid: int = 0
    mark: str = ""
    keeper_pid: int = 0
    keeper_mark: str = ""
    launcher_pid: int = 0
    launcher_mark: str = ""
    python: str | None = None
    model_path: str | None = None
    load_format: str = "auto"
    vocab_size: int | None = None
    stop_grace_s: float = 10.0
    reset_path: str | None = None
    gpu_used_before_mib: int | None = None
    group: str | None = None

    @property
    def address(self) -> Address:
        """Where it answers."""
        return Address.parse(self.url, where=self.name)

    @property
    def anchors(self) -> list[tuple[int, str]]:
        """Its known processes with their start marks."""
        return [(pid, mark) for pid, mark in ((self.keeper_pid, self.keeper_mark), (self.pid, self.mark)) if pid]

    @property
    def log(self) -> Path:
        return Path(self.log_path)


def folder() -> Path:
    """Where the entries lie, made where missing and readable by the user alone."""
    path = state_dir() / "servers"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(
            f"cannot make kvload's state folder: {error.strerror}",
            where=str(path),
            hint="point KVLOAD_STATE_DIR to a folder you can write to",
        ) from error
    return path


def check_name(name: str) -> str:
    """The name, if it may become a file's.

    Raises:
        UsageError: it may not.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot name a server", where="--name", hint="letters, digits, '.', '_' and '-'")
    return name


def claim(entry: ServerEntry) -> None:
    """Write a new entry, in one step, if no living server has its name or its port; a dead one's name gives way.

    Raises:
        NameTakenError: a server of that name is there.
        PortHeldError: a living server, or one that is being started, has the port.
    """
    path = folder() / f"{check_name(entry.name)}.json"
    with _locked():
        with contextlib.suppress(UsageError):
            if (old := load(entry.name)) is not None and state_of(old) == "dead":
                path.unlink(missing_ok=True)
        if path.exists():
            raise NameTakenError(
                f"a server named '{entry.name}' is there already",
                where="--name",
                hint=f"kvload stop {entry.name}, or choose another --name",
            )
        for other in entries():
            if other.info.node != entry.info.node:
                continue
            if other.port == entry.port and other.name != entry.name and state_of(other) != "dead":
                raise PortHeldError(
                    f"port {entry.port} belongs to the server '{other.name}'",
                    where="--port",
                    hint=f"kvload stop {other.name}, choose another --port, or leave it out for a free one",
                )
        save(entry)


def save(entry: ServerEntry) -> None:
    """Replace an entry on disk in one step, readable by the user alone."""
    path = folder() / f"{entry.name}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(entry))
    temporary.replace(path)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One claim at a time, whoever makes it: two launches cannot both find a name or a port free."""
    with (folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove(entry: ServerEntry) -> None:
    """Forget a server, unless its name has gone to another since; its log stays until the name is used again."""
    with contextlib.suppress(UsageError):
        current = load(entry.name)
        if current is not None and current.token == entry.token:
            (folder() / f"{entry.name}.json").unlink(missing_ok=True)
            if is_ours(Path(entry.exit_path)):
                Path(entry.exit_path).unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether a path that an entry names lies in kvload's state folder: what lies elsewhere is not read or removed."""
    return path.resolve().is_relative_to(state_dir().resolve())


def load(name: str) -> ServerEntry | None:
    """The entry of that name, dead or alive.

    Raises:
        UsageError: its file does not parse.
    """
    return _read(folder() / f"{check_name(name)}.json")


def entries() -> list[ServerEntry]:
    """All entries that can be read, dead or alive, oldest first; see :func:`damaged` for the others."""
    found = []
    for path in folder().glob("*.json"):
        with contextlib.suppress(UsageError):
            found.append(_read(path))
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.launched_at)


def damaged() -> list[UsageError]:
    """What is wrong with the entries that cannot be read, one error each."""
    found = []
    for path in sorted(folder().glob("*.json")):
        try:
            _read(path)
        except UsageError as error:
            found.append(error)
    return found


def _read(path: Path) -> ServerEntry | None:
    try:
        entry = msgspec.json.decode(path.read_bytes(), type=ServerEntry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), hint="remove the file") from error
    if entry.name != path.stem or not NAME.fullmatch(entry.name):
        raise UsageError(f"names the server '{entry.name}'", where=str(path), hint="remove the file")
    return entry


def state_of(entry: ServerEntry) -> State:
    """What is true now: the engine's process lives, is being started, or is gone."""
    if entry.pid and is_alive(entry.pid, entry.mark):
        return entry.state
    if entry.state == "starting" and is_alive(entry.launcher_pid, entry.launcher_mark):
        return "starting"
    return "dead"


def why_dead(entry: ServerEntry) -> RootCause:
    """Why a dead server died, from its log and its keeper's note."""
    if not (is_ours(entry.log) and is_ours(Path(entry.exit_path))):
        return RootCause("exit", "its entry names files outside kvload's state folder, which are not read")
    return rootcause.recognise(rootcause.read_tail(entry.log), rootcause.read_exit_state(Path(entry.exit_path)))


def find(name: str | None = None) -> ServerEntry:
    """A running server by name, or the only one there is.

    Raises:
        UsageError: there is none of that name; none at all; or several and no name was given.
        ServerError: it died; the message says why.
    """
    if name is None:
        known = entries()
        running = [entry for entry in known if state_of(entry) == "ready"]
        if len(running) > 1:
            names = ", ".join(entry.name for entry in running)
            raise UsageError("several servers are running", where="--server", hint=f"name one of: {names}")
        candidates = running or known[-1:]
        if not candidates:
            raise UsageError("no server is running", hint="start one with 'kvload launch', or give --url")
        entry = candidates[0]
    else:
        found = load(name)
        if found is None:
            names = ", ".join(entry.name for entry in entries()) or "none"
            raise UsageError(f"there is no server '{name}'", where="--server", hint=f"known: {names}")
        entry = found
    state = state_of(entry)
    if state == "starting" and not is_alive(entry.launcher_pid, entry.launcher_mark):
        raise ServerError(
            f"the launch of '{entry.name}' was killed before the server was ready", hint=f"kvload stop {entry.name}"
        )
    if state == "starting":
        raise ServerError(f"the server '{entry.name}' is still starting", hint="kvload status shows how far it is")
    if state == "dead":
        cause = why_dead(entry)
        raise ServerError(
            f"the server '{entry.name}' died: {cause.message}",
            where=entry.log_path,
            hint=f"kvload logs {entry.name} shows its log; kvload stop {entry.name} clears it away",
        )
    return entry


def members(group: str) -> list[ServerEntry]:
    """The replicas that share a name, dead or alive, by their own names."""
    return sorted((entry for entry in entries() if entry.group == group), key=lambda entry: entry.name)


def find_all(name: str | None = None) -> list[ServerEntry]:
    """The running server of that name, or all replicas that share it; without a name the only ones there are.

    Raises:
        UsageError, ServerError: as :func:`find`, for any of them.
    """
    if name is None:
        running = [entry for entry in entries() if state_of(entry) == "ready"]
        groups = {entry.group for entry in running}
        name = next(iter(groups)) if len(groups) == 1 else None
    replicas = [] if name is None or load(name) is not None else members(name)
    return [find(entry.name) for entry in replicas] or [find(name)]


def as_dict(entry: ServerEntry) -> dict[str, Any]:
    """An entry as ``status --json`` shows it, without the token."""
    value: dict[str, Any] = msgspec.to_builtins(entry)
    value.pop("token", None)
    value["state"] = state_of(entry)
    if value["state"] == "dead":
        value["why"] = msgspec.to_builtins(why_dead(entry))
    return value
