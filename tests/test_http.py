"""What a server that cannot be reached, or is reached elsewhere, is said to be; over real sockets and certificates."""

import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvload.address import Address
from kvload.errors import ServerError
from kvload.http import request
from kvload.servers.watch import discover
from kvload.workloads.client.answer import parse_answer
from kvload.workloads.client.loop import StreamLoop

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


class Handler(http.server.BaseHTTPRequestHandler):
    """A server whose API is where the request says, unless it redirects."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []
    redirect: ClassVar[str | None] = None

    def _answer(self) -> None:
        self.seen.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if self.redirect is not None:
            self.send_response(308)
            self.send_header("Location", self.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.endswith("/models"):
            body, kind = json.dumps({"data": [{"id": "m"}]}).encode(), "application/json"
        elif path.endswith("/chat/completions"):
            body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
            kind = "text/event-stream"
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(context: ssl.SSLContext | None = None, redirect: str | None = None) -> Iterator[int]:
    Handler.seen, Handler.redirect = [], redirect
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            # hands are shaken where the connection is handled: a failure there must not end the server
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/api/v3/chat/completions", ["/api/v3/models", "/api/v3/chat/completions"]),
        ("/api/v3", ["/api/v3/models", "/api/v3/chat/completions"]),
        (
            "/openai/deployments/d/chat/completions?api-version=2024-10-21",
            [
                "/openai/deployments/d/models?api-version=2024-10-21",
                "/openai/deployments/d/chat/completions?api-version=2024-10-21",
            ],
        ),
        ("/gateway/", ["/gateway/v1/models", "/gateway/v1/chat/completions"]),
    ],
)
def test_discovery_and_requests_go_to_the_same_api(path: str, wanted: list[str]) -> None:
    with serving() as port:
        address = Address.parse(f"http://127.0.0.1:{port}{path}")
        assert discover.server_info(address).model == "m"
        ended: list[Any] = []
        loop = StreamLoop(address, on_end=ended.append, timeout_s=5.0)
        loop.start(None, "/v1/chat/completions", b"{}", "r")
        while not ended:
            loop.turn(wait=True)
        loop.close()
        assert parse_answer(ended[0]).text == "a"
        assert set(wanted) <= set(Handler.seen)


@pytest.mark.parametrize("model", [None, "m"])
def test_a_redirect_is_told_and_not_followed(model: str | None) -> None:
    with serving(redirect="https://elsewhere.example/v1/models?key=secret") as port:
        with pytest.raises(ServerError, match=r"redirects to https://elsewhere\.example/v1/models") as caught:
            discover.server_info(Address.parse(f"http://127.0.0.1:{port}"), model=model)
        assert "secret" not in str(caught.value)
        assert Handler.seen == ["/v1/models"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Makes a key and a certificate that nobody has signed."""
    folder = tmp_path_factory.mktemp("tls")

    def make(name: str, host: str, *dates: str) -> tuple[Path, Path]:
        key, made, ask = folder / f"{name}.key", folder / f"{name}.pem", folder / f"{name}.csr"
        new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host}", "-keyout", str(key)]
        subprocess.run([*new, "-out", str(ask)], check=True, capture_output=True)
        names = folder / f"{name}.ext"
        names.write_text(f"subjectAltName=DNS:{host}\n", encoding="utf-8")
        sign = ["openssl", "x509", "-req", "-in", str(ask), "-signkey", str(key), "-extfile", str(names)]
        subprocess.run([*sign, *dates, "-out", str(made)], check=True, capture_output=True)
        return key, made

    return make


def context_of(key: Path, certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@needs_openssl
@pytest.mark.parametrize(
    ("name", "host", "dates", "trusted", "words"),
    [
        ("unknown", "localhost", ("-days", "2"), False, "signed by itself"),
        ("expired", "localhost", ("-days", "-1"), True, "has expired"),
        ("other", "elsewhere.example", ("-days", "2"), True, "for another host"),
    ],
)
def test_a_certificate_that_is_not_accepted_is_told_in_words(
    certificate: Callable[..., tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    host: str,
    dates: tuple[str, ...],
    trusted: bool,
    words: str,
) -> None:
    from kvload import address as module

    key, made = certificate(name, host, *dates)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
    module._tls_context.cache_clear()
    with serving(context_of(key, made)) as port:
        there = Address.parse(f"https://localhost:{port}")
        with pytest.raises(ServerError, match=words) as caught:
            request(there, "/v1/models")
        assert "--insecure" in str(caught.value)
        ended: list[Any] = []
        loop = StreamLoop(there, on_end=ended.append, timeout_s=5.0)
        loop.start(None, "/v1/chat/completions", b"{}", "r")
        while not ended:
            loop.turn(wait=True)
        loop.close()
        answer = parse_answer(ended[0])
        assert (answer.status, answer.cause) == ("failed", "tls")
        assert words in (answer.error or "")
        believed = Address.parse(f"https://localhost:{port}", insecure=True)
        assert request(believed, "/v1/models").ok
    module._tls_context.cache_clear()


@needs_openssl
def test_http_on_an_https_port_and_the_reverse(certificate: Callable[..., tuple[Path, Path]]) -> None:
    key, made = certificate("plain", "localhost", "-days", "2")
    with serving(context_of(key, made)) as port, pytest.raises(ServerError, match="speaks https, not http"):
        request(Address.parse(f"http://127.0.0.1:{port}"), "/v1/models")
    with serving() as port, pytest.raises(ServerError, match="speaks http, not https"):
        request(Address.parse(f"https://127.0.0.1:{port}"), "/v1/models")


@pytest.mark.parametrize(
    ("said", "words"), [(b"", "closed the connection without an answer"), (b"220 mail\r\n", "does not speak HTTP")]
)
def test_what_is_no_http_server_is_told(said: bytes, words: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            sock, _ = listener.accept()
            with sock:
                sock.recv(1 << 16)
                sock.sendall(said)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with pytest.raises(ServerError, match=words):
        request(Address.parse(f"http://127.0.0.1:{listener.getsockname()[1]}"), "/v1/models")
    listener.close()


def test_nobody_there_and_no_such_host() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ServerError, match="nothing listens there"):
        request(Address.parse(f"http://127.0.0.1:{port}"), "/v1/models")
    with pytest.raises(ServerError, match="no host has this name"):
        request(Address.parse("http://no-such-host.invalid"), "/v1/models")
