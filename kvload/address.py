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

_ENDPOINTS = ("/chat/completions", "/completions", "/models", "/embeddings", "/responses")
_OWN_PAGES = ("/metrics", "/health")
"""Ends of a path that are no part of where the API is: requests bring their own."""
_VERSION = re.compile(r"/v[0-9][0-9A-Za-z.]{0,15}")
_VERSION_1 = "/v1"
_SECRET = re.compile(r"key|token|secret|sig|pass|pwd|auth|cred|code|session", re.IGNORECASE)
_LONGEST_QUERY_VALUE = 40
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """Where a server is, and how far its certificate is believed.

    Attributes:
        prefix: path in front of every endpoint (``/gateway`` of ``http://host/gateway/v1``), without a slash at its
            end.
        version: what stands between it and the endpoints of OpenAI's API: ``/v1``, another version (``/v3`` of
            ``https://host/api/v3``), or nothing (``https://host/openai/deployments/x/chat/completions``).
        query: sent with every request (Azure's ``api-version=...``), without the question mark.
        insecure: accept any certificate (https).
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str = ""
    insecure: bool = False
    version: str = _VERSION_1
    query: str = ""

    @classmethod
    def parse(cls, text: str, *, where: str = "--url", insecure: bool = False) -> "Address":
        """Read ``http://127.0.0.1:8000``, ``https://host/gateway/v1``, ``[::1]:8000`` or an endpoint's whole address.

        A path that ends in a version or an endpoint says where the API is; behind any other one stands ``/v1``. The
        text is never part of a message: it may hold a password.

        Args:
            where: the option it came from, for the message.

        Raises:
            UsageError: it is no http or https address, or carries a user name, a fragment, or a query that may be a
                key.
        """
        hint = "write http://HOST:PORT"
        if any(char.isspace() or ord(char) < 0x20 or ord(char) == 0x7F for char in text.strip()):
            raise UsageError("an address holds no spaces", where=where, hint=hint)
        try:
            parts = urlsplit(text.strip() if "://" in text else f"http://{text.strip()}")
            port = parts.port
        except ValueError:
            raise UsageError("not an address", where=where, hint=hint) from None
        if "unix" in parts.scheme:
            raise UsageError(
                "a Unix socket cannot be asked",
                where=where,
                hint="have the server listen on a port, or put one before it: socat TCP-LISTEN:8000,fork UNIX:PATH",
            )
        if parts.scheme not in _DEFAULT_PORT or not parts.hostname or port == 0:
            raise UsageError("not an http or https address", where=where, hint=hint)
        if parts.hostname.isdigit():
            raise UsageError("a number alone is no host", where=where, hint="write http://127.0.0.1:PORT")
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                "the address must not carry a user name or a password",
                where=where,
                hint="give keys with KVLOAD_API_KEY, or --header 'Authorization: ...'",
            )
        if parts.fragment:
            raise UsageError("the address must not carry a fragment: it would not be sent", where=where)
        if _may_be_secret(parts.query):
            raise UsageError(
                "the query of the address looks like a key: it would be written into the run folder",
                where=where,
                hint="give it with --api-key, or as a header: --header 'NAME: VALUE'",
            )
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        prefix, version = _split_path(quote(parts.path, safe="/%:@!$&'()*+,;=~-._"))
        query = quote(parts.query, safe="%=&:@!$'()*+,;/?~-._")
        host = _host(parts.hostname, where)
        return cls(scheme, host, port or _DEFAULT_PORT[scheme], prefix, insecure, version, query)

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    def target(self, path: str) -> str:
        """What a request for an endpoint names: ``/api/v3/models?x=y`` for ``/v1/models``.

        Args:
            path: the endpoint as OpenAI's API (``/v1/...``) or vLLM (``/metrics``) has it.
        """
        if path.startswith(f"{_VERSION_1}/"):
            path = self.version + path.removeprefix(_VERSION_1)
        return f"{self.prefix}{path}" + (f"?{self.query}" if self.query else "")

    def at(self, path: str) -> str:
        """The whole address of an endpoint."""
        return f"{self.scheme}://{self.authority}{self.target(path)}"

    @property
    def url(self) -> str:
        """The address, normalised: reading it gives the same address."""
        path = self.prefix + (self.version or _ENDPOINTS[0])
        if self.version == _VERSION_1 and _split_path(self.prefix) == (self.prefix, self.version):
            path = self.prefix
        return f"{self.scheme}://{self.authority}{path}" + (f"?{self.query}" if self.query else "")

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


def tls_problem(error: "ssl.SSLError") -> tuple[str, str | None]:
    """What a failed handshake means, and what to do about it."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        sentence = _CERTIFICATES.get(error.verify_code, f"its certificate is not accepted: {error.verify_message}")
        return sentence, "accept any certificate with --insecure, or set SSL_CERT_FILE to your own authority's"
    reason = error.reason or str(error)
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}:
        return "the server speaks http, not https", "write http:// in its address"
    if reason in {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}:
        return f"the server refuses the handshake ({reason}): it may want a certificate of the client", None
    return f"the TLS handshake failed: {reason}", None


_CERTIFICATES = {
    9: "its certificate is not valid yet (is this machine's clock right?)",
    10: "its certificate has expired",
    18: "its certificate is signed by itself",
    19: "its certificate comes from an authority that this machine does not know (self-signed)",
    20: "its certificate comes from an authority that this machine does not know",
    21: "its certificate comes from an authority that this machine does not know",
    62: "its certificate is for another host than the one asked for",
    64: "its certificate is for another address than the one asked for",
}
"""By the code of OpenSSL's verification (x509_vfy.h)."""


def _split_path(path: str) -> tuple[str, str]:
    """What stands before every endpoint, and the version of the API."""
    path = re.sub("//+", "/", path).rstrip("/")
    for page in _OWN_PAGES:
        path = path.removesuffix(page)
    for endpoint in _ENDPOINTS:
        if path.endswith(endpoint):
            rest = path.removesuffix(endpoint).rstrip("/")
            last = rest[rest.rfind("/") :] if "/" in rest else ""
            return (rest.removesuffix(last), last) if _VERSION.fullmatch(last) else (rest, "")
    last = path[path.rfind("/") :] if "/" in path else ""
    return (path.removesuffix(last), last) if _VERSION.fullmatch(last) else (path, _VERSION_1)


def _may_be_secret(query: str) -> bool:
    """Whether a query must not be written down: by the name of a parameter, or by the length of its value."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    return any(_SECRET.search(name) or len(value) > _LONGEST_QUERY_VALUE or not value for name, _, value in pairs)


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
