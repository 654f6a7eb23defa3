"""The bare reader of ``make bench-client`` in plain Python: the same work as ``floor.c``, with the same words.

usage: python -m kvload.workloads.bench.reader PORT RATE COUNT NAP_US < BODY; prints one line of JSON.
"""

import gc
import json
import select
import socket
import sys
import time
from typing import Any

from kvload.workloads.clock import ANCILLARY_BYTES, DeadlineTimer, enable_receive_stamps

_READ_BYTES = 1 << 13
_EVENTS = 1024


def read_answers(port: int, rate: float, planned: int, nap_s: float, body: bytes) -> dict[str, float]:
    """Send ``planned`` requests at ``rate`` a second and read every answer, keeping bytes and stamps until it ends.

    Args:
        nap_s: how long answers may gather before they are read; 0 reads at once.
    """
    epoll, timer = select.epoll(), DeadlineTimer()
    epoll.register(timer.fd, select.EPOLLIN)
    streams: dict[int, tuple[Any, socket.socket, list[bytes], list[bytes]]] = {}
    idle: list[socket.socket] = []
    sent = ended = reads = waits = total = worst_ns = 0
    cpu_s = time.process_time()
    start = due = time.monotonic_ns() + 100_000_000
    while ended < planned:
        now = time.monotonic_ns()
        while sent < planned and due <= now:
            sock = idle.pop() if idle else _connect(port, epoll)
            streams[sock.fileno()] = (sock.recvmsg, sock, [], [])
            worst_ns = max(worst_ns, now - due)
            head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: floor-%d\r\n" % sent
            sock.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            sent += 1
            due = start + int(sent * 1e9 / rate)
        if sent < planned:
            timer.arm(due)
        if nap_s:
            time.sleep(min(nap_s, max(0, due - now) / 1e9) if sent < planned else nap_s)
        waits += 1
        for fd, _ in epoll.poll(-1, _EVENTS):
            stream = streams.get(fd)
            if stream is None:
                timer.clear()
                continue
            receive, sock, pieces, stamps = stream
            data, ancillary, _, _ = receive(_READ_BYTES, ANCILLARY_BYTES)
            reads += 1
            total += len(data)
            pieces.append(data)
            stamps.append(ancillary[0][2])
            if data[-5:] == b"0\r\n\r\n":
                idle.append(sock)
                ended += 1
                del streams[fd]
            elif not data:
                raise ConnectionError("the server closed a connection")
    return {
        "reads": reads,
        "bytes": total,
        "waits": waits,
        "cpu_s": time.process_time() - cpu_s,
        "wall_s": (time.monotonic_ns() - start) / 1e9,
        "worst_lag_s": worst_ns / 1e9,
    }


def _connect(port: int, epoll: select.epoll) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    enable_receive_stamps(sock)
    sock.setblocking(False)
    epoll.register(sock.fileno(), select.EPOLLIN)
    return sock


def main() -> None:
    """Read one load's answers and print what it cost."""
    port, rate, count, nap_us = sys.argv[1:5]
    gc.disable()
    found = read_answers(int(port), float(rate), int(count), int(nap_us) / 1e6, sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
