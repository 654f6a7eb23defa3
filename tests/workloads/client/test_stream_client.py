"""The streaming client against the mock server and against servers that misbehave on purpose."""

import json
import resource
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kvload.address import Address
from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.client.loop import StreamLoop
from kvload.workloads.mock.behaviour import FAULTS, HARMLESS, MockSettings
from kvload.workloads.mock.server import MockServer
from kvload.workloads.mock.truth import read_truth

CAUSES = {
    "refused": ("failed", "reset"),
    "reset": ("failed", "reset"),
    "truncated": ("failed", "truncated"),
    "no_done": ("failed", "truncated"),
    "stall": ("timeout", "stall"),
    "stall_headers": ("timeout", "timeout"),
    "http_400": ("refused", "http_400"),
    "http_429": ("refused", "http_429"),
    "http_500": ("failed", "http_500"),
    "http_503": ("failed", "http_503"),
    "stream_error": ("failed", "stream_error"),
    "garbage": ("failed", "malformed"),
    "garbage_http": ("failed", "malformed"),
    "bad_chunk": ("failed", "malformed"),
}


class Client:
    """A streaming client that waits for its answers."""

    def __init__(self, url: str, *, insecure: bool = False, **how: Any) -> None:
        self.ended: list[Any] = []
        self.loop = StreamLoop(Address.parse(url, insecure=insecure), on_end=self.ended.append, **how)

    def start(self, prompt: str = "a", tokens: int = 6, path: str = "/v1/completions") -> None:
        body: dict[str, Any] = {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        body |= {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
        self.loop.start(prompt, path, json.dumps(body).encode(), f"r-{prompt}")

    def wait(self, count: int = 1) -> list[Answer]:
        while len(self.ended) < count:
            self.loop.turn(wait=True)
        found, self.ended[:] = self.ended[:], []
        return [parse_answer(raw) for raw in found]

    def ask(self, prompt: str = "a", tokens: int = 6, path: str = "/v1/completions") -> Answer:
        self.start(prompt, tokens, path)
        return self.wait()[0]


@contextmanager
def mock(settings: MockSettings, log: Path | None = None) -> Iterator[str]:
    server = MockServer(settings, log_path=log)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()
        thread.join(10)


@contextmanager
def client(url: str, **how: Any) -> Iterator[Client]:
    found = Client(url, **how)
    try:
        yield found
    finally:
        found.loop.close()


@contextmanager
def scripted(*scripts: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server whose connections, one after the other, are handled by the scripts."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for script in scripts:
            sock, _ = listener.accept()
            with sock:
                script(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(10)
        listener.close()


def read_request(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1 << 16)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")).split()[1])
    while len(body) < length:
        body += sock.recv(1 << 16)
    return head + b"\r\n\r\n" + body


ANSWER = b'data: {"choices":[{"index":0,"text":" a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)


def test_every_fault_has_its_cause() -> None:
    assert set(CAUSES) | HARMLESS == set(FAULTS)
    with mock(MockSettings(ttft_s=0.02, itl_s=0.01)) as url, client(url, timeout_s=0.5) as asking:
        for fault in FAULTS:
            asking.start(f"fault:{fault}")
        while len(asking.ended) < len(FAULTS):
            asking.loop.turn(wait=True)
        found = {raw.key.removeprefix("fault:"): parse_answer(raw) for raw in asking.ended}
    for fault in FAULTS:
        answer = found[fault]
        assert (answer.status, answer.cause) == CAUSES.get(fault, ("ok", None)), fault
        if fault in HARMLESS:
            assert (answer.output_tokens, answer.finish_reason, len(answer.chunks)) == (6, "length", 6)
        elif answer.http_status == 200:
            assert 0 < len(answer.chunks) < 6
    assert asking.loop.in_flight == 0


def test_times_agree_with_the_servers_own(tmp_path: Path) -> None:
    with mock(MockSettings(ttft_s=0.03, itl_s=0.01), tmp_path / "log") as url, client(url) as asking:
        answers = [asking.ask(str(number)) for number in range(3)]
    for answer, truth in zip(answers, read_truth(tmp_path / "log"), strict=True):
        assert answer.clock == "kernel"
        assert answer.t_send_ns is not None
        # one clock, two witnesses: sent before it arrived, written before it was received (ties are good to some us)
        assert answer.t_send_ns <= truth.arrival_ns + 100_000
        arrivals = (answer.chunks["us"].astype(int) * 1000 + answer.t_send_ns).tolist()
        assert all(arrival >= written - 100_000 for arrival, written in zip(arrivals, truth.writes_ns, strict=True))


def test_chat_and_connections_kept() -> None:
    with mock(MockSettings(ttft_s=0.001, itl_s=0.001)) as url, client(url) as asking:
        answers = [asking.ask(str(number), 4, "/v1/chat/completions") for number in range(3)]
        assert asking.loop.connects == 1
    # how many of them are read at once is the machine's affair
    assert [(answer.status, answer.output_tokens, len(answer.chunks)) for answer in answers] == 3 * [("ok", 4, 4)]


def test_connections_opened_ahead_are_used() -> None:
    with mock(MockSettings(ttft_s=0.001, itl_s=0.001)) as url, client(url) as asking:
        asking.loop.warm(3)
        asking.ask()
        for number in range(3):
            asking.start(str(number))
        assert all(answer.status == "ok" for answer in asking.wait(3))
        assert asking.loop.connects == 3


def test_a_stale_connection_is_retried_and_counted() -> None:
    def answer_and_close(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(WHOLE)
        # the next request arrives, and is never read: closing now resets the connection
        sock.recv(1)

    def answer(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(WHOLE)

    with scripted(answer_and_close, answer) as url, client(url) as asking:
        first, second = asking.ask(), asking.ask()
    assert (first.status, first.retries) == ("ok", 0)
    assert (second.status, second.retries) == ("ok", 1)
    assert asking.loop.stale_retries == 1


def test_no_retry_once_a_byte_was_answered() -> None:
    def answer_then_break(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(WHOLE)
        read_request(sock)
        sock.sendall(b"HTTP/1.1 2")

    with scripted(answer_then_break) as url, client(url) as asking:
        first, second = asking.ask(), asking.ask()
    assert first.status == "ok"
    assert (second.status, second.cause, second.retries) == ("failed", "truncated", 0)


def test_no_retry_on_a_fresh_connection() -> None:
    def read_and_break(sock: socket.socket) -> None:
        read_request(sock)

    with scripted(read_and_break) as url, client(url) as asking:
        answer = asking.ask()
    assert (answer.status, answer.cause, answer.retries) == ("failed", "reset", 0)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with client(f"http://127.0.0.1:{port}") as asking:
        answer = asking.ask()
    assert (answer.status, answer.cause, answer.t_send_ns, answer.http_status) == ("failed", "connect", None, None)


def test_interim_answers_are_skipped() -> None:
    def slow(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" + WHOLE[:30])
        sock.sendall(WHOLE[30:])

    with scripted(slow) as url, client(url) as asking:
        assert asking.ask().status == "ok"


def test_large_requests_wait_for_the_kernel() -> None:
    received = []

    def take(sock: socket.socket) -> None:
        received.append(len(read_request(sock)))
        sock.sendall(WHOLE)

    with scripted(take) as url, client(url) as asking:
        assert asking.ask("x" * 20_000_000).status == "ok"
    assert received[0] > 20_000_000


def test_cut_is_censored() -> None:
    with mock(MockSettings(ttft_s=0.01, itl_s=0.01)) as url, client(url) as asking:
        asking.start("a", 10_000)
        raw = None
        while raw is None or len(raw.pieces) < 3:
            asking.loop.turn(wait=True)
            raw = next((c.raw for c in asking.loop._pool.by_fd.values() if c.raw is not None), None)
        asking.loop.cut()
        (answer,) = asking.wait()
    assert (answer.status, answer.cause) == ("censored", "cut")
    assert answer.output_tokens is not None
    assert answer.output_tokens >= 2


def test_deadlines_are_kept_without_anybody_sending() -> None:
    fired: list[int] = []
    with mock(MockSettings()) as url, client(url) as asking:
        import time

        due = time.monotonic_ns() + 20_000_000
        asking.loop.at(due, fired.append)
        while not fired:
            asking.loop.turn(wait=True)
    assert fired[0] >= due


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_https(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(sock: socket.socket) -> None:
        try:
            with context.wrap_socket(sock, server_side=True) as wrapped:
                for _ in range(2):
                    read_request(wrapped)
                    for start in range(0, len(WHOLE), 50):
                        wrapped.sendall(WHOLE[start : start + 50])
        except ssl.SSLError:
            return

    with scripted(serve, serve) as url:
        https = url.replace("http://127.0.0.1", "https://localhost")
        with client(https, insecure=True) as asking:
            answers = [asking.ask(), asking.ask()]
            assert asking.loop.connects == 1
        with client(https) as asking:
            refused = asking.ask()
    assert [answer.status for answer in answers] == ["ok", "ok"]
    assert answers[0].text == " a"
    assert (refused.status, refused.cause) == ("failed", "tls")


def test_a_timeout_runs_while_a_connection_opened_ahead_is_not_accepted() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    # the backlog is full: nobody else gets through
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(address)
    try:
        with client(f"http://127.0.0.1:{address[1]}", timeout_s=0.3) as asking:
            asking.loop.warm(2)
            asking.start("a")
            asking.start("b")
            asking.start("c")
            answers = asking.wait(3)
    finally:
        for sock in (*fillers, listener):
            sock.close()
    assert [(answer.status, answer.t_send_ns) for answer in answers] == [("timeout", None)] * 3


@pytest.mark.parametrize("framing", ["chunked", "chunked_line", "close"])
def test_an_answer_without_an_end_is_cut_at_the_limit(monkeypatch: pytest.MonkeyPatch, framing: str) -> None:
    from kvload.workloads.client import connection

    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 1 << 20)

    def run_away(sock: socket.socket) -> None:
        read_request(sock)
        end = b"connection: close" if framing == "close" else b"transfer-encoding: chunked"
        event = ANSWER.split(b"\n\n")[0].replace(b'"stop"', b"null") + b"\n\n"
        piece = b"x" * 4096 if framing == "chunked_line" else event
        with suppress(OSError):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + end + b"\r\n\r\n")
            while True:
                wrapped = piece if framing == "close" else b"%x\r\n%b\r\n" % (len(piece), piece)
                sock.sendall(wrapped * 64)

    with scripted(run_away) as url, client(url) as asking:
        asking.start("a")
        while not asking.ended:
            asking.loop.turn(wait=True)
        (raw,) = asking.ended
        answer = parse_answer(raw)
    assert (answer.status, answer.cause) == ("failed", "malformed")
    assert sum(map(len, raw.pieces)) < 40 << 20


def test_no_files_left_is_this_machines_doing() -> None:
    with scripted() as url, client(url) as asking:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            asking.loop.warm(2)
            asking.start("a")
            assert not asking.ended
            asking.loop.turn()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (answer,) = asking.wait()
    assert (answer.status, answer.cause, answer.t_send_ns) == ("unsent", "this_machine", None)
    assert "open files" in (answer.error or "")
    assert asking.loop.in_flight == 0
