"""HTTP/1.1 as far as a streaming client needs it: request bytes, response heads, and where a body ends (RFC 9112)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvload import __version__
from kvload.address import Address
from kvload.errors import UsageError
from kvload.records import SERVER_HEADER

MAX_HEAD_BYTES = 1 << 16
MAX_CHUNK_LINE_BYTES = 1 << 10
MAX_SERVER_NAME = 128
"""Letters of a server's name that are kept."""

_SERVER_HEADER = SERVER_HEADER.encode()

Framing = Literal["chunked", "length", "close"]


class WireError(ValueError):
    """Bytes that are not HTTP as RFC 9112 has it."""


class RequestHeads:
    """Makes the head of every request to one server; everything but path, length and id is put together once.

    Args:
        headers: the user's own headers; they replace ours of the same name.

    Raises:
        UsageError: a header's name or value cannot be sent as it is.
    """

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        fields = {
            "host": ("Host", address.authority),
            "user-agent": ("User-Agent", f"kvload/{__version__}"),
            "accept": ("Accept", "text/event-stream"),
            "accept-encoding": ("Accept-Encoding", "identity"),
            "content-type": ("Content-Type", "application/json"),
        }
        check_headers(headers)
        fields |= {name.lower(): (name, value) for name, value in headers.items()}
        self._target = address.target
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.values())
        self._rest = f" HTTP/1.1\r\n{lines}X-Request-Id: "

    def head(self, path: str, length: int, request_id: str) -> bytes:
        """The head of one POST request, with the empty line that ends it."""
        lines = f"POST {self._target(path)}{self._rest}{request_id}\r\nContent-Length: {length}\r\n\r\n"
        return lines.encode("latin-1")


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse headers that cannot be sent.

    Raises:
        UsageError: a name that is none or is ours to set, or a value with characters that no header may carry.
    """
    for name, value in headers.items():
        bad_name = not name or not name.isascii() or any(char in ' :\r\n\t()<>@,;\\"/[]?={}' for char in name)
        if bad_name or name.lower() in {"content-length", "transfer-encoding", "connection"}:
            raise UsageError(f"the header '{name}' cannot be set", where="--header")
        if any(ord(char) < 0x20 or ord(char) == 0x7F or ord(char) > 0xFF for char in value):
            raise UsageError(f"the value of the header '{name}' cannot be sent", where="--header")


@dataclass(frozen=True)
class ResponseHead:
    """What matters of a response's head.

    Attributes:
        length: bytes of the body, for ``framing == "length"``.
        keep_alive: the connection may serve another request afterwards.
        server: the server that answered, where a router on the way names it.
    """

    status: int
    framing: Framing
    length: int
    keep_alive: bool
    content_type: str
    server: str | None = None


@functools.lru_cache(maxsize=64)
def parse_head(head: bytes) -> ResponseHead:
    """Read a response's head, up to and without the empty line.

    Raises:
        WireError: it is not one, or its framing is contradictory or unknown.
    """
    status_line, *lines = head.split(b"\r\n")
    version, _, rest = status_line.partition(b" ")
    code = rest[:3]
    if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not (len(code) == 3 and code.isdigit()):
        raise WireError("the answer is not HTTP/1.1")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, separator, value = line.partition(b":")
        if not separator or name != name.strip() or not name:
            raise WireError("a malformed header line")
        key = name.lower()
        headers[key] = headers[key] + b"," + value.strip() if key in headers else value.strip()
    status = int(code)
    connection = headers.get(b"connection", b"").lower()
    keep_alive = b"close" not in connection and (version == b"HTTP/1.1" or b"keep-alive" in connection)
    content_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise WireError("a compressed answer, which was not asked for")
    coding = headers.get(b"transfer-encoding", b"").lower()
    named = headers.get(_SERVER_HEADER)
    server = None if named is None else named[:MAX_SERVER_NAME].decode("latin-1")
    if status in {204, 304} or status < 200:
        return ResponseHead(status, "length", 0, keep_alive, content_type, server)
    if coding:
        if coding != b"chunked":
            raise WireError(f"unknown transfer coding {coding.decode('latin-1')!r}")
        return ResponseHead(status, "chunked", 0, keep_alive, content_type, server)
    if b"content-length" in headers:
        lengths = {part.strip() for part in headers[b"content-length"].split(b",")}
        text = lengths.pop()
        if lengths or not text.isdigit() or len(text) > 18:
            raise WireError("a malformed Content-Length")
        return ResponseHead(status, "length", int(text), keep_alive, content_type, server)
    return ResponseHead(status, "close", 0, False, content_type, server)


class ChunkScanner:
    """Follows chunked transfer only far enough to know when the body has ended."""

    __slots__ = ("_line", "_need", "_state")

    _SIZE, _DATA, _TRAILER, _END = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        self._need = 0
        self._line = b""

    def feed(self, data: bytes) -> bool:
        """Take more of the body; True once it has ended.

        Raises:
            WireError: a chunk's size is no number, a chunk does not end where it should, or bytes follow the end.
        """
        position, size = 0, len(data)
        while position < size:
            if self._state == self._DATA:
                step = min(self._need, size - position)
                position += step
                self._need -= step
                if self._need == 0:
                    self._state = self._SIZE
                continue
            if self._state == self._END:
                raise WireError("bytes after the end of the answer")
            end = data.find(b"\n", position)
            if end < 0:
                self._line += data[position:]
                if len(self._line) > MAX_CHUNK_LINE_BYTES:
                    raise WireError("an endless chunk line")
                return False
            line = self._line + data[position : end + 1]
            self._line = b""
            position = end + 1
            if not line.endswith(b"\r\n"):
                raise WireError("a chunk line without CR LF")
            if self._state == self._TRAILER:
                if line == b"\r\n":
                    self._state = self._END
            else:
                length = chunk_size(line[:-2])
                self._state = self._DATA if length else self._TRAILER
                # the CR LF behind the data is counted with it, and checked when the body is taken apart
                self._need = length + 2
        return self._state == self._END


def chunk_size(line: bytes) -> int:
    """The size in a chunk's first line, whose extensions are ignored.

    Raises:
        WireError: it is not a hexadecimal number.
    """
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
        raise WireError("a chunk size that is no number")
    return int(digits, 16)


def dechunk(wire: bytes, start: int) -> tuple[list[bytes], Sequence[int] | npt.NDArray[np.int64], str | None]:
    """Take chunked transfer apart, as far as it came and makes sense.

    Args:
        wire: everything received.
        start: where the body begins.

    Returns:
        the chunks' contents; for each where it ends in ``wire``; and what was wrong with what follows them, if
        anything was. A last chunk that came only in part is included as far as it came.
    """
    fast = dechunk_plain(wire, start)
    if fast is not None:
        return (*fast, None)
    contents: list[bytes] = []
    ends: list[int] = []
    position = start
    while (line_end := wire.find(b"\r\n", position)) >= 0:
        try:
            length = chunk_size(wire[position:line_end])
        except WireError as error:
            return contents, ends, str(error)
        begin = line_end + 2
        if length == 0:
            break
        end = min(begin + length, len(wire))
        contents.append(wire[begin:end])
        ends.append(end)
        if wire[end : end + 2] not in {b"\r\n", b"\r", b""}:
            return contents, ends, "a chunk that does not end where its size says"
        position = end + 2
    return contents, ends, None


def dechunk_plain(wire: bytes, start: int) -> tuple[list[bytes], npt.NDArray[np.int64]] | None:
    """:func:`dechunk` of the common case, at a fraction of its cost.

    That is a whole body without extensions or trailers, and without CR LF within its chunks; None for any other.
    """
    if not wire.endswith(b"\r\n0\r\n\r\n"):
        return None
    parts = wire[start:-7].split(b"\r\n")
    sizes, contents = parts[0::2], parts[1::2]
    lengths = list(map(len, contents))
    if list(map(_SIZES.get, sizes)) != lengths:
        return None
    # every chunk adds its size line, two line ends and its content; the last one's line end is cut off above
    steps = np.array(lengths, np.int64)
    steps += np.fromiter(map(len, sizes), np.int64, len(sizes))
    steps += 4
    return contents, np.cumsum(steps) + (start - 2)


_SIZES = {b"%x" % size: size for size in range(1 << 14)}
"""Sizes as servers write them; a longer chunk goes the general way."""
