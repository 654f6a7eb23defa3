"""The two pipes between a Locust process and the parent that started it: lines of JSON in both directions."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gevent
import gevent.os
import msgspec


@dataclass(frozen=True)
class OwnPipes:
    """This process's ends of its pipes; None where it has none."""

    events_fd: int | None
    control_fd: int | None


def own_pipes(arguments: Sequence[str]) -> OwnPipes:
    """What this process's own command line says.

    Locust overwrites a worker's options with its master's as soon as the master starts users, which may be before the
    worker is set up: their numbers are of pipes that this process does not have.

    Args:
        arguments: of the command line, without the program; others than the pipes' are passed over.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--kvload-events-fd", "--kvload-control-fd"):
        parser.add_argument(name, type=int, default=None)
    found, _ = parser.parse_known_args(list(arguments))
    return OwnPipes(found.kvload_events_fd, found.kvload_control_fd)


class EventPipe:
    """Lines of JSON to the parent that never make the run wait: what the pipe does not take stays here."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._backlog = b""
        if fd is not None:
            os.set_blocking(fd, False)

    def tell(self, event: dict[str, Any]) -> None:
        """Send one event, or keep it until the parent reads again."""
        if self._fd is None:
            return
        self._backlog += msgspec.json.encode(event) + b"\n"
        self._push()

    def _push(self) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(BlockingIOError):
            while self._backlog:
                try:
                    sent = os.write(self._fd, self._backlog)
                except BrokenPipeError:
                    self._fd, self._backlog = None, b""
                    return
                self._backlog = self._backlog[sent:]

    def flush(self, patience_s: float) -> None:
        """Wait a little for the parent to take what is left."""
        deadline = time.monotonic() + patience_s
        while self._backlog and time.monotonic() < deadline:
            self._push()
            gevent.sleep(0.01)


def listen(fd: int, on_command: Callable[[dict[str, Any]], None], on_end: Callable[[], None]) -> None:
    """Read the parent's commands, one JSON object a line, until it closes the pipe."""
    os.set_blocking(fd, False)
    pending = b""
    while True:
        data = gevent.os.nb_read(fd, 1 << 16)
        if not data:
            on_end()
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            on_command(msgspec.json.decode(line))
