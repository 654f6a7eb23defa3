"""The address of a server: one type for asking it what it is, scraping its metrics and sending it requests."""

import functools
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlsplit

from kvload.errors import UsageError

if TYPE_CHECKING:
    import ssl

_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1")
"""Ends of a path that are no part of the prefix: requests bring their own."""
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """Where a server is, and how far its certificate is believed.

    Attributes:
        prefix: path in front of every endpoint (``/gateway`` of ``http://host/gateway/v1``), without a slash at its
            end.
        insecure: accept any certificate (https).
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str = ""
    insecure: bool = False

    @classmethod
    def parse(cls, text: str, *, where: str = "--url", insecure: bool = False) -> "Address":
        """Read ``http://127.0.0.1:8000``, ``https://host/gateway/v1``, ``[::1]:8000`` or an endpoint's whole address.

        The text is never part of a message: it may hold a password.

        Args:
            where: the option it came from, for the message.

        Raises:
            UsageError: it is no http or https address, or carries a user name, a query or a fragment.
        """
        hint = "write http://HOST:PORT"
        if any(char.isspace() or ord(char) < 0x20 or ord(char) == 0x7F for char in text.strip()):
            raise UsageError("an address holds no spaces", where=where, hint=hint)
        try:
            parts = urlsplit(text.strip() if "://" in text else f"http://{text.strip()}")
            port = parts.port
        except ValueError:
            raise UsageError("not an address", where=where, hint=hint) from None
        if parts.scheme not in _DEFAULT_PORT or not parts.hostname or port == 0:
            raise UsageError("not an http or https address", where=where, hint=hint)
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                "the address must not carry a user name or a password",
                where=where,
                hint="give keys with KVLOAD_API_KEY, or --header 'Authorization: ...'",
            )
        if parts.query or parts.fragment:
            raise UsageError(
                "the address must not carry a query or a fragment: they would not be sent",
                where=where,
                hint="give what the server wants to know with --header",
            )
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        prefix = parts.path.rstrip("/")
        for endpoint in _ENDPOINTS:
            if prefix.endswith(endpoint):
                prefix = prefix.removesuffix(endpoint).rstrip("/")
                break
        host = _host(parts.hostname, where)
        return cls(
            scheme, host, port or _DEFAULT_PORT[scheme], quote(prefix, safe="/%:@!$&'()*+,;=~-._"), insecure=insecure
        )

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address, normalised; endpoints such as ``/v1/models`` are put behind it."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def is_loopback(self) -> bool:
        """The server is on this machine, as far as the address says."""
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return self.host == "localhost"

    def tls_context(self) -> "ssl.SSLContext | None":
        """TLS as a client of this server speaks it; None for http."""
        return _tls_context(self.insecure) if self.scheme == "https" else None

    def __str__(self) -> str:
        return self.url


@functools.lru_cache(maxsize=2)
def _tls_context(insecure: bool) -> "ssl.SSLContext":
    import ssl

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _host(host: str, where: str) -> str:
    """A host's name in ASCII, or an IP address."""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise UsageError("not an IPv6 address", where=where, hint="write http://[::1]:8000") from None
        return host
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        ascii_host = ""
    if not _HOST.fullmatch(ascii_host):
        raise UsageError("not the name of a host", where=where, hint="write http://HOST:PORT")
    return ascii_host
