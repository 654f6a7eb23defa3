"""HTTP framing against the standard library's client, over every way of cutting it into reads."""

import http.client
import io
import socket
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.address import Address
from kvload.errors import UsageError
from kvload.workloads.client.http1 import ChunkScanner, RequestHeads, WireError, dechunk, parse_head

BODIES = st.lists(st.binary(min_size=1, max_size=40) | st.just(b"data: {}\r\n\r\n") | st.just(b"0\r\n\r\n"), max_size=8)
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def encoded(contents: list[bytes], *, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    chunks = b"".join(b"%X%b\r\n%b\r\n" % (len(content), extension, content) for content in contents)
    return chunks + b"0\r\n" + trailer + b"\r\n"


def standard_library_reads(wire: bytes) -> bytes:
    class Socket:
        def makefile(self, *_args: Any) -> io.BytesIO:
            return io.BytesIO(wire)

    response = http.client.HTTPResponse(cast(socket.socket, Socket()))
    response.begin()
    return response.read()


@given(BODIES, st.sampled_from([b"", b";name=value"]), st.sampled_from([b"", b"Trailer: yes\r\n"]), st.data())
def test_the_end_is_seen_exactly_where_it_is(
    contents: list[bytes], extension: bytes, trailer: bytes, data: st.DataObject
) -> None:
    wire = encoded(contents, extension=extension, trailer=trailer)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    scanner = ChunkScanner()
    ended = [scanner.feed(piece) for piece in pieces if piece]
    assert ended[-1]
    assert not any(ended[:-1])
    with pytest.raises(WireError):
        scanner.feed(b"x")


@given(BODIES, st.sampled_from([b"", b";name=value"]))
def test_contents_and_their_places(contents: list[bytes], extension: bytes) -> None:
    wire = HEAD + encoded(contents, extension=extension)
    found, ends, broken = dechunk(wire, len(HEAD))
    assert broken is None
    assert b"".join(found) == standard_library_reads(wire)
    assert found == contents
    for content, end in zip(found, ends, strict=True):
        assert wire[end - len(content) : end] == content
        assert wire[end : end + 2] == b"\r\n"


@given(BODIES.filter(bool), st.data())
def test_a_cut_off_body_gives_what_came(contents: list[bytes], data: st.DataObject) -> None:
    wire = encoded(contents)
    found, ends, broken = dechunk(wire[: data.draw(st.integers(0, len(wire)))], 0)
    assert broken is None
    assert b"".join(contents).startswith(b"".join(found))
    assert len(found) == len(ends)


@given(st.binary(max_size=200))
def test_nonsense_never_breaks_more_than_the_answer(wire: bytes) -> None:
    dechunk(wire, 0)
    try:
        ChunkScanner().feed(wire)
        parse_head(wire)
    except WireError:
        pass


@pytest.mark.parametrize("wire", [b"zz\r\n", b"-1\r\n", b"\r\n", b"5\nhello", b"1" * 2000, b"+5\r\nhello\r\n"])
def test_broken_sizes(wire: bytes) -> None:
    with pytest.raises(WireError):
        ChunkScanner().feed(wire)


@pytest.mark.parametrize(
    ("head", "framing", "length", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", "length", 5, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close", "length", 5, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 5", "chunked", 0, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5", "length", 5, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", "length", 5, True),
        (b"HTTP/1.1 200 OK", "close", 0, False),
        (b"HTTP/1.1 204 No Content", "length", 0, True),
    ],
)
def test_heads(head: bytes, framing: str, length: int, keep_alive: bool) -> None:
    found = parse_head(head)
    assert (found.framing, found.length, found.keep_alive) == (framing, length, keep_alive)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200",
        b"SSH-2.0",
        b"HTTP/1.1 abc",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5",
    ],
)
def test_heads_that_are_none(head: bytes) -> None:
    with pytest.raises(WireError):
        parse_head(head)


def test_request_heads() -> None:
    heads = RequestHeads(Address.parse("http://h:1/base"), {"Authorization": "Bearer k", "user-agent": "mine"})
    text = heads.head("/v1/completions", 7, "r1").decode()
    first, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
    assert first == "POST /base/v1/completions HTTP/1.1"
    assert {"Host: h:1", "Authorization: Bearer k", "user-agent: mine", "Content-Length: 7", "X-Request-Id: r1"} <= set(
        lines
    )
    assert not any(line.startswith("User-Agent") for line in lines)


@pytest.mark.parametrize(
    ("name", "value"), [("a b", "x"), ("Content-Length", "1"), ("A", "x\r\nB: y"), ("A", "\u20ac")]
)
def test_headers_that_cannot_be_sent(name: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        RequestHeads(Address.parse("h"), {name: value})
    assert value not in str(caught.value)


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked", b"X-Other: 1"])
def test_a_router_names_the_server_that_answered(framing: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + framing
    assert parse_head(head).server is None
    assert parse_head(head + b"\r\nX-Kvload-Server: fp8").server == "fp8"
    assert len(parse_head(head + b"\r\nX-Kvload-Server: " + b"n" * 5000).server or "") == 128
