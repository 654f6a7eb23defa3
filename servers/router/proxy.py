"""The router's HTTP side: takes requests, sends each to one server, and passes the answer on byte for byte.

Nothing is read of an answer, and nothing is held back: what comes from a server is written to the client at once. When
a client leaves, its request to the server is given up, too. Keys go through with the other headers; they are neither
kept nor written anywhere.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from kvload.records import SERVER_HEADER, ServerInfo
from kvload.servers.router.decide import Decider
from kvload.servers.router.metrics import Seen, exposition
from kvload.servers.router.upstream import Upstream

SERVERS_PATH = "/kvload/servers"
HEALTH_EVERY_S = 2.0
CONNECT_S = 5.0

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection alone (RFC 9110, 7.6.1)."""

_OWN = _HOP_BY_HOP | {"host", "content-length"}
_SET_BY_US = frozenset({"Accept", "Accept-Encoding", "Content-Type", "User-Agent"})


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a router takes at most.

    Attributes:
        body_bytes: of a request.
        in_flight: requests at a time; others are refused with 503.
        quiet_s: how long a server may send nothing before its answer is given up; None for any time.
    """

    body_bytes: int = 16 << 20
    in_flight: int = 4096
    quiet_s: float | None = None


class Proxy:
    """The application.

    Args:
        decider: chooses servers.
        bounds: what it takes at most.
    """

    def __init__(self, decider: Decider, bounds: Bounds | None = None) -> None:
        self.decider = decider
        self.servers: Sequence[Upstream] = decider.servers
        self.bounds = bounds or Bounds()
        self.seen = Seen()
        self._session: aiohttp.ClientSession

    def application(self) -> web.Application:
        """What aiohttp serves; with ``handler_cancellation``, so that it hears of clients that leave."""
        application = web.Application(client_max_size=self.bounds.body_bytes)
        application.cleanup_ctx.append(self._running)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get(SERVERS_PATH, self._listed)
        application.router.add_route("*", "/{path:.*}", self._forward)
        return application

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self.bounds.quiet_s)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0, use_dns_cache=True),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            skip_auto_headers=_SET_BY_US,
        )
        watch = asyncio.create_task(self._watch())
        yield
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await self._session.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*map(self._ask, self.servers))
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _ask(self, server: Upstream) -> None:
        """Whether a server is there: any answer below 500 says so."""
        try:
            url = URL(f"{server.address.url}/health", encoded=True)
            timeout = aiohttp.ClientTimeout(total=CONNECT_S)
            async with self._session.get(url, timeout=timeout, ssl=_tls(server)) as answer:
                server.healthy = answer.status < 500
        except TimeoutError:
            pass  # a server that is slow to say how it is may be busy
        except (aiohttp.ClientError, OSError):
            server.healthy = False

    async def _health(self, _: web.Request) -> web.Response:
        well = sum(server.healthy for server in self.servers)
        said = {server.name: "ok" if server.healthy else "down" for server in self.servers}
        return web.json_response(said, status=200 if well else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=exposition(self.servers, self.decider, self.seen), content_type="text/plain")

    async def _listed(self, _: web.Request) -> web.Response:
        infos = [
            msgspec.structs.replace(server.info or ServerInfo(url=server.address.url), name=server.name)
            for server in self.servers
        ]
        return web.Response(body=msgspec.json.encode(infos), content_type="application/json")

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if sum(server.in_flight for server in self.servers) >= self.bounds.in_flight:
            return _error(503, "too many requests under way", retry=True)
        body = await request.read()
        asks = request.method == "POST" and request.path.endswith("/completions")
        headers = {name.lower(): value for name, value in request.headers.items()} if asks else {}
        place = self.decider.decide(body, headers) if asks else self._first()
        tried = {place}
        while True:
            server = self.servers[place]
            server.in_flight += 1
            try:
                return await self._pass_on(request, body, server)
            except (aiohttp.ClientConnectionError, TimeoutError) as error:
                # nothing of an answer came: another server may give one
                server.count(0)
                server.healthy = server.healthy and not isinstance(error, aiohttp.ClientConnectorError)
                place = self.decider.other(place)
                if place in tried:
                    return _error(502, f"the server '{server.name}' did not answer")
                tried.add(place)
            finally:
                server.in_flight -= 1

    def _first(self) -> int:
        return next((place for place, server in enumerate(self.servers) if server.healthy), 0)

    async def _pass_on(self, request: web.Request, body: bytes, server: Upstream) -> web.StreamResponse:
        """Ask one server and pass on what it answers.

        Raises:
            aiohttp.ClientConnectionError, TimeoutError: nothing of an answer came.
        """
        url = URL(f"{server.address.url}{request.raw_path}", encoded=True)
        sent = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in _OWN)
        asking: Any = self._session.request(
            request.method, url, data=body or None, headers=sent, allow_redirects=False, ssl=_tls(server)
        )
        began = time.perf_counter()
        try:
            async with asking as answer:
                server.count(answer.status)
                response = web.StreamResponse(status=answer.status, reason=answer.reason)
                for name, value in answer.headers.items():
                    if name.lower() not in _OWN:
                        response.headers.add(name, value)
                response.headers[SERVER_HEADER] = server.name
                if answer.content_length is not None:
                    response.content_length = answer.content_length
                else:
                    response.enable_chunked_encoding()
                try:
                    await response.prepare(request)
                    async for chunk in answer.content.iter_any():
                        self.seen.chunk(began)
                        began = 0.0
                        await response.write(chunk)
                    await response.write_eof()
                except (aiohttp.ClientError, TimeoutError):
                    # half an answer must not look like a whole one
                    self.seen.broken += 1
                    if request.transport is not None:
                        request.transport.abort()
                except ConnectionResetError:
                    self.seen.left += 1
                return response
        except asyncio.CancelledError:
            self.seen.left += 1
            raise


def _tls(server: Upstream) -> Any:
    return server.address.tls_context() or True


def _error(status: int, message: str, *, retry: bool = False) -> web.Response:
    said = {"error": {"message": f"kvload route: {message}", "type": "router_error", "code": status}}
    return web.json_response(said, status=status, headers={"Retry-After": "1"} if retry else {})
