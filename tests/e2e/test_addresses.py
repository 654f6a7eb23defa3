"""Servers behind other addresses than ``http://HOST:PORT``: certificates, prefixes, and what must never be written."""

import http.client
import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Kvload, read_records

pytestmark = pytest.mark.slow


class Gateway(http.server.BaseHTTPRequestHandler):
    """Passes requests below ``/gateway`` on to the mock server."""

    protocol_version = "HTTP/1.1"
    backend = ""
    paths: ClassVar[list[str]] = []

    def _pass_on(self) -> None:
        self.paths.append(self.path)
        if not self.path.startswith("/gateway/"):
            self.send_error(404)
            return
        parts = urlsplit(self.backend)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection.request(self.command, self.path.removeprefix("/gateway"), body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def gateway(start_mock: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``https://localhost:PORT/gateway`` with a certificate that nobody has signed."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    Gateway.backend = start_mock("--ttft", "5ms", "--itl", "1ms")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"https://localhost:{server.server_port}/gateway"
        server.shutdown()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_an_unsigned_certificate_is_believed_when_told_so(kvload: Kvload, gateway: str, tmp_path: Path) -> None:
    options = ["replay", "sample:demo", "--limit", "3", "--speed", "50", "--max-tokens", "4", "--warmups", "1"]
    refused = kvload(*options, "--url", gateway, "--out", tmp_path / "refused")
    assert refused.returncode == 3
    assert "its certificate is signed by itself" in refused.stderr
    assert not (tmp_path / "refused").exists()
    out = tmp_path / "run"
    done = kvload(*options, "--url", f"{gateway}/v1/chat/completions", "--insecure", "--out", out)
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in read_records(out)] == ["ok"] * 3
    assert all(path.startswith("/gateway/") for path in Gateway.paths)
    assert {"/gateway/v1/models", "/gateway/metrics", "/gateway/v1/chat/completions"} <= set(Gateway.paths)
    assert (out / "scrapes.jsonl").stat().st_size > 0


@pytest.mark.parametrize("command", ["replay", "compare", "capacity"])
def test_a_password_in_an_address_is_refused_before_anything_is_written(
    kvload: Kvload, tmp_path: Path, command: str
) -> None:
    url = "http://alice:hunter2@127.0.0.1:9"
    out = tmp_path / "out"
    server = ["--arm", f"a={url}", "--arm", "b=http://127.0.0.1:9"] if command == "compare" else ["--url", url]
    more = ["--slo", "ttft=1s"] if command == "capacity" else []
    done = kvload(command, "sample:demo", *server, *more, "--out", out)
    assert done.returncode == 2
    assert "user name" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert not out.exists()
