"""One answer is taken for the same whatever it is wrapped in: lengths, chunks of any size, line ends; over sockets."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.mock.behaviour import ODDITIES
from kvload.workloads.mock.oddities import EXPECTED, script
from tests.workloads.client.test_stream_client import Client, read_request

TEXTS = [" one", " two", " three", " four", " five", " six"]
WHOLE_RESPONSES = ("deep_error_body", "whole_json", "html", "too_large", "list_error")
ABOUT_THE_CONNECTION = ("runaway", "no_last_chunk", "closed_after_done", "bytes_after_end", "bytes_after_early_end")
NAMES = [name for name in ODDITIES if name not in WHOLE_RESPONSES + ABOUT_THE_CONNECTION]


def body_of(name: str, chat: bool) -> bytes:
    made = script(name, chat, TEXTS, 3)
    return made.early + b"".join(made.chunks) + made.ending


def chunked(body: bytes, size: int, extension: bytes = b"") -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n\r\n"


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = EVENTS + b"Transfer-Encoding: chunked\r\n\r\n"
FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "a length": lambda body: EVENTS + b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
    "until the connection closes": lambda body: b"HTTP/1.0" + EVENTS[8:] + b"\r\n" + body,
    "one chunk": lambda body: CHUNKED + chunked(body, len(body)),
    "chunks of 7 bytes": lambda body: CHUNKED + chunked(body, 7),
    "chunks with extensions": lambda body: CHUNKED + chunked(body, 50, b";a=b"),
    "trailers": lambda body: CHUNKED + chunked(body, 64)[:-2] + b"X-Sum: 1\r\n\r\n",
    "CR LF": lambda body: CHUNKED + chunked(body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"), 90),
    "CR": lambda body: CHUNKED + chunked(body.replace(b"\r\n", b"\n").replace(b"\n", b"\r"), 90),
    "comments between": lambda body: CHUNKED + chunked(body.replace(b"\n\n", b"\n\n: ping\n\n"), 90),
    "another type": lambda body: CHUNKED.replace(b"text/event-stream", b"text/plain") + chunked(body, 90),
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Answers as the prompt says, ``FRAMING|NAME``, byte runs of odd sizes at a time."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                # Each piece goes out by itself, not once the one before was acknowledged.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while request := read_request(sock):
                    framing, name = request.split(b"<<")[1].split(b">>")[0].decode().split("|")
                    wire = FRAMINGS[framing](body_of(name, b"/chat/" in request.split(b" ")[1]))
                    for start in range(0, len(wire), 333):
                        sock.sendall(wire[start : start + 333])
                    if framing.startswith("until"):
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_the_framing_changes_nothing(server: str, framing: str, path: str) -> None:
    asking = Client(server, timeout_s=10.0)
    found: dict[str, Answer] = {}
    try:
        for name in NAMES:
            asking.start(f"<<{framing}|{name}>>", len(TEXTS), path)
            while not asking.ended:
                asking.loop.turn(wait=True)
            found[name] = parse_answer(asking.ended.pop(), len(TEXTS))
    finally:
        asking.loop.close()
    for name, answer in found.items():
        expected = EXPECTED[name]
        assert (answer.status, answer.cause) == (expected.status, expected.cause), (name, answer.error)
        assert (answer.count_doubt is not None) == expected.doubted, name
        if expected.counted:
            assert answer.output_tokens == len(TEXTS), name
