"""The streaming client: many requests at a time over kept-alive connections, on one epoll loop.

While a stream runs nothing is done but to read, keep the bytes and keep the kernel's receive stamp; the bytes are
looked at only where a body may have ended, and taken apart when it has (``client.answer``). Requests start at absolute
times set with a timerfd. The loop runs on its own or inside another one: its :meth:`StreamLoop.fileno` becomes readable
when there is something to do. Where chunks come thick it is better not to wait for the next one, but to let some gather
(:meth:`StreamLoop.rest`).
"""

import contextlib
import errno
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvload.address import Address, tls_problem
from kvload.workloads.client.connection import Connection, State
from kvload.workloads.client.http1 import RequestHeads, WireError
from kvload.workloads.client.network import real_epoll, real_sleep
from kvload.workloads.client.pace import Pace
from kvload.workloads.client.pool import ConnectionPool
from kvload.workloads.client.raw import RawStream
from kvload.workloads.client.timeouts import NEVER_NS, Timeouts
from kvload.workloads.clock import ANCILLARY_BYTES, DeadlineTimer, RunningTie

_READ_BYTES = 1 << 13
"""Most that one read takes: many chunks. What is left is read at once, and a small buffer costs less to make."""

_EVENTS_AT_ONCE = 32
"""Connections read before it is looked whether a request is due."""

_KEPT_READS = 512
"""Of an answer that is cut for what it is, so many reads are looked at: some megabytes."""

_LOOK_AFTER_NS = 250_000_000
_LOOK_AFTER_READS = 4096
"""How often the answers that are coming in are looked after: for those that went quiet behind their end, and those that
have no end. So many reads hold 32 MiB at most."""

_THIS_MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Reasons for which a connection cannot be opened that are not the server's."""

_Flow = tuple[Callable[..., Any], Callable[[Iterable[Any]], None], Connection]
"""A chunked body coming in over plain TCP, as far as its reads need it: how to receive, where to keep what came."""


class StreamLoop:
    """Sends requests to one server and hands back each one's bytes and times.

    Args:
        address: the server.
        headers: the user's headers, sent with every request.
        timeout_s: a request's limit from its start to its end; None for none.
        on_end: called with every request once it has ended, whatever way.

    Raises:
        ServerError: the host's name cannot be resolved.
    """

    def __init__(
        self,
        address: Address,
        *,
        on_end: Callable[[RawStream], None],
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._heads = RequestHeads(address, headers or {})
        self._on_end = on_end
        self._timeouts = Timeouts(timeout_s)
        self._epoll = real_epoll()()
        self._flowing: dict[int, _Flow] = {}
        self._pool = ConnectionPool(address, self._epoll)
        self._sleep = real_sleep()
        self._pace = Pace()
        self._timer = DeadlineTimer()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._due_ns = NEVER_NS
        self._on_due: Callable[[int], None] = lambda _now: None
        self._tie = RunningTie()
        self._look_after_ns = NEVER_NS
        self._reads_since = 0
        self._is_starting = False
        self._ended_at_once: deque[RawStream] = deque()
        self.in_flight = 0
        self.stale_retries = 0

    @property
    def connects(self) -> int:
        """Connections opened so far."""
        return self._pool.opened

    @property
    def kernel_stamps(self) -> bool:
        """The kernel stamps what arrives."""
        return self._pool.kernel_stamps

    @property
    def is_thick(self) -> bool:
        """Chunks come so thick that it pays to let some gather."""
        return self._pace.nap_ns > 0 and self.in_flight > 0

    def fileno(self) -> int:
        """The epoll descriptor: readable when :meth:`turn` has something to do.

        For that to hold also of what is due, the last call was :meth:`wake`, or :meth:`rest` and gave False.
        """
        fd: int = self._epoll.fileno()
        return fd

    def wake(self) -> None:
        """Make the loop turn once more; the only method that another thread may call."""
        os.eventfd_write(self._wake_fd, 1)

    def at(self, due_ns: int | None, on_due: Callable[[int], None]) -> None:
        """Call ``on_due(now_ns)`` once, as soon as ``due_ns`` (monotonic) has come; replaces what was set before."""
        self._due_ns = NEVER_NS if due_ns is None else due_ns
        self._on_due = on_due

    def start(self, key: Any, path: str, body: bytes, request_id: str) -> RawStream:
        """Send a request now, or as soon as a connection to send it on is open."""
        raw = RawStream(key, time.monotonic_ns())
        payload = self._heads.head(path, len(body), request_id) + body
        self.in_flight += 1
        self._timeouts.begin(raw)
        # what fails at once is handed back by the next turn: whoever starts a request may start the next when it ends
        self._is_starting = True
        connection = self._pool.take()
        if connection is None:
            self._connect(raw, payload)
        else:
            connection.begin(raw, payload, self._tie.steps)
            if connection.state is State.HEAD:
                self._send(connection)
        self._is_starting = False
        return raw

    def warm(self, connections: int) -> None:
        """Open connections until so many are idle or being opened."""
        # without room for another one here, the requests that want it will say so
        with contextlib.suppress(OSError):
            for _ in range(self._pool.lacking(connections)):
                self._open(self._pool.new(spare=True))

    def cut(self) -> None:
        """End every request in flight as censored."""
        for connection in list(self._pool.by_fd.values()):
            if connection.raw is not None:
                self._fail(connection, "cut", "cut off at the end of the run", status="censored")

    def turn(self, wait: bool = False) -> None:
        """Handle what is ready, and what is due; with ``wait`` block until there is something."""
        if wait:
            self._arm()
        reads = 0
        while True:
            ready, wait = self._epoll.poll(-1 if wait else 0, _EVENTS_AT_ONCE), False
            now = time.monotonic_ns()
            if now >= self._due_ns:
                self._fire(now)
            if ready:
                self._handle(ready, now)
                reads += len(ready)
            if len(ready) < _EVENTS_AT_ONCE:
                break
        self._pace.count(reads, len(self._flowing), now)
        self._tie.keep(now)
        self._reads_since += reads
        if now >= self._look_after_ns or self._reads_since > _LOOK_AFTER_READS:
            self._look_after_all(now)
        if now >= self._timeouts.next_ns:
            for connection in self._timeouts.reached(now):
                text = f"not finished {self._timeouts.limit_s:g} s after it was sent"
                self._fail(connection, "timeout", text, status="timeout")
        while self._ended_at_once:
            self._on_end(self._ended_at_once.popleft())
        if self._due_ns <= (now := time.monotonic_ns()):
            self._fire(now)
        self._pool.close_discarded()

    def rest(self, until_ns: int) -> bool:
        """Let chunks gather before the next turn, where they come thick and their stamps do not depend on the reader.

        It sleeps a millisecond at most, and never into what is due.

        Returns:
            whether it is time for the next turn; False where it is better to wait for :meth:`fileno`, or ``until_ns``
            (monotonic) has come.
        """
        now = time.monotonic_ns()
        nap_ns = self._pace.nap_ns
        if not nap_ns or not self.in_flight or now >= until_ns or not self._pool.stamps_are_early:
            self._arm()
            return False
        nap_ns = min(nap_ns, self._next_ns() - now)
        if nap_ns > 0:
            self._sleep(nap_ns / 1e9)
        return True

    def _handle(self, ready: list[tuple[int, int]], now: int) -> None:
        flowing = self._flowing
        for fd, mask in ready:
            stream = flowing.get(fd)
            if stream is None:
                self._ready(fd, mask, now)
                continue
            # The hot path. The body can have ended only where a read ends in an empty line, or is too short to tell.
            receive, keep, connection = stream
            try:
                data, ancillary, _, _ = receive(_READ_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lost(connection, error)
                continue
            if data:
                keep((data, ancillary[0][2] if ancillary else None, now))
                if data[-4:] == b"\r\n\r\n" or len(data) < 5:
                    self._look(connection)
            else:
                self._end_of_file(connection)

    def close(self) -> None:
        """Cut what is in flight and close every descriptor."""
        self.cut()
        self._pool.close()
        self._epoll.close()
        self._timer.close()
        os.close(self._wake_fd)

    def _next_ns(self) -> int:
        return min(self._due_ns, self._timeouts.next_ns, self._look_after_ns)

    def _look_after_all(self, now: int) -> None:
        """End what has no end, and what has ended without saying so."""
        self._reads_since = 0
        for connection in list(self._pool.by_fd.values()):
            if connection.state is not State.BODY or connection.raw is None:
                continue
            if connection.is_too_long(_READ_BYTES):
                self._fail(connection, "malformed", "an answer without an end")
            elif connection.is_quiet():
                # a body that went on behind its end, in one read with it
                self._look(connection)
                if connection.state is State.BODY and connection.says_done():
                    self._end(connection, reusable=False)
        self._look_after_ns = now + _LOOK_AFTER_NS if self.in_flight else NEVER_NS

    def _arm(self) -> None:
        """Have the timer ready for what is due next, before anybody waits for this loop."""
        next_ns = self._next_ns()
        if next_ns != NEVER_NS:
            self._timer.arm(next_ns)

    def _fire(self, now: int) -> None:
        on_due = self._on_due
        self._due_ns = NEVER_NS
        on_due(now)

    def _special(self, fd: int) -> None:
        if fd == self._timer.fd:
            self._timer.clear()
        elif fd == self._wake_fd:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)

    def _connect(self, raw: RawStream, payload: bytes) -> None:
        try:
            connection = self._pool.new()
        except OSError as error:
            raw.status, raw.cause, raw.error = "unsent", "this_machine", error.strerror
            self._over(raw)
            return
        connection.begin(raw, payload, self._tie.steps)
        self._open(connection)

    def _open(self, connection: Connection) -> None:
        code = self._pool.open(connection)
        if code in _THIS_MACHINE:
            self._fail(connection, "this_machine", os.strerror(code), status="unsent")
        elif code:
            self._fail(connection, "connect", os.strerror(code))

    def _send(self, connection: Connection) -> None:
        raw = connection.raw
        if raw is None:
            return
        if raw.t_send_ns is None:
            connection.send_started()
            raw.t_send_ns = time.monotonic_ns()
            self._look_after_ns = min(self._look_after_ns, raw.t_send_ns + _LOOK_AFTER_NS)
        payload = connection.outbox
        try:
            sent = connection.sock.send(payload)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lost(connection, error)
            return
        connection.outbox = payload[sent:] if sent < len(payload) else b""
        connection.want_write(self._epoll, bool(connection.outbox))

    def _ready(self, fd: int, mask: int, now: int) -> None:
        connection = self._pool.by_fd.get(fd)
        if connection is None:
            self._special(fd)
            return
        if connection.state is State.OPENING:
            self._opened(connection, now)
            return
        if mask & select.EPOLLOUT and connection.outbox:
            self._send(connection)
        if mask & ~select.EPOLLOUT and connection.fd in self._pool.by_fd:
            self._receive(connection, now)

    def _opened(self, connection: Connection, now: int) -> None:
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(connection, "connect", os.strerror(code))
            return
        if connection.tls is not None and not connection.shake_hands():
            self._receive(connection, now)
            return
        self._open_done(connection)

    def _open_done(self, connection: Connection) -> None:
        """A connection has been opened: it sends the request it was opened for, or waits for one."""
        connection.want_write(self._epoll, False)
        if connection.raw is not None:
            connection.state = State.HEAD
            self._send(connection)
        else:
            self._pool.is_open(connection)

    def _receive(self, connection: Connection, now: int) -> None:
        try:
            data, ancillary, _, _ = connection.receive(_READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(connection, error)
            return
        stamp = ancillary[0][2] if ancillary else None
        if not data:
            self._end_of_file(connection)
            return
        if connection.tls is not None:
            try:
                data = connection.decrypt(data)
            except ssl.SSLError as error:
                cause = "tls" if connection.state is State.OPENING else "malformed"
                self._fail(connection, cause, tls_problem(error)[0])
                return
            connection.want_write(self._epoll, bool(connection.outbox))
            if connection.state is State.OPENING:
                if connection.shaken:
                    self._open_done(connection)
                return
            if not data:
                if connection.tls_closed:
                    self._end_of_file(connection)
                return
        raw = connection.raw
        if raw is None:
            # a server that speaks unasked on an idle connection: 408 or nonsense
            self._pool.discard(connection)
            return
        raw.reads += (data, stamp, now)
        self._look(connection)
        if connection.tls_closed and connection.raw is raw:
            self._end_of_file(connection)

    def _look(self, connection: Connection) -> None:
        """See whether the answer has ended."""
        raw = connection.raw
        if raw is None:
            return
        try:
            ended = connection.look()
        except WireError as error:
            self._fail(connection, "malformed", str(error))
            return
        if ended:
            raw.complete = True
            self._end(connection, reusable=raw.head is not None and raw.head.keep_alive and not connection.outbox)
        elif connection.fast:
            self._flowing[connection.fd] = (connection.receive, raw.reads.extend, connection)

    def _end_of_file(self, connection: Connection) -> None:
        raw = connection.raw
        if raw is None or connection.state is State.OPENING:
            self._fail(connection, "connect", "the server closed the connection at once")
        elif connection.ends_with_connection():
            raw.complete = True
            self._end(connection, reusable=False)
        elif not raw.reads:
            self._stale_or_failed(connection, "reset", "the connection was closed before any answer")
        else:
            self._fail(connection, "truncated", "the connection was closed in the middle of the answer")

    def _lost(self, connection: Connection, error: OSError) -> None:
        raw = connection.raw
        text = error.strerror or str(error)
        if connection.state is State.OPENING:
            self._fail(connection, "connect", text)
        elif raw is not None and not raw.reads:
            self._stale_or_failed(connection, "reset", text)
        else:
            self._fail(connection, "reset", text)

    def _stale_or_failed(self, connection: Connection, cause: str, text: str) -> None:
        """A request without any answer: sent again if its connection was an old one that the server had given up."""
        raw = connection.raw
        if raw is None or connection.opened_for_it:
            self._fail(connection, cause, text)
            return
        payload = connection.payload
        connection.finish()
        self._pool.discard(connection)
        self.stale_retries += 1
        raw.retries += 1
        raw.t_send_ns = None
        self._connect(raw, payload)

    def _fail(self, connection: Connection, cause: str, text: str, *, status: Any = "failed") -> None:
        raw = connection.raw
        if raw is not None:
            raw.status, raw.cause, raw.error = status, cause, text
            if cause == "malformed":
                # to take a runaway's answer apart would hold up every other one
                del raw.reads[3 * _KEPT_READS :]
        self._end(connection, reusable=False)

    def _end(self, connection: Connection, *, reusable: bool) -> None:
        raw = connection.raw
        self._flowing.pop(connection.fd, None)
        if raw is not None:
            raw.t_end_ns = time.monotonic_ns()
            raw.tie_offset_ns = self._tie.offset_ns if connection.steps_at_start == self._tie.steps else None
            connection.finish()
        if reusable:
            self._pool.keep(connection)
        else:
            self._pool.discard(connection)
        if raw is not None:
            self._over(raw)

    def _over(self, raw: RawStream) -> None:
        self.in_flight -= 1
        if not raw.t_end_ns:
            raw.t_end_ns = time.monotonic_ns()
        if self._is_starting:
            self._ended_at_once.append(raw)
            self.wake()
        else:
            self._on_end(raw)
