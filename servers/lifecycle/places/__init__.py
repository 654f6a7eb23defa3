"""Where servers are started: on this machine, or on the nodes of a cluster, behind one protocol.

kvload schedules nothing itself. :mod:`.local` starts a server here; :mod:`.ray` asks Ray for a node with as many GPUs
as the server takes. Either way a server ends with whoever started it.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvload.servers.engines.base import LaunchRequest
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.rootcause import RootCause
from kvload.servers.lifecycle.starting import OnEvent

Launch = Callable[[LaunchRequest, OnEvent, int | None], ServerEntry]
"""Starts a server on the machine it is called on and waits until it answers: what is started, who is told, and a
descriptor with whose end of file the server ends (see :mod:`kvload.servers.lifecycle.keeper`)."""


@dataclass(frozen=True)
class Room:
    """Room for one server at a time.

    Attributes:
        node: the cluster's name for the machine; empty for this one.
        name: what users are told.
        gpus: how many of its GPUs the server gets; 0 in a cluster without any.
        kind: what its GPUs are, where the cluster knows.
        left: how many GPUs of the machine no room has, said with its first room.
    """

    node: str
    name: str
    gpus: int
    kind: str | None = None
    left: int = 0


class Server(Protocol):
    """A server that runs, wherever that is."""

    @property
    def entry(self) -> ServerEntry:
        """What is known of it: its address, what goes into manifests, and a copy of its log on this machine."""

    @property
    def is_here(self) -> bool:
        """It runs on this machine."""

    def alive(self) -> RootCause | None:
        """Why it is certainly gone; None if it is there, or may be."""

    def log(self) -> None:
        """Bring the copy of its log on this machine up to date."""

    def keep_log_at(self, path: Path) -> None:
        """Keep the copy of its log there from now on; nothing where the log lies on this machine anyway."""

    def stop(self) -> None:
        """End it whole.

        Raises:
            ServerError: some of its processes would not end.
        """


class Place(Protocol):
    """Somewhere servers can be started."""

    def rooms(self, gpus: int) -> list[Room]:
        """Room for servers of so many GPUs each, as the place is now.

        Raises:
            UsageError: there is none.
        """

    def start(self, request: LaunchRequest, on_event: OnEvent, room: Room | None = None) -> Server:
        """Start a server and wait until it has produced a token.

        Args:
            room: where; wherever there is room where None.

        Raises:
            UsageError: something is asked that cannot be; nothing was started.
            ServerError: the server did not come up, or its verification failed, or its node is gone.
        """

    @property
    def address(self) -> str:
        """This machine's address, as the place's others reach it."""

    def elsewhere(
        self, work: Callable[..., Any], arguments: Mapping[str, Any], count: int, but: str | None
    ) -> AbstractContextManager[int]:
        """Run something on other machines of the place, for as long as the context lasts.

        Args:
            work: found by its name there.
            count: how often.
            but: name of the room whose machine is left out.

        Returns:
            how often it runs: 0 where there is no other machine.
        """
