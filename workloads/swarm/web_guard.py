"""Who may use the web page: a browser on this machine that has the page itself open, and nobody else.

Locust answers every origin and every ``Host`` and takes plain form posts, so any page that a user happens to visit
could start, stop and read a run (cross-site request forgery; DNS rebinding for the reads). The guard stands before all
routes, Locust's own included: a request that names another host, comes from another origin or was made by another site
is refused with 403, and no answer grants anything to another origin.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARDS = frozenset({"", "*", "0.0.0.0", "::"})  # noqa: S104  compared, not bound
OWN_SITE = frozenset({"same-origin", "none"})
"""``Sec-Fetch-Site`` of what the page itself asks for, and of an address typed by hand."""

REFUSAL = b"refused: only a browser that opened this page by its own address may use it; paste the address there\n"


class WebGuard:
    """WSGI middleware that refuses foreign hosts, origins and sites, and takes CORS headers off.

    Args:
        application: what answers the requests that are let through.
        web_host: the address the page is served on, as given by ``--web-host``; for a wildcard every IP address and
            this machine's own name are its names, since a rebound DNS name is neither.
    """

    def __init__(self, application: Application, web_host: str | None) -> None:
        self._application = application
        host = (web_host or "").strip("[]").lower()
        self._wildcard = host in WILDCARDS
        own = {socket.gethostname().lower(), socket.getfqdn().lower()} if self._wildcard else {host}
        self._names = LOOPBACK_NAMES | own

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request (PEP 3333)."""
        if not self.allows(environ):
            body = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(REFUSAL)))]
            start_response("403 Forbidden", body)
            return [REFUSAL]

        def without_cors(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
            return start_response(status, kept, *rest)

        return self._application(environ, without_cors)

    def allows(self, environ: dict[str, Any]) -> bool:
        """Whether a request names this server as its host and was made by this server's own page."""
        host = _host_of(f"//{environ.get('HTTP_HOST', '')}")
        if host is None or not self._is_own(host):
            return False
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and urlsplit(origin).netloc.lower() != environ["HTTP_HOST"].lower():
            return False
        site = environ.get("HTTP_SEC_FETCH_SITE")
        return site is None or site in OWN_SITE

    def _is_own(self, host: str) -> bool:
        if host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or self._wildcard


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
