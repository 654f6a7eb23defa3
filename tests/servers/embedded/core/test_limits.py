"""The longest answer a request may have."""

import asyncio
import contextlib
from typing import Any

import pytest
import torch
from aiohttp import web

from kvload.servers.embedded.cache.api import CacheGeometry
from kvload.servers.embedded.core.tokenizer import NumericTokenizer
from kvload.servers.embedded.serving import api
from kvload.servers.embedded.serving.api import Service, _settle_max_tokens
from kvload.servers.embedded.serving.protocol import RequestError, parse_request
from tests.servers.embedded.reference_cache import ReferenceCache

GEOMETRY = CacheGeometry(1, 1, 1, 1, torch.float32, torch.device("cpu"))


def service_of(cache: ReferenceCache) -> Service:
    """A service with 100 positions and nothing behind it."""
    unused: Any = None
    return Service(unused, cache, NumericTokenizer(9), unused, "m", "m", 9, 100, {}, 0, 1000)


def settle(prompt: int, **body: Any) -> int:
    """What a server with 100 positions and room for 80 tokens makes of a request."""
    service = service_of(ReferenceCache(GEOMETRY, total=20, page=4))
    return _settle_max_tokens(service, parse_request({"prompt": [1], **body}, chat=False, model="m"), prompt)


def test_the_rest_of_the_context_unless_told() -> None:
    assert settle(30, max_tokens=7) == 7
    assert settle(30, max_completion_tokens=9) == 9
    assert settle(30, max_tokens=0) == 0


@pytest.mark.parametrize(
    ("status", "prompt", "body"),
    [
        (413, 30, {}),
        (413, 60, {"max_tokens": 30}),
        (400, 60, {"max_tokens": 41}),
        (400, 101, {}),
        (400, 100, {}),
        (400, 95, {"min_tokens": 6}),
    ],
)
def test_requests_that_do_not_fit(status: int, prompt: int, body: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as raised:
        settle(prompt, **body)
    assert raised.value.status == status


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head says 100 bytes, and 10 come."""
    monkeypatch.setattr(api, "BODY_TIMEOUT_S", 0.05)

    async def ask() -> bytes:
        service = service_of(ReferenceCache(GEOMETRY, total=25, page=4))
        runner = web.AppRunner(api.build_app(service), access_log=None, lingering_time=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt":')
        answer = await reader.readuntil(b"\r\n")
        writer.close()
        await runner.cleanup()
        return answer

    assert b" 408 " in asyncio.run(ask())


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"POST /v1/com", b""),
        (HEAD, b"X-More: x\r\n"),
        (HEAD + b"Content-Length: 99999\r\n\r\n{", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nff", b""),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n", b""),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", b" "),
        (b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /ver", b"s"),
    ],
)
def test_a_half_sent_request_ends(monkeypatch: pytest.MonkeyPatch, first: bytes, drip: bytes) -> None:
    """Whether the rest never comes or drips in for ever, the server ends the connection and keeps nothing of it."""
    monkeypatch.setattr(api, "BODY_TIMEOUT_S", 0.1)

    async def ask() -> int:
        service = service_of(ReferenceCache(GEOMETRY, total=25, page=4))
        app = api.build_app(service)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=0.1, lingering_time=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(first)

        async def go_on() -> None:
            while drip:
                await asyncio.sleep(0.02)
                writer.write(drip)

        dripping = asyncio.create_task(go_on())
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                while await reader.read(4096):
                    pass
        dripping.cancel()
        writer.close()
        await asyncio.sleep(0.05)
        assert runner.server is not None
        left = len(runner.server.connections)
        await runner.cleanup()
        return left

    assert asyncio.run(ask()) == 0
