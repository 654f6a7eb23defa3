"""What the streaming client needs of the machine before it sends anything: addresses, a clock, an epoll."""

import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvload.address import Address
from kvload.errors import ServerError


def real_epoll() -> Any:
    """``select.epoll``, also where gevent has taken it out of the module."""
    if hasattr(select, "epoll"):
        return select.epoll
    from gevent.monkey import get_original

    return get_original("select", "epoll")


def real_sleep() -> Callable[[float], None]:
    """``time.sleep``, also where gevent has put a sleep of its own in its place."""
    try:
        from gevent.monkey import get_original
    except ImportError:
        return time.sleep
    sleep: Callable[[float], None] = get_original("time", "sleep")
    return sleep


def machine_id() -> str:
    """Tells machines (and their boots) apart: processes with the same id share one monotonic clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def resolve(address: Address) -> tuple[int, Any]:
    """Address family and socket address of a server.

    Raises:
        ServerError: the host's name cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerError(f"the host's name cannot be resolved: {error}", where=address.url) from error
    # a server on "localhost" mostly listens on 127.0.0.1 only
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, place = found[0]
    return int(family), place
