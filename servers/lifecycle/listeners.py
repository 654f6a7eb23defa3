"""Whose socket answers on a port: the server that was started, or somebody else's.

Two programs may bind one port (``SO_REUSEADDR`` until one of them listens, ``SO_REUSEPORT`` even then), so an answer
on a port proves nothing about who gave it. Linux lists every listening socket with its inode in ``/proc/net/tcp`` and
every process's sockets in ``/proc/PID/fd`` (proc(5)).
"""

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
LISTEN = "0A"
"""The kernel's ``TCP_LISTEN`` (include/net/tcp_states.h)."""


def belongs_to(pids: Iterable[int], host: str, port: int) -> bool | None:
    """Whether every socket that would answer at an address is held by one of these processes.

    Args:
        pids: the processes of a server.
        host: name or address that is asked.
        port: 1 to 65535.

    Returns:
        False also where nobody listens; None where this system does not tell.
    """
    found = listening_inodes(host, port)
    if found is None:
        return None
    held: set[str] = set()
    for pid in pids:
        held |= _sockets_of(pid)
    return bool(found) and found <= held


def listening_inodes(host: str, port: int) -> set[str] | None:
    """Inodes of the sockets that listen on a port at this address or at all; None where this system does not tell."""
    wanted = _addresses(host)
    found: set[str] = set()
    tables = [PROC / "net" / name for name in ("tcp", "tcp6")]
    readable = False
    for table in tables:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        readable = True
        for line in lines:
            fields = line.split()
            address, _, hex_port = fields[1].partition(":")
            if fields[3] != LISTEN or int(hex_port, 16) != port:
                continue
            bound = _decode(address)
            if bound in wanted or bound.is_unspecified:
                found.add(fields[9])
    return found if readable else None


def _sockets_of(pid: int) -> set[str]:
    found = set()
    try:
        descriptors = list((PROC / str(pid) / "fd").iterdir())
    except OSError:
        return set()
    for descriptor in descriptors:
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _decode(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel prints it: 32-bit words in the machine's order, an IPv4 one inside IPv6 taken out."""
    raw = bytes.fromhex(text)
    words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    address = ipaddress.ip_address(words)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _addresses(host: str) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos}
