"""The connections to one server: which are in use, idle, being opened, or to be closed."""

import _socket
import errno
import select
import socket
from collections import deque
from typing import Any

from kvload.address import Address
from kvload.workloads.client.connection import Connection, State
from kvload.workloads.client.network import resolve
from kvload.workloads.clock import enable_receive_stamps

_MOST_OPENED_AHEAD = 256


class ConnectionPool:
    """Opens connections, keeps those that may serve another request, and closes the others.

    Args:
        address: the server.
        epoll: where every connection is registered.

    Attributes:
        by_fd: every connection that is not closed, by its descriptor.
        opened: how many were ever opened.
        kernel_stamps: the kernel stamps what arrives on all of them.

    Raises:
        ServerError: the host's name cannot be resolved.
    """

    def __init__(self, address: Address, epoll: Any) -> None:
        self._host = address.host
        self._family, self._address = resolve(address)
        self._tls = address.tls_context()
        self._epoll = epoll
        self.by_fd: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self._spare: deque[Connection] = deque()
        self._closing: list[Any] = []
        self.opened = 0
        self.kernel_stamps = True

    @property
    def stamps_are_early(self) -> bool:
        """What is read late is still known to have come early: kernel stamps, and no TLS between."""
        return self.kernel_stamps and self._tls is None

    def take(self) -> Connection | None:
        """A connection for a request: an idle one, else one that is just being opened; None where there is neither."""
        if self._idle:
            # the one used last: the others grow old and are closed by the server, instead of all being kept half-alive
            connection = self._idle.pop()
            connection.state = State.HEAD
            return connection
        if self._spare:
            connection = self._spare.popleft()
            connection.opened_for_it = True
            return connection
        return None

    def new(self, *, spare: bool = False) -> Connection:
        """A connection that is not open yet, see :meth:`open`.

        Args:
            spare: it is opened ahead of the request that will want it.

        Raises:
            OSError: this process may have no more files, or this machine no more of something.
        """
        # the C class: gevent replaces the Python one by one that would block its own way
        sock = _socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kernel_stamps = enable_receive_stamps(sock) and self.kernel_stamps  # type: ignore[arg-type]
        self.opened += 1
        connection = Connection(sock, self._tls, self._host)
        self.by_fd[connection.fd] = connection
        if spare:
            self._spare.append(connection)
        else:
            connection.opened_for_it = True
        return connection

    def open(self, connection: Connection) -> int:
        """Begin to connect; returns the error's number if it cannot even begin, else 0."""
        code: int = connection.sock.connect_ex(self._address)
        if code not in {0, errno.EINPROGRESS}:
            return code
        self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        return 0

    def lacking(self, wanted: int) -> int:
        """How many more connections must be opened for so many to be idle or on their way, up to a limit at a time."""
        return min(wanted - len(self._idle) - len(self._spare), _MOST_OPENED_AHEAD)

    def is_open(self, connection: Connection) -> None:
        """A connection opened ahead is open: it waits for a request."""
        self._spare.remove(connection)
        self.keep(connection)

    def keep(self, connection: Connection) -> None:
        """A connection is free for another request."""
        connection.state = State.IDLE
        self._idle.append(connection)

    def discard(self, connection: Connection) -> None:
        """Never use a connection again; it is closed by :meth:`close_discarded`."""
        if self.by_fd.pop(connection.fd, None) is None:
            return
        if connection.state is State.OPENING:
            if connection in self._spare:
                self._spare.remove(connection)
        elif connection.state is State.IDLE:
            self._idle.remove(connection)
        connection.state = State.CLOSED
        # closed only when the turn is over: what is left of the turn may still hold events of this descriptor's number
        self._closing.append(connection.sock)

    def close_discarded(self) -> None:
        """Close what was discarded."""
        for sock in self._closing:
            sock.close()
        self._closing.clear()

    def close(self) -> None:
        """Close everything."""
        for connection in list(self.by_fd.values()):
            self.discard(connection)
        self.close_discarded()
