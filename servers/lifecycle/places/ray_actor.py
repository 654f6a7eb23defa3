"""What runs on a cluster's node: an actor that holds one server, and what it tells of it."""

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kvload import __version__
from kvload.errors import KvloadError, ServerError, UsageError
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.places import Launch
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.rootcause import RootCause
from kvload.servers.lifecycle.starting import LaunchEvent, StartFailedError
from kvload.servers.lifecycle.stopping import stop

LOG_AT_ONCE = 4 << 20
"""Bytes of a log that are told at a time."""


@dataclass(frozen=True)
class Failure:
    """An error on a node, in a form that travels.

    Attributes:
        usage: what was asked cannot be, rather than that it failed.
        cause: kind of a failed start's root cause; None for other errors.
    """

    message: str
    where: str | None
    hint: str | None
    usage: bool
    cause: str | None = None

    def error(self, node: str) -> KvloadError:
        """The error as it is raised here."""
        where = f"{node}: {self.where}" if self.where else node
        if self.cause is not None:
            error = StartFailedError(self.message, RootCause(self.cause, self.message), Path(where), "")
            error.hint = self.hint
            return error
        return (UsageError if self.usage else ServerError)(self.message, where=where, hint=self.hint)


@dataclass(frozen=True)
class Look:
    """What an actor tells when it is asked.

    Attributes:
        events: of the start, from the one asked for on.
        entry: the server, once it is ready.
        failure: why it did not come up.
        dead: why it is gone.
        log: bytes of its log from the place asked for on.
    """

    events: list[LaunchEvent]
    entry: ServerEntry | None
    failure: Failure | None
    dead: RootCause | None
    log: bytes


class ServerActor:
    """Holds one server on its node; Ray makes an actor of this class.

    Args:
        launch: starts a server on the machine it is called on.
        lease_s: how long it goes on without being asked anything.
    """

    def __init__(self, launch: Launch, lease_s: float) -> None:
        self._launch = launch
        self._lease_s = lease_s
        self._heard = time.monotonic()
        self._held, self._leash = os.pipe()
        self._events: list[LaunchEvent] = []
        self._entry: ServerEntry | None = None
        self._failure: Failure | None = None
        self._stopped = False
        threading.Thread(target=self._watch, daemon=True).start()

    def node(self) -> tuple[str, str, list[str]]:
        """kvload's version here, this node's address, and the GPUs that Ray has given."""
        import ray

        return __version__, ray.util.get_node_ip_address(), [str(gpu) for gpu in ray.get_gpu_ids()]

    def clock(self) -> float:
        """This node's wall clock, Unix seconds."""
        self._heard = time.monotonic()
        return time.time()

    def start(self, request: LaunchRequest) -> None:
        """Begin to start a server; :meth:`look` tells how that goes."""
        threading.Thread(target=self._start, args=(request,), daemon=True).start()

    def look(self, events_from: int, log_from: int) -> Look:
        """How it goes."""
        self._heard = time.monotonic()
        entry, log = self._entry, b""
        if entry is not None:
            with contextlib.suppress(OSError), entry.log.open("rb") as file:
                file.seek(log_from)
                log = file.read(LOG_AT_ONCE)
        dead = None
        if entry is not None and registry.state_of(entry) == "dead":
            dead = registry.why_dead(entry)
        return Look(self._events[events_from:], entry, self._failure, dead, log)

    def stop(self) -> Failure | None:
        """End the server; what would not end is told."""
        self._stopped = True
        if self._entry is None:
            return None
        try:
            stop(self._entry)
        except KvloadError as error:
            return _failure(error)
        return None

    def _start(self, request: LaunchRequest) -> None:
        def note(event: LaunchEvent) -> None:
            if self._stopped:
                raise KeyboardInterrupt
            # what replaces each other on a screen need not be kept
            if self._events and event.kind == self._events[-1].kind and event.text == self._events[-1].text:
                return
            self._events.append(event)

        try:
            self._entry = self._launch(request, note, self._held)
        except KvloadError as error:
            self._failure = _failure(error)
        except BaseException as error:
            self._failure = Failure(f"the launch ended: {error!r}", None, None, usage=False)

    def _watch(self) -> None:
        while time.monotonic() < self._heard + self._lease_s:
            time.sleep(1.0)
        # the leash is let go of with the process
        os._exit(1)


def _failure(error: KvloadError) -> Failure:
    cause = error.cause.kind if isinstance(error, StartFailedError) else None
    return Failure(error.message, error.where, error.hint, isinstance(error, UsageError), cause)
