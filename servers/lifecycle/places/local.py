"""Servers on this machine."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from kvload.errors import UsageError
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.places import Launch, Room
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.rootcause import RootCause
from kvload.servers.lifecycle.starting import OnEvent
from kvload.servers.lifecycle.stopping import stop


class LocalServer:
    """A server in the registry of this machine.

    Args:
        entry: the registry's.
        leash: descriptors whose end ends the server, closed with it.
    """

    def __init__(self, entry: ServerEntry, leash: Sequence[int] = ()) -> None:
        self._entry = entry
        self._leash = list(leash)

    @property
    def entry(self) -> ServerEntry:
        return self._entry

    @property
    def is_here(self) -> bool:
        """Unless it is a cluster's that a process here holds (see :mod:`kvload.servers.lifecycle.held`)."""
        return self._entry.info.node is None

    def alive(self) -> RootCause | None:
        """By its process, and by its log where that has gone."""
        return registry.why_dead(self._entry) if registry.state_of(self._entry) == "dead" else None

    def log(self) -> None:
        """The log lies here already."""

    def keep_log_at(self, path: Path) -> None:
        """It stays where it is."""

    def stop(self) -> None:
        """End all of its processes."""
        try:
            stop(self._entry)
        finally:
            while self._leash:
                os.close(self._leash.pop())


class LocalPlace:
    """This machine. A server ends with this process, however that ends.

    Args:
        launch: starts a server here.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def rooms(self, gpus: int) -> list[Room]:
        """None: this machine's GPUs are named by the user."""
        raise UsageError(f"name the {gpus} GPUs", where="--gpus")

    def start(self, request: LaunchRequest, on_event: OnEvent, room: Room | None = None) -> LocalServer:
        """Start a server here."""
        del room
        held, leash = os.pipe()
        try:
            entry = self._launch(request, on_event, held)
        except BaseException:
            os.close(leash)
            raise
        finally:
            os.close(held)
        return LocalServer(entry, (leash,))

    address = "127.0.0.1"

    def elsewhere(
        self, work: Callable[..., Any], arguments: Mapping[str, Any], count: int, but: str | None
    ) -> AbstractContextManager[int]:
        """There is no other machine."""
        del work, arguments, count, but
        return nullcontext(0)
