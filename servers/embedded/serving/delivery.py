"""From the engine's thread to the clients: one hand-over a step, one write per event."""

import asyncio
import logging
from collections.abc import Callable

from aiohttp import HttpVersion11, web

from kvload.servers.embedded.core.engine import Delivery
from kvload.servers.embedded.core.sequence import Delta
from kvload.servers.embedded.serving.answers import Answer

logger = logging.getLogger(__name__)


class Mailbox:
    """Where a request's deltas arrive, on the event loop's thread.

    At first they are kept; once a stream is open they go straight to its connection, without waking a task for every
    token.
    """

    def __init__(self) -> None:
        self._kept: list[Delta] = []
        self._sink: Callable[[Delta], None] | None = None
        self._changed = asyncio.Event()
        self._ended = False
        self._failure: Exception | None = None

    def put(self, delta: Delta) -> None:
        """Take a delta in. A fault in handling it is this request's alone: it is kept for the request's own task."""
        if self._failure is not None:
            return
        try:
            if self._sink is None:
                self._kept.append(delta)
            else:
                self._sink(delta)
        except Exception as error:
            self._failure = error
        self._ended = delta.finish_reason is not None or self._failure is not None
        if self._ended or self._sink is None:
            self._changed.set()

    async def first(self) -> Delta:
        """Wait for the first delta; it stays in the box."""
        while not self._kept:
            await self._wait()
        return self._kept[0]

    async def all(self) -> list[Delta]:
        """Wait for the end of the answer."""
        while not self._ended:
            await self._wait()
        return self._kept

    async def pour(self, sink: Callable[[Delta], None], start: int) -> None:
        """Give what is kept from delta ``start`` on, and everything to come, to a function until the answer ends.

        Raises:
            Exception: what the function raised.
        """
        for delta in self._kept[start:]:
            sink(delta)
        self._sink = sink
        while not self._ended:
            await self._wait()
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def deliver(delivery: Delivery) -> None:
    """Hand one step's deltas to their requests; runs on the event loop's thread."""
    for put, delta in delivery:
        put(delta)


async def stream(request: web.Request, mailbox: Mailbox, answer: Answer) -> web.StreamResponse:
    """Send an answer as server-sent events while it is made.

    The response starts with the first delta, so that a failure before it can still have a status of its own. Events
    are written to the connection directly, framed as chunks: an answer has as many as it has tokens. What a slow
    client leaves unread stays in memory, limited by the longest answer.
    """
    first = answer.event(await mailbox.first())
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write(first)
    framed = request.version >= HttpVersion11
    transport = request.transport

    def send(delta: Delta) -> None:
        if transport is not None and not transport.is_closing():
            data = answer.event(delta)
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if framed else data)

    try:
        await mailbox.pour(send, start=1)
    except Exception as error:
        logger.exception("an answer could not be written")
        await response.write(answer.event(Delta(error=f"{type(error).__name__}: {error}")))
    await response.write_eof()
    return response
