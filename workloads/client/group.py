"""Several servers behind one loop: a :class:`StreamLoop` for each, turned together."""

import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvload.address import Address
from kvload.workloads.client.loop import StreamLoop
from kvload.workloads.client.network import real_epoll
from kvload.workloads.client.raw import RawStream


class LoopGroup:
    """What a :class:`StreamLoop` is to one server, to several: requests say which of them they are for.

    Args:
        addresses: the servers.
        on_end, headers, timeout_s: as of each loop.

    Raises:
        ServerError: a host's name cannot be resolved.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        on_end: Callable[[RawStream], None],
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._loops = [StreamLoop(one, on_end=on_end, headers=headers, timeout_s=timeout_s) for one in addresses]
        self._epoll = real_epoll()()
        for loop in self._loops:
            self._epoll.register(loop.fileno(), select.EPOLLIN)

    @property
    def in_flight(self) -> int:
        """Requests under way, over all servers."""
        return sum(loop.in_flight for loop in self._loops)

    @property
    def stale_retries(self) -> int:
        return sum(loop.stale_retries for loop in self._loops)

    @property
    def connects(self) -> int:
        """Connections opened so far."""
        return sum(loop.connects for loop in self._loops)

    @property
    def kernel_stamps(self) -> bool:
        """The kernel stamps what arrives, from every server."""
        return all(loop.kernel_stamps for loop in self._loops)

    @property
    def is_thick(self) -> bool:
        """Chunks come so thick that it pays to let some gather."""
        return any(loop.is_thick for loop in self._loops)

    def under_way(self) -> list[int]:
        """Requests under way, by server."""
        return [loop.in_flight for loop in self._loops]

    def fileno(self) -> int:
        """Readable when :meth:`turn` has something to do, as of a loop."""
        fd: int = self._epoll.fileno()
        return fd

    def wake(self) -> None:
        """Make it turn once more."""
        self._loops[0].wake()

    def at(self, due_ns: int | None, on_due: Callable[[int], None]) -> None:
        """Call ``on_due`` once when ``due_ns`` has come."""
        self._loops[0].at(due_ns, on_due)

    def start(self, key: Any, path: str, body: bytes, request_id: str, place: int = 0) -> RawStream:
        """Send a request to the server in that place."""
        return self._loops[place].start(key, path, body, request_id)

    def warm(self, connections: int) -> None:
        """Open connections ahead, shared over the servers."""
        for loop in self._loops:
            loop.warm(-(-connections // len(self._loops)))

    def cut(self) -> None:
        """End every request in flight as censored."""
        for loop in self._loops:
            loop.cut()

    def turn(self, wait: bool = False) -> None:
        """Handle what is ready and what is due, of every server; with ``wait`` block until there is something."""
        if wait:
            self._epoll.poll(-1)
        for loop in self._loops:
            loop.turn()

    def rest(self, until_ns: int) -> bool:
        """Let chunks gather where they come thick, as of a loop."""
        rested = [loop.rest(until_ns) for loop in self._loops]
        return any(rested)

    def close(self) -> None:
        """Cut what is in flight and close every descriptor."""
        self._epoll.close()
        for loop in self._loops:
            loop.close()
