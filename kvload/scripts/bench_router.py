"""``make bench-router``: what the router of ``kvload route serve`` costs a request and a chunk.

The same requests go to the mock server directly, through a bare minimum (a process that copies bytes between two
sockets and knows nothing of HTTP) and through the router with a router of 40 trees, one after the other in turn, so
that what the machine does meanwhile falls on all three alike. The mock's first token comes after 20 ms, the next every
5 ms. "Added" is the difference of a percentile to the direct connection's; the kernel's receive stamps time answers.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from kvload import __version__
from kvload.address import Address
from kvload.prompt_features import FEATURES
from kvload.route_model import Figure, Fitted, Router, Routers, Skill, Tree, write
from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.client.loop import StreamLoop

HEADINGS = (
    "in flight",
    "path",
    "TTFT p50, ms",
    "p99",
    "added p50, ms",
    "added p99",
    "gap p50, ms",
    "gap p99",
    "CPU us a chunk",
)
START_S = 60.0


@dataclass(frozen=True)
class Way:
    """One way to the mock: its name, its address, and the process whose CPU time it takes (None: the mock alone)."""

    name: str
    url: str
    process: psutil.Process | None


@dataclass
class Measured:
    """What was measured of one way: seconds, and chunks that came."""

    ttft_s: list[float]
    gap_s: list[float]
    cpu_s: float = 0.0
    chunks: int = 0


class Pipe(asyncio.Protocol):
    """One side of a connection; what comes is written to the other one at once."""

    def __init__(self, upstream: tuple[str, int] | None) -> None:
        self.upstream = upstream
        self.other: Pipe | None = None
        self.transport: asyncio.Transport
        self.waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.upstream is not None:
            asyncio.get_running_loop().create_task(self._connect(*self.upstream))

    async def _connect(self, host: str, port: int) -> None:
        _, other = await asyncio.get_running_loop().create_connection(lambda: Pipe(None), host, port)
        self.other, other.other = other, self
        for data in self.waiting:
            other.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.waiting.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None:
            self.other.transport.close()


def bare(upstream: Address) -> None:
    """Copy bytes to and from a server until killed; prints where it listens."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Pipe((upstream.host, upstream.port)), "127.0.0.1", 0)
        print(f"on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
        await server.serve_forever()

    try:
        import uvloop
    except ImportError:
        asyncio.run(run())
    else:
        uvloop.run(run())


def main() -> int:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m kvload.scripts.bench_router", description=__doc__)
    parser.add_argument("--requests", type=int, default=400, help="of each way and number in flight")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=2000, help="characters of a prompt")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(Address.parse(options.bare))
        return 0
    with ExitStack() as stack:
        ways = _start(stack)
        load = os.getloadavg()[0]
        print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, kvload {__version__};")
        print(
            f"load average at the start {load:.2f}; {options.requests} requests a row, {options.tokens} chunks each\n"
        )
        print(f"| {' | '.join(HEADINGS)} |\n|---:|---|{'---:|' * (len(HEADINGS) - 2)}")
        for in_flight in options.in_flight:
            found = _measure(ways, in_flight, options.requests, options.tokens, options.prompt)
            direct = found[ways[0].name]
            for way in ways:
                print("| " + " | ".join(_row(in_flight, way, found[way.name], direct)) + " |", flush=True)
    return 0


def _start(stack: ExitStack) -> list[Way]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvload-bench-")))
    mock, _ = _process(stack, ["-m", "kvload", "mock", "--ttft", "20ms", "--itl", "5ms"], folder / "mock.log")
    file = folder / "router.json"
    write(file, some_router())
    routed = ["-m", "kvload", "route", "serve", "--to", f"full={mock}", "--to", f"compressed={mock}"]
    url, router = _process(stack, [*routed, "--router", str(file)], folder / "router.log")
    bare_url, copier = _process(stack, ["-m", "kvload.scripts.bench_router", "--bare", mock], folder / "bare.log")
    return [Way("direct", mock, None), Way("bare copier", bare_url, copier), Way("router", url, router)]


def _process(stack: ExitStack, arguments: list[str], log: Path) -> tuple[str, psutil.Process]:
    """Start a Python process and wait until it says where it listens."""
    with log.open("wb") as out:
        started = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=subprocess.STDOUT)
    stack.callback(started.wait, 20)
    stack.callback(started.terminate)
    until = time.monotonic() + START_S
    while time.monotonic() < until and started.poll() is None:
        found = re.search(r"(http://127\.0\.0\.1:\d+)(?![^\n]*=)", log.read_text(encoding="utf-8", errors="replace"))
        if found:
            return found[1], psutil.Process(started.pid)
        time.sleep(0.05)
    raise SystemExit(f"{' '.join(arguments)} did not start:\n{log.read_text(errors='replace')}")


def some_router(trees: int = 40, depth: int = 3) -> Routers:
    """A router as large as those that are fitted; its numbers are drawn."""
    rng = np.random.default_rng(0)
    inner, count = 2**depth - 1, 2 ** (depth + 1) - 1
    made = [
        Tree(
            feature=[int(rng.integers(len(FEATURES))) if node < inner else -1 for node in range(count)],
            threshold=rng.normal(0.5, 1, count).tolist(),
            left=[2 * node + 1 if node < inner else 0 for node in range(count)],
            right=[2 * node + 2 if node < inner else 0 for node in range(count)],
            value=rng.normal(0, 0.1, count).tolist(),
        )
        for _ in range(trees)
    ]
    nothing = Skill(estimate=None, low=None, high=None)
    fitted = Fitted(
        n=0,
        clusters=0,
        events=0.0,
        floor_events=None,
        skill=nothing,
        brier=nothing,
        skill_constant=nothing,
        auc=None,
        coverage=None,
        censored=0,
        unknown=0,
        discounted=0.0,
        better=False,
        sentence="drawn for the bench",
    )
    router = Router(
        arm="compressed",
        baseline="full",
        event=Figure(level=0.0, trees=made),
        ranks=np.linspace(0.2, 0.8, 101).tolist(),
        fitted=fitted,
    )
    return Routers(
        kvload_version=__version__,
        target="negative",
        theta=0.1,
        ratio=1.5,
        features=list(FEATURES),
        routers=[router],
    )


def _measure(ways: list[Way], in_flight: int, requests: int, tokens: int, length: int) -> dict[str, Measured]:
    """All ways in turn, in rounds of as many requests as are in flight."""
    found = {way.name: Measured([], []) for way in ways}
    loops: dict[str, tuple[StreamLoop, list[Any]]] = {}
    for way in ways:
        ended: list[Any] = []
        loops[way.name] = StreamLoop(Address.parse(way.url), on_end=ended.append, timeout_s=60.0), ended
    number = 0
    for round_ in range(-1, -(-requests // in_flight)):
        for way in ways:
            loop, ended = loops[way.name]
            before = _cpu_s(way)
            for _ in range(in_flight):
                number += 1
                text = f"request {number}: " + "tell me of 12 things, please. " * (length // 30)
                body = {"model": "mock", "prompt": text, "max_tokens": tokens, "stream": True}
                loop.start(number, "/v1/completions", json.dumps(body).encode(), f"bench-{number}")
            while len(ended) < in_flight:
                loop.turn(wait=True)
            answers = [parse_answer(raw) for raw in ended]
            ended.clear()
            # the first round opens connections and is not counted
            if round_ >= 0:
                _add(found[way.name], answers, _cpu_s(way) - before)
    for loop, _ in loops.values():
        loop.close()
    return found


def _add(to: Measured, answers: list[Answer], cpu_s: float) -> None:
    to.cpu_s += cpu_s
    for answer in answers:
        if answer.status != "ok" or answer.t_first_ns is None or answer.t_send_ns is None:
            raise SystemExit(f"a request failed: {answer.cause} {answer.error}")
        to.ttft_s.append((answer.t_first_ns - answer.t_send_ns) / 1e9)
        to.gap_s += (np.diff(answer.chunks["us"].astype(np.int64)) / 1e6).tolist()
        to.chunks += len(answer.chunks)


def _cpu_s(way: Way) -> float:
    if way.process is None:
        return 0.0
    times = way.process.cpu_times()
    return float(times.user + times.system)


def _row(in_flight: int, way: Way, found: Measured, direct: Measured) -> list[str]:
    percent: Callable[[list[float], float], float] = lambda values, q: 1e3 * float(np.percentile(values, q))  # noqa: E731
    p50, p99 = percent(found.ttft_s, 50), percent(found.ttft_s, 99)
    added = ["", ""]
    if found is not direct:
        added = [f"{p50 - percent(direct.ttft_s, 50):+.2f}", f"{p99 - percent(direct.ttft_s, 99):+.2f}"]
    cpu = "" if way.process is None else f"{1e6 * found.cpu_s / max(found.chunks, 1):.0f}"
    gaps = [f"{percent(found.gap_s, 50):.2f}", f"{percent(found.gap_s, 99):.2f}"]
    return [str(in_flight), way.name, f"{p50:.2f}", f"{p99:.2f}", *added, *gaps, cpu]


if __name__ == "__main__":
    sys.exit(main())
