"""Small blocking HTTP requests to a server's own endpoints: no proxies, no redirects, bounded answers."""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvload.address import Address, tls_problem
from kvload.errors import ServerError

BODY_LIMIT = 64 * 2**20
"""Bytes of an answer that are read at most."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status code and body, and where a redirect leads."""

    status: int
    body: bytes
    location: str | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ServerError: it is none.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"the server answered no JSON: {error}") from error


def request(
    address: Address,
    path: str,
    *,
    body: Any = None,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    limit: int = BODY_LIMIT,
) -> Answer:
    """Send one request and read the whole answer, whatever its status.

    Args:
        address: the server.
        path: the endpoint (``/v1/models``), behind the address's prefix.
        body: sent as JSON with POST; GET where None.
        method: another method than these.
        headers: added to the request.
        timeout_s: limit for connecting and for each wait on the socket.
        limit: bytes of the answer that are accepted.

    Raises:
        ServerError: nothing answered, or the answer is too long.
    """
    where = address.at(path)
    tls = address.tls_context()
    connection: http.client.HTTPConnection
    if tls is not None:
        connection = http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=tls)
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    try:
        payload = None if body is None else json.dumps(body).encode()
        sent = dict(headers or {}) | ({} if payload is None else {"Content-Type": "application/json"})
        connection.request(method or ("GET" if payload is None else "POST"), address.target(path), payload, sent)
        response = connection.getresponse()
        data = response.read(limit + 1)
    except (OSError, http.client.HTTPException) as error:
        message, hint = _in_words(error, address)
        raise ServerError(message, where=where, hint=hint) from error
    finally:
        connection.close()
    if len(data) > limit:
        raise ServerError(f"the answer is longer than {limit} bytes", where=where)
    if address.scheme == "http" and response.status == 400 and b"HTTPS port" in data:
        raise ServerError(_SPEAKS_HTTPS, where=where, hint="write https:// in its address")
    return Answer(response.status, data, response.headers.get("Location"))


_SPEAKS_HTTPS = "the server speaks https, not http"
_LISTENS_S = 3.0


def _in_words(error: Exception, address: Address) -> tuple[str, str | None]:
    """What a failed connection means, and what to do about it."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there", "kvload status lists the servers that were launched"
    if address.scheme == "https" and not isinstance(error, ssl.SSLCertVerificationError) and _speaks_http(address):
        return "the server speaks http, not https", "write http:// in its address"
    if isinstance(error, ssl.SSLError):
        return tls_problem(error)
    if isinstance(error, socket.gaierror):
        return f"no host has this name: {error.strerror or error}", None
    if isinstance(error, TimeoutError):
        return "no answer in time", None
    broke_off = isinstance(error, http.client.HTTPException | ConnectionResetError | BrokenPipeError)
    if broke_off and address.scheme == "http" and _speaks_tls(address):
        return _SPEAKS_HTTPS, "write https:// in its address"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the server closed the connection without an answer", None
    if isinstance(error, http.client.BadStatusLine):
        return "what answers there does not speak HTTP", None
    return f"no answer: {error or type(error).__name__}", None


def _speaks_http(address: Address) -> bool:
    """Whether something there answers a plain request."""
    try:
        with socket.create_connection((address.host, address.port), _LISTENS_S) as raw:
            raw.settimeout(_LISTENS_S)
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return raw.recv(5) == b"HTTP/"
    except OSError:
        return False


def _speaks_tls(address: Address) -> bool:
    """Whether a TLS handshake succeeds, whatever the certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address.host, address.port), _LISTENS_S) as raw, context.wrap_socket(raw):
            return True
    except OSError:
        return False
