"""Ports to listen on, and the address that a listener is reached by."""

import socket

from kvload.errors import UsageError


def free_port(host: str) -> int:
    """A port that nobody listens on now.

    Raises:
        UsageError: the address is none of this machine's.
    """
    return _try_port(host, 0)


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        UsageError: it is taken, or not allowed.
    """
    _try_port(host, port)


def _try_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                where="--port" if port else "--host",
                hint="leave --port out for a free one" if port else None,
            ) from error
        return int(probe.getsockname()[1])


def reachable(host: str) -> str:
    """The address to ask a server that listens on ``host``."""
    plain = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  compared, not bound
    return f"[{plain}]" if ":" in plain else plain
