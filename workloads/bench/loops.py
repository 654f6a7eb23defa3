"""Which loop reads cheapest beside Locust: ``python -m kvload.workloads.bench.loops``.

The same reads (400 streams, a chunk every 20 ms, kernel stamps kept) in several ways: gevent's own watcher for every
socket, one epoll watched by gevent as a single descriptor, without and with naps in which chunks gather, and one epoll
in a native thread while gevent idles. The one with naps is what :mod:`kvload.workloads.swarm.worker` does.
"""

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import gevent
import gevent.event

from kvload.workloads.clock import ANCILLARY_BYTES, enable_receive_stamps

STREAMS = 400
CHUNKS = 100
GAP_S = 0.02
CHUNK = b"x" * 240
_READ_BYTES = 1 << 13
_EVENTS = 64


class Reader:
    """Reads whatever is ready on its sockets and counts it."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.sockets = {sock.fileno(): sock for sock in sockets}
        self._kept: dict[int, list[object]] = {fd: [] for fd in self.sockets}
        self.reads = 0
        self.bytes = 0

    def read(self, fd: int) -> bool:
        """Read once; False at the stream's end."""
        data, ancillary, _, _ = self.sockets[fd].recvmsg(_READ_BYTES, ANCILLARY_BYTES)
        if not data:
            del self.sockets[fd]
            return False
        self._kept[fd] += (data, ancillary[0][2])
        self.reads += 1
        self.bytes += len(data)
        return True


def watchers(reader: Reader) -> None:
    """A watcher of gevent's loop for every socket."""
    done = gevent.event.Event()
    loop = gevent.get_hub().loop
    watched = {fd: loop.io(fd, 1) for fd in reader.sockets}

    def ready(fd: int) -> None:
        if not reader.read(fd):
            watched[fd].stop()
            if not reader.sockets:
                done.set()

    for fd, watcher in watched.items():
        watcher.start(ready, fd)
    done.wait()


def nested(reader: Reader, nap_s: float = 0.0) -> None:
    """One epoll, itself watched by gevent's loop; with ``nap_s`` chunks gather so long before they are read."""
    done = gevent.event.Event()
    epoll = _epoll(reader)

    def turn() -> None:
        if nap_s:
            time.sleep(nap_s)
        _turn(reader, epoll, 0)
        if not reader.sockets:
            done.set()

    watcher = gevent.get_hub().loop.io(epoll.fileno(), 1)
    watcher.start(turn)
    done.wait()
    watcher.stop()


def thread(reader: Reader) -> None:
    """One epoll in a native thread; gevent wakes now and then, as Locust does."""
    epoll = _epoll(reader)

    def run() -> None:
        while reader.sockets:
            _turn(reader, epoll, -1)

    native = threading.Thread(target=run)
    native.start()
    while native.is_alive():
        gevent.sleep(0.01)


LOOPS: Mapping[str, Callable[[Reader], None]] = {
    "gevent's watchers": watchers,
    "one epoll under gevent": nested,
    "the same, 1 ms naps": partial(nested, nap_s=0.001),
    "a native thread": thread,
}


def measure(loop: Callable[[Reader], None]) -> tuple[float, float]:
    """CPU time per chunk in microseconds, and the share of chunks that came in one read with another."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=STREAMS)
    sender = os.fork()
    if sender == 0:
        _send(listener.getsockname())
        os._exit(0)
    sockets = [listener.accept()[0] for _ in range(STREAMS)]
    for sock in sockets:
        sock.setblocking(False)
        enable_receive_stamps(sock)
    reader = Reader(sockets)
    begun_s = time.process_time()
    loop(reader)
    cpu_s = time.process_time() - begun_s
    os.waitpid(sender, 0)
    chunks = reader.bytes / len(CHUNK)
    return cpu_s / chunks * 1e6, 1 - reader.reads / chunks


def main() -> None:
    """Measure each loop three times in turn and print the cheapest round of each."""
    found: dict[str, tuple[float, float]] = {}
    for _ in range(3):
        for name, loop in LOOPS.items():
            found[name] = min(found.get(name, (float("inf"), 0.0)), measure(loop))
    lines = ["| loop | us/chunk | shared reads |", "|---|---:|---:|"]
    lines += [f"| {name} | {cost:.1f} | {shared:.0%} |" for name, (cost, shared) in found.items()]
    sys.stdout.write("\n".join(lines) + "\n")


def _epoll(reader: Reader) -> select.epoll:
    epoll = select.epoll()
    for fd in reader.sockets:
        epoll.register(fd, select.EPOLLIN)
    return epoll


def _turn(reader: Reader, epoll: select.epoll, timeout_s: float) -> None:
    for fd, _ in epoll.poll(timeout_s, _EVENTS):
        if not reader.read(fd):
            epoll.unregister(fd)


def _send(address: tuple[str, int]) -> None:
    """The other side, in a process of its own: chunks spread evenly over each gap."""
    sockets = [socket.create_connection(address) for _ in range(STREAMS)]
    for sock in sockets:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start = time.monotonic() + 0.3
    for number in range(CHUNKS):
        for place, sock in enumerate(sockets):
            due = start + (number + place / STREAMS) * GAP_S
            time.sleep(max(0.0, due - time.monotonic()))
            sock.send(CHUNK)


if __name__ == "__main__":
    main()
