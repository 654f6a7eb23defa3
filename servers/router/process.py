"""Run a router until it is told to stop."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from kvload.errors import KvloadError, UsageError
from kvload.servers.router.decide import Decider
from kvload.servers.router.upstream import Upstream
from kvload.servers.watch.discover import server_info

STOPS = (signal.SIGINT, signal.SIGTERM)


def ask_all(servers: Sequence[Upstream]) -> list[str]:
    """Ask every server what it is; notes on what is odd.

    Raises:
        UsageError: two of them serve models of different names, so that no request suits both.
    """
    notes = []
    for server in servers:
        try:
            server.info = server_info(server.address)
        except KvloadError as error:
            notes.append(f"{server.name}: {error.message}")
    names = {server.name: server.info.model for server in servers if server.info is not None}
    if len(set(names.values())) > 1:
        raise UsageError(
            f"the servers serve different models: {', '.join(f'{name}: {model}' for name, model in names.items())}",
            where="--to",
            hint="start them with one --served-model-name",
        )
    return notes


def serve(
    decider: Decider,
    *,
    body_bytes: int,
    in_flight: int,
    quiet_s: float | None,
    host: str,
    port: int,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; answers under way may end within some seconds.

    Args:
        body_bytes, in_flight, quiet_s: see :class:`kvload.servers.router.proxy.Bounds`.
        on_ready: told the address once it answers.

    Raises:
        UsageError: the address cannot be had, or aiohttp is not installed.
    """
    try:
        from aiohttp import web

        from kvload.servers.router.proxy import Bounds, Proxy
    except ImportError as error:
        raise UsageError(
            "a router needs aiohttp, which is not installed", hint="pip install 'kvload[route]'"
        ) from error
    limits = Bounds(body_bytes=body_bytes, in_flight=in_flight, quiet_s=quiet_s)

    async def run() -> None:
        # what was imported stays: a collection that walks over it would stall every stream
        gc.collect()
        gc.freeze()
        runner = web.AppRunner(
            Proxy(decider, limits).application(),
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=75.0,
            shutdown_timeout=5.0,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, backlog=1024, reuse_address=True)
            await site.start()
        except (OSError, socket.gaierror) as error:
            await runner.cleanup()
            raise UsageError(f"cannot listen there: {error.strerror}", where=f"--port {port}") from error
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in str(bound[0]) else bound[0]
        on_ready(f"http://{shown}:{bound[1]}")
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOPS:
            loop.add_signal_handler(number, done.set)
        await done.wait()
        await runner.cleanup()

    if sys.platform != "win32":
        try:
            import uvloop
        except ImportError:
            pass
        else:
            uvloop.run(run())
            return
    asyncio.run(run())
