"""The mock server: one epoll loop, one heap of absolute deadlines, one system call for a chunk.

It keeps its own account of what it did: for every request when it arrived and when each token chunk was handed to the
kernel, on the monotonic clock that every process of a machine shares. That log is the truth a client is checked
against (see :mod:`kvload.workloads.mock.truth`).
"""

import heapq
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from kvload.errors import ServerError
from kvload.workloads.clock import ANCILLARY_BYTES, ClockTie, DeadlineTimer, enable_receive_stamps
from kvload.workloads.mock.answers import Request, steps, whole_answer
from kvload.workloads.mock.behaviour import HARMLESS, MockSettings, plan_answer
from kvload.workloads.mock.http_request import HttpRequest, UnreadableRequestError, take_request
from kvload.workloads.mock.pages import Figures, page
from kvload.workloads.mock.prefix import PrefixBlocks
from kvload.workloads.mock.steps import Action, Step, error_response, json_response
from kvload.workloads.mock.truth import TrueAnswer

_READ_BYTES = 1 << 16
_MANY_STREAMS = 32
_GATHER_NS = 200_000
"""With many streams chunks that are due within so much time are written in one turn: to wake up for each costs more
than to write it. The log says when each was written."""

_LINGER_RESET = struct.pack("ii", 1, 0)


class _Stream:
    """A request being answered."""

    __slots__ = ("arrival_ns", "connection", "due_ns", "fault", "key", "step", "steps", "tokens", "waited", "writes_ns")

    def __init__(self, connection: "_Connection", key: str, arrival_ns: int, tokens: int) -> None:
        self.connection = connection
        self.key = key
        self.arrival_ns = arrival_ns
        self.due_ns = arrival_ns
        self.tokens = tokens
        self.fault: str | None = None
        self.waited = False
        self.step: Step | None = None
        self.steps: Iterator[Step] = iter(())
        self.writes_ns: list[int] = []


class _Connection:
    """An accepted socket: bytes of the request that is being read, and bytes the kernel has not taken yet."""

    __slots__ = ("close_when_sent", "fd", "inbox", "outbox", "sock", "stream")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.inbox = bytearray()
        self.outbox = b""
        self.close_when_sent = False
        self.stream: _Stream | None = None


class MockServer:
    """Serves until :meth:`stop` is called or its process is told to end.

    Args:
        settings: what it does.
        host, port: where it listens; port 0 takes a free one (see :attr:`port`).
        log_path: where it writes one :class:`~kvload.workloads.mock.truth.TrueAnswer` a line; None for no log.
        shared_port: other processes may listen there, too; the kernel deals connections out to them.

    Raises:
        ServerError: the port cannot be bound.
    """

    def __init__(
        self,
        settings: MockSettings,
        host: str = "127.0.0.1",
        port: int = 0,
        log_path: Path | None = None,
        *,
        shared_port: bool = False,
    ) -> None:
        self.settings = settings
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared_port:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._listener.bind((host, port))
        except OSError as error:
            self._listener.close()
            raise ServerError(f"cannot listen: {error.strerror}", where=f"{host}:{port}") from error
        enable_receive_stamps(self._listener)
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._timer = DeadlineTimer()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # The loop may see that it is stopped, and close, before the one who stops it has rung. Re-entrant, since a
        # signal handler may stop the loop while it closes.
        self._wake_lock = threading.RLock()
        for fd in (self._listener.fileno(), self._timer.fd, self._wake):
            self._epoll.register(fd, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._heap: list[tuple[int, int, _Stream]] = []
        self._order = 0
        self._turned_ns = 0
        self._waiting: deque[_Stream] = deque()
        self._decoder = msgspec.json.Decoder(Request)
        self._encoder = msgspec.json.Encoder()
        self._log: BinaryIO | None = log_path.open("ab", buffering=0) if log_path else None
        self._tie = ClockTie.measure()
        self._renew_tie_ns = 0
        self._stopped = False
        self.figures = Figures()
        self._prefix = None if settings.prefix_block is None else PrefixBlocks(settings.prefix_block)

    def stop(self) -> None:
        """End :meth:`serve` soon; may be called from a signal handler or another thread."""
        with self._wake_lock:
            self._stopped = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def serve(self) -> None:
        """Answer requests until stopped."""
        try:
            while not self._stopped:
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        """Close every socket and the log; answers still going on are logged as they stand."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._timer.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1
        self._epoll.close()
        if self._log is not None:
            self._log.close()

    def _turn(self) -> None:
        heap = self._heap
        if heap:
            due = heap[0][0]
            self._timer.arm(due if len(heap) < _MANY_STREAMS else max(due, self._turned_ns + _GATHER_NS))
        ready = self._epoll.poll()
        now = time.monotonic_ns()
        if now > self._renew_tie_ns:
            self._tie = ClockTie.measure()
            self._renew_tie_ns = now + 1_000_000_000
        for fd, mask in ready:
            connection = self._connections.get(fd)
            if connection is not None:
                if mask & select.EPOLLOUT:
                    self._flush(connection)
                if mask & ~select.EPOLLOUT:
                    self._read(connection, now)
            elif fd == self._timer.fd:
                self._timer.clear()
            elif fd == self._listener.fileno():
                self._accept()
        while heap:
            due, _, stream = heap[0]
            now = time.monotonic_ns()
            if due > now:
                break
            following = self._advance(stream, now)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following, self._order, stream))
                self._order += 1
        self._turned_ns = now

    def _accept(self) -> None:
        for _ in range(256):
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_receive_stamps(sock)
            connection = _Connection(sock)
            self._connections[connection.fd] = connection
            self._epoll.register(connection.fd, select.EPOLLIN)

    def _drop(self, connection: _Connection, *, reset: bool = False) -> None:
        if self._connections.pop(connection.fd, None) is None:
            return
        if connection.stream is not None:
            self._finish(connection.stream, whole=False)
        if reset:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        connection.sock.close()

    def _read(self, connection: _Connection, now: int) -> None:
        try:
            data, ancillary, _, _ = connection.sock.recvmsg(_READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._drop(connection)
            return
        arrival = self._tie.monotonic_ns(ancillary[0][2]) if ancillary else now
        connection.inbox += data
        if connection.stream is None:
            self._take_request(connection, arrival)

    def _take_request(self, connection: _Connection, arrival_ns: int) -> None:
        try:
            request = take_request(connection.inbox)
        except UnreadableRequestError:
            self._send(connection, error_response("400 Bad Request", "not a request this server can read"))
            self._drop(connection)
            return
        if request is not None:
            connection.close_when_sent = request.close
            self._answer(connection, request, arrival_ns)

    def _answer(self, connection: _Connection, request: HttpRequest, arrival_ns: int) -> None:
        path = request.path
        chat = path == b"/v1/chat/completions"
        if request.method == b"POST" and (chat or path == b"/v1/completions"):
            self._complete(connection, chat, request.body, request.key, arrival_ns)
            return
        if request.method == b"POST" and path == b"/tokenize":
            self._send(connection, self._tokenized(request.body))
            self._next_request(connection)
            return
        small = page(path, self.settings, self.figures) if request.method == b"GET" else None
        self._send(connection, small or error_response("404 Not Found", f"no such path: {path.decode('latin-1')}"))
        self._next_request(connection)

    def _tokenized(self, body: bytes) -> bytes:
        try:
            tokens = self._decoder.decode(body).tokens()
        except msgspec.MsgspecError as error:
            return error_response("400 Bad Request", str(error))
        return json_response("200 OK", {"count": len(tokens), "max_model_len": self.settings.max_model_len})

    def _complete(self, connection: _Connection, chat: bool, body: bytes, key: str, arrival_ns: int) -> None:
        try:
            request = self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            self._send(connection, error_response("400 Bad Request", str(error)))
            self._next_request(connection)
            return
        tokens = request.max_tokens or request.max_completion_tokens or self.settings.default_tokens
        prompt_tokens = request.prompt_tokens()
        if prompt_tokens + tokens > self.settings.max_model_len or tokens < 1:
            text = f"prompt and answer need {prompt_tokens + tokens} tokens, the limit is {self.settings.max_model_len}"
            self._send(connection, error_response("400 Bad Request", text))
            self._next_request(connection)
            return
        chunks = -(-tokens // self.settings.tokens_per_chunk)
        plan = plan_answer(self.settings, body, chunks)
        stream = _Stream(connection, key, arrival_ns, tokens)
        stream.fault = plan.fault
        cached = None if self._prefix is None else self._prefix.cached(request.tokens())
        if request.stream:
            stream.steps = steps(request, chat, tokens, plan, self.settings, cached)
        else:
            total_s = self.settings.ttft_s + (chunks - 1) * self.settings.itl_s
            answer = whole_answer(request, chat, tokens, plan.first_word, cached)
            stream.steps = iter([(round(total_s * 1e9), answer, int(Action.FINISH))])
        connection.stream = stream
        self.figures.prompt_tokens += prompt_tokens
        self.figures.cached_tokens += cached or 0
        if self.settings.slots is not None and self.figures.running >= self.settings.slots:
            stream.waited = True
            self._waiting.append(stream)
            self.figures.waiting += 1
        else:
            self._begin(stream, arrival_ns)

    def _begin(self, stream: _Stream, from_ns: int) -> None:
        self.figures.running += 1
        stream.waited = False
        stream.due_ns = from_ns
        self._schedule(stream)

    def _schedule(self, stream: _Stream) -> None:
        step = stream.step = next(stream.steps)
        stream.due_ns += step[0]
        heapq.heappush(self._heap, (stream.due_ns, self._order, stream))
        self._order += 1

    def _advance(self, stream: _Stream, now: int) -> int | None:
        """Carry out the stream's due step, ``now``; returns when the next is due, None where there is none."""
        connection = stream.connection
        step = stream.step
        if connection.stream is not stream or step is None:
            return None
        _, payload, action = step
        if payload:
            if action == Action.TOKENS:
                stream.writes_ns.append(now)
            if connection.outbox:
                connection.outbox += payload
            else:
                try:
                    sent = connection.sock.send(payload)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._drop(connection)
                    return None
                if sent != len(payload):
                    connection.outbox = payload[sent:]
                    self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        if action > Action.TOKENS:
            self._end(stream, action, now)
            return None
        step = stream.step = next(stream.steps)
        stream.due_ns += step[0]
        return stream.due_ns

    def _end(self, stream: _Stream, action: int, now: int) -> None:
        connection = stream.connection
        if action == Action.STALL:
            return
        if action == Action.RESET:
            self._drop(connection, reset=True)
        elif action == Action.CLOSE:
            self._finish(stream, whole=True, end_ns=now)
            if connection.outbox:
                connection.close_when_sent = True
            else:
                self._drop(connection)
        else:
            self._finish(stream, whole=True, end_ns=now)
            self._next_request(connection)

    def _next_request(self, connection: _Connection) -> None:
        if connection.close_when_sent and not connection.outbox:
            self._drop(connection)
        elif connection.inbox and connection.stream is None and connection.fd in self._connections:
            self._take_request(connection, time.monotonic_ns())

    def _finish(self, stream: _Stream, *, whole: bool, end_ns: int | None = None) -> None:
        stream.connection.stream = None
        if stream.waited:
            self._waiting.remove(stream)
            self.figures.waiting -= 1
        else:
            self.figures.running -= 1
        whole = whole and (stream.fault is None or stream.fault in HARMLESS)
        self.figures.requests += whole
        written = stream.tokens if whole else len(stream.writes_ns) * self.settings.tokens_per_chunk
        self.figures.generation_tokens += written
        if self._log is not None:
            answer = TrueAnswer(
                request_id=stream.key,
                arrival_ns=stream.arrival_ns,
                end_ns=time.monotonic_ns() if end_ns is None else end_ns,
                writes_ns=stream.writes_ns,
                tokens=written,
                fault=stream.fault,
                whole=whole,
            )
            self._log.write(self._encoder.encode(answer) + b"\n")
        slots = self.settings.slots
        if self._waiting and not self._stopped and (slots is None or self.figures.running < slots):
            self.figures.waiting -= 1
            self._begin(self._waiting.popleft(), time.monotonic_ns())

    def _send(self, connection: _Connection, payload: bytes) -> None:
        try:
            sent = 0 if connection.outbox else connection.sock.send(payload)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        if sent != len(payload):
            connection.outbox += payload[sent:]
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.outbox)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        connection.outbox = connection.outbox[sent:]
        if not connection.outbox:
            self._epoll.modify(connection.fd, select.EPOLLIN)
            if connection.close_when_sent and connection.stream is None:
                self._drop(connection)
