"""The router in front of real servers that do what servers do: stream, stall, break off, disappear."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from kvload.address import Address
from kvload.records import SERVER_HEADER
from kvload.servers.router.decide import Decider
from kvload.servers.router.policies import make
from kvload.servers.router.policies.base import Settings
from kvload.servers.router.proxy import Bounds, Proxy
from kvload.servers.router.upstream import Upstream

KEY = "Bearer sk-very-secret"
BODY = bytes(range(256)) * 8 + b"\r\n0\r\n\r\ndata: [DONE]\n\n"


@dataclass
class Backend:
    """A server, and what it saw."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    cancelled: int = 0
    started: int = 0

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_post("/v1/completions", self.answer)
        application.router.add_get("/v1/models", self.models)
        application.router.add_get("/health", self.models)
        return application

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        self.bodies.append(await request.read())
        self.started += 1
        kind = request.headers.get("X-Kind", "")
        if kind == "whole":
            return web.Response(status=418, body=BODY, headers={"X-Own": "kept", "Content-Type": "text/odd"})
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await response.write(b"first")
            if kind == "break":
                assert request.transport is not None
                request.transport.abort()
                return response
            if kind == "wait":
                await asyncio.wait_for(self.go_on.wait(), 30)
            for place in range(0, len(BODY), 700):
                await response.write(BODY[place : place + 700])
            await response.write_eof()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return response


@dataclass
class Rig:
    """A router and its two servers, in a loop of their own."""

    loop: asyncio.AbstractEventLoop
    backends: list[Backend]
    servers: list[Upstream]
    proxy: Proxy
    url: str
    runners: list[web.AppRunner]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


async def _start(application: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture
def rig() -> Iterator[Rig]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def build() -> Rig:
        backends = [Backend(), Backend()]
        started = [await _start(backend.application()) for backend in backends]
        servers = [Upstream(f"s{place}", Address.parse(url)) for place, (_, url) in enumerate(started)]
        proxy = Proxy(Decider(make("round-robin", Settings(2)), servers), Bounds(body_bytes=4096))
        runner, url = await _start(proxy.application())
        return Rig(loop, backends, servers, proxy, url, [runner, *(one for one, _ in started)])

    made = asyncio.run_coroutine_threadsafe(build(), loop).result(30)

    async def close() -> None:
        for runner in made.runners:
            await runner.cleanup()

    yield made
    made.run(close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


Ask = Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Any]]


def ask(rig: Rig, work: Ask) -> Any:
    async def go() -> Any:
        async with aiohttp.ClientSession() as session:
            return await work(session)

    return rig.run(go())


def post(rig: Rig, kind: str = "", body: bytes = b"{}") -> tuple[int, dict[str, str], bytes]:
    async def work(session: aiohttp.ClientSession) -> tuple[int, dict[str, str], bytes]:
        headers = {"X-Kind": kind, "Authorization": KEY}
        async with session.post(f"{rig.url}/v1/completions", data=body, headers=headers) as answer:
            return answer.status, dict(answer.headers), await answer.read()

    found: tuple[int, dict[str, str], bytes] = ask(rig, work)
    return found


def test_answers_are_passed_on_byte_for_byte(rig: Rig) -> None:
    status, headers, body = post(rig)
    assert (status, body) == (200, b"first" + BODY)
    assert headers[SERVER_HEADER] == "s0"
    status, headers, body = post(rig, "whole", b'{"a": "\xff"}')
    assert (status, body, headers["X-Own"], headers["Content-Type"]) == (418, BODY, "kept", "text/odd")
    assert headers[SERVER_HEADER] == "s1"
    assert rig.backends[1].bodies == [b'{"a": "\xff"}']


def test_a_chunk_is_passed_on_before_the_next_one_comes(rig: Rig) -> None:
    """The server sends its second chunk only after the client has the first."""

    async def work(session: aiohttp.ClientSession) -> bytes:
        async with session.post(f"{rig.url}/v1/completions", data=b"{}", headers={"X-Kind": "wait"}) as answer:
            first = await asyncio.wait_for(answer.content.readexactly(5), 20)
            rig.backends[0].go_on.set()
            return first + await answer.read()

    assert ask(rig, work) == b"first" + BODY


def test_a_client_that_leaves_takes_its_request_with_it(rig: Rig) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        answer = await session.post(f"{rig.url}/v1/completions", data=b"{}", headers={"X-Kind": "wait"})
        await answer.content.readexactly(5)
        answer.close()
        for _ in range(500):
            if rig.backends[0].cancelled and not rig.servers[0].in_flight:
                return
            await asyncio.sleep(0.02)

    ask(rig, work)
    assert rig.backends[0].cancelled == 1
    assert rig.servers[0].in_flight == 0
    assert rig.proxy.seen.left == 1


def test_half_an_answer_does_not_look_like_a_whole_one(rig: Rig) -> None:
    with pytest.raises(aiohttp.ClientError):
        post(rig, "break")
    assert rig.proxy.seen.broken == 1


def test_keys_go_through_and_stay_nowhere(rig: Rig) -> None:
    post(rig)
    assert rig.backends[0].headers[0]["Authorization"] == KEY

    async def work(session: aiohttp.ClientSession) -> str:
        texts = []
        for path in ("/metrics", "/kvload/servers", "/health"):
            async with session.get(rig.url + path) as answer:
                texts.append(await answer.text())
        return "".join(texts)

    said = ask(rig, work)
    assert 'kvload_router_requests_total{server="s0",status="200"} 1' in said
    assert "secret" not in said
    assert "secret" not in repr(vars(rig.proxy.decider)) + repr(rig.servers) + repr(rig.proxy.seen)


def test_bodies_and_numbers_are_bounded(rig: Rig) -> None:
    assert post(rig, body=b"x" * 5000)[0] == 413
    rig.servers[1].in_flight = 10_000
    status, headers, _ = post(rig)
    assert (status, headers["Retry-After"]) == (503, "1")
    rig.servers[1].in_flight = 0


def test_a_server_that_is_gone_is_gone_round(rig: Rig) -> None:
    rig.run(rig.runners[1].cleanup())
    found = {post(rig)[1][SERVER_HEADER] for _ in range(4)}
    assert found == {"s1"}
    assert not rig.servers[0].healthy
    rig.run(rig.runners[2].cleanup())
    assert post(rig)[0] == 502


def test_other_pages_come_from_the_first_server(rig: Rig) -> None:
    async def work(session: aiohttp.ClientSession) -> Any:
        async with session.get(f"{rig.url}/v1/models?x=1") as answer:
            return await answer.json(), answer.status

    assert ask(rig, work) == ({"data": [{"id": "m"}]}, 200)
    assert rig.proxy.decider.counters.decided == 0
