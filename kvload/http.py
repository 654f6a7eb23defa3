"""Small blocking HTTP requests to a server's own endpoints: no proxies, no redirects, bounded answers."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvload.address import Address
from kvload.errors import ServerError

BODY_LIMIT = 64 * 2**20
"""Bytes of an answer that are read at most."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status code and body."""

    status: int
    body: bytes

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
    where = f"{address.url}{path}"
    tls = address.tls_context()
    connection: http.client.HTTPConnection
    if tls is not None:
        connection = http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=tls)
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    try:
        payload = None if body is None else json.dumps(body).encode()
        sent = dict(headers or {}) | ({} if payload is None else {"Content-Type": "application/json"})
        connection.request(method or ("GET" if payload is None else "POST"), address.prefix + path, payload, sent)
        response = connection.getresponse()
        data = response.read(limit + 1)
    except (OSError, http.client.HTTPException) as error:
        message, hint = _in_words(error)
        raise ServerError(message, where=where, hint=hint) from error
    finally:
        connection.close()
    if len(data) > limit:
        raise ServerError(f"the answer is longer than {limit} bytes", where=where)
    return Answer(response.status, data)


def _in_words(error: Exception) -> tuple[str, str | None]:
    """What a failed connection means, and what to do about it."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there", "kvload status lists the servers that were launched"
    if isinstance(error, ssl.SSLError) and error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
        return "the server speaks http, not https", "write http:// in its address"
    return f"no answer: {error or type(error).__name__}", None
