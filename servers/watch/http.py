"""Small blocking HTTP requests to a server's own endpoints: no proxies, no redirects, bounded answers."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kvload.errors import ServerError, UsageError

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


def normalise_url(url: str) -> str:
    """``http://host:port/prefix`` without a trailing slash or ``/v1``.

    Raises:
        UsageError: it is no http or https address.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        port_is_sound = False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_sound:
        raise UsageError(f"'{url}' is not a server's address", hint="as in http://127.0.0.1:8000")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def request(
    url: str,
    *,
    body: Any = None,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    limit: int = BODY_LIMIT,
) -> Answer:
    """Send one request and read the whole answer, whatever its status.

    Args:
        url: the whole address.
        body: sent as JSON with POST; GET where None.
        method: another method than these.
        headers: added to the request.
        timeout_s: limit for connecting and for each wait on the socket.
        limit: bytes of the answer that are accepted.

    Raises:
        ServerError: nothing answered, or the answer is too long.
    """
    parts = urlsplit(url)
    host, path = parts.hostname or "", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, parts.port, timeout=timeout_s, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    try:
        payload = None if body is None else json.dumps(body).encode()
        sent = dict(headers or {}) | ({} if payload is None else {"Content-Type": "application/json"})
        connection.request(method or ("GET" if payload is None else "POST"), path, payload, sent)
        response = connection.getresponse()
        data = response.read(limit + 1)
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"no answer: {error or type(error).__name__}", where=url) from error
    finally:
        connection.close()
    if len(data) > limit:
        raise ServerError(f"the answer is longer than {limit} bytes", where=url)
    return Answer(response.status, data)
