"""One connection of the streaming client: its socket, what it is doing, and the answer that is coming in on it."""

import select
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Any

from kvload.workloads.client.http1 import (
    MAX_HEAD_BYTES,
    ChunkScanner,
    Framing,
    ResponseHead,
    WireError,
    dechunk_plain,
    parse_head,
)
from kvload.workloads.client.raw import RawStream

MAX_ANSWER_BYTES = 1 << 26
"""Most that one answer may have on the wire: 64 MiB, some 300,000 chunks."""

_TOO_LONG = f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB"
_DONE = b"data: [DONE]"
_LAST_CHUNKS = b"\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
"""How an event stream ends in chunked transfer, where the server writes every event as a chunk of its own."""


class State(Enum):
    """What a connection is doing."""

    OPENING = 0
    IDLE = 1
    HEAD = 2
    BODY = 3
    CLOSED = 4


class Connection:
    """A non-blocking socket and the request that is on it.

    Attributes:
        fast: a chunked body is coming in over plain TCP: most reads need no further thought.
        payload, outbox: the request's bytes, and those of them (or of TLS) that the kernel has not taken yet.
        opened_for_it: the connection was opened for the request that is on it, and so cannot have been given up by the
            server before.
        steps_at_start: how often wall time had been stepped when the request began.
        reads_seen: length of the answer's list of reads when it was last looked after.
    """

    __slots__ = (
        "_framing",
        "_incoming",
        "_left",
        "_outgoing",
        "_received",
        "_scanned",
        "_scanner",
        "_wants_write",
        "fast",
        "fd",
        "opened_for_it",
        "outbox",
        "payload",
        "raw",
        "reads_seen",
        "receive",
        "shaken",
        "sock",
        "state",
        "steps_at_start",
        "tls",
        "tls_closed",
    )

    def __init__(self, sock: Any, tls: ssl.SSLContext | None, host: str) -> None:
        self.sock = sock
        self.fd: int = sock.fileno()
        self.receive: Callable[..., Any] = sock.recvmsg
        self.state = State.OPENING
        self.raw: RawStream | None = None
        self.fast = False
        self.payload = b""
        self.outbox = b""
        self.opened_for_it = False
        self.steps_at_start = 0
        self._wants_write = True
        self._scanner = ChunkScanner()
        self._scanned = 0
        self._received = 0
        self.reads_seen = 0
        self._left = 0
        self._framing: Framing = "chunked"
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.shaken = tls is None
        self.tls_closed = False
        self.tls: ssl.SSLObject | None = None
        if tls is not None:
            self.tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def begin(self, raw: RawStream, payload: bytes, steps: int) -> None:
        """Take on a request; it is sent by the loop once the connection is open."""
        self.raw = raw
        raw.connection = self
        self.payload = self.outbox = payload
        self.fast = False
        self.steps_at_start = steps
        self._scanned = self._received = self.reads_seen = 0

    def send_started(self) -> None:
        """The request's bytes go out: under TLS they are encrypted now."""
        if self.tls is not None:
            self.tls.write(self.payload)
            self.outbox = self._outgoing.read()

    def finish(self) -> None:
        """The request is over, or goes on elsewhere."""
        if self.raw is not None:
            self.raw.connection = None
        self.raw = None
        self.payload = self.outbox = b""
        self.fast = False
        self.opened_for_it = False

    def want_write(self, epoll: Any, wanted: bool) -> None:
        """Be told, or not, when the kernel takes more bytes."""
        if wanted != self._wants_write:
            self._wants_write = wanted
            epoll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

    def look(self) -> bool:
        """Follow the answer's framing over what came since the last look; True once it has ended.

        Raises:
            WireError: it is not HTTP, or too large.
        """
        raw = self.raw
        if raw is None:
            return False
        reads = raw.reads
        new = reads[-3] if self._scanned == len(reads) - 3 else b"".join(reads[self._scanned :: 3])
        if self.state is State.HEAD:
            head, start = _find_head(new)
            if head is None:
                return False
            raw.head, raw.body_start = head, start
            new = new[start:]
            self._expect_body(head)
        self._scanned = len(reads)
        self._received += len(new)
        if self._received > MAX_ANSWER_BYTES:
            raise WireError(_TOO_LONG)
        if self._framing == "chunked":
            return self._plainly_ended(raw) or self._scanner.feed(new)
        self._left -= len(new)
        if self._left < 0:
            raise WireError("bytes after the end of the answer")
        return self._left == 0 and self._framing == "length"

    @staticmethod
    def _plainly_ended(raw: RawStream) -> bool:
        """Whether this is the end of an answer of the common kind, found at a fraction of the scanner's cost."""
        tail: bytes = raw.reads[-3]
        if tail[-5:] != b"0\r\n\r\n":
            return False
        if len(tail) < len(_LAST_CHUNKS):
            tail = b"".join(raw.reads[-6::3])
        if tail.endswith(_LAST_CHUNKS):
            # no event holds such bytes: JSON has no bare line ends
            return True
        return dechunk_plain(b"".join(raw.pieces), raw.body_start) is not None

    def _expect_body(self, head: ResponseHead) -> None:
        self.state = State.BODY
        self._framing = head.framing
        self._scanner = ChunkScanner()
        self._left = head.length if head.framing == "length" else 2 * MAX_ANSWER_BYTES
        if head.framing == "length" and head.length > MAX_ANSWER_BYTES:
            raise WireError(_TOO_LONG)
        if head.framing == "chunked" and self.tls is None:
            self.fast = True

    def is_quiet(self) -> bool:
        """Whether nothing of the answer came since this was last asked."""
        count = 0 if self.raw is None else len(self.raw.reads)
        quiet = count == self.reads_seen
        self.reads_seen = count
        return quiet

    def is_too_long(self, read_bytes: int) -> bool:
        """Whether the answer has passed :data:`MAX_ANSWER_BYTES`; no read gave more than ``read_bytes``."""
        if self.raw is None or len(self.raw.reads) // 3 * read_bytes <= MAX_ANSWER_BYTES:
            return False
        return sum(map(len, self.raw.pieces)) > MAX_ANSWER_BYTES

    def says_done(self) -> bool:
        """The last that came holds ``[DONE]``: the answer is whole, although its framing has not ended."""
        return self.raw is not None and _DONE in b"".join(self.raw.reads[-6::3])

    def ends_with_connection(self) -> bool:
        """The answer is one that lasts until its connection is closed."""
        return self.raw is not None and self.raw.head is not None and self.raw.head.framing == "close"

    def shake_hands(self) -> bool:
        """Go on with the TLS handshake; True once it is done. What must be sent is in the outbox."""
        if self.tls is None or self.shaken:
            return True
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            self.shaken = True
        self._flush_tls()
        return self.shaken

    def decrypt(self, data: bytes) -> bytes:
        """Plain text of received bytes, as far as whole TLS records came; goes on with the handshake before that.

        Raises:
            ssl.SSLError: the peer does not speak TLS, or its certificate is not accepted.
        """
        if self.tls is None:
            return data
        self._incoming.write(data)
        if not self.shaken and not self.shake_hands():
            return b""
        pieces = []
        while True:
            try:
                piece = self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                self.tls_closed = True
                break
            if not piece:
                self.tls_closed = True
                break
            pieces.append(piece)
        self._flush_tls()
        return b"".join(pieces)

    def _flush_tls(self) -> None:
        """Send what TLS itself has to say; it is small, and what the kernel does not take waits in the outbox."""
        out = self._outgoing.read()
        if out:
            try:
                sent = self.sock.send(out)
            except BlockingIOError:
                sent = 0
            if sent < len(out):
                self.outbox = out[sent:] + self.outbox


def _find_head(wire: bytes) -> tuple[ResponseHead | None, int]:
    """The final response's head, and where its body begins; None as long as it has not come whole.

    Raises:
        WireError: it is not HTTP, endless, or changes the protocol.
    """
    start = 0
    while True:
        end = wire.find(b"\r\n\r\n", start)
        if end < 0:
            beginning = wire[start : start + 7]
            if len(wire) - start > MAX_HEAD_BYTES:
                raise WireError("an endless head")
            if beginning != b"HTTP/1."[: len(beginning)]:
                raise WireError("the answer is not HTTP/1.1")
            return None, 0
        head = parse_head(wire[start:end])
        start = end + 4
        if head.status == 101:
            raise WireError("the server changed the protocol")
        if head.status >= 200:
            return head, start
