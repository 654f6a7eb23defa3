"""Limits on how long a request may take, kept in the order in which they are reached."""

from collections import deque
from collections.abc import Iterator

from kvload.workloads.client.answer import RawStream
from kvload.workloads.client.connection import Connection

NEVER_NS = 1 << 62


class Timeouts:
    """Follows requests from the moment they are sent, or a connection is opened for them, to their limit.

    Args:
        limit_s: from a request's first byte sent to its end; None for no limit.

    Attributes:
        next_ns: when the next limit may be reached (monotonic).
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._limit_ns = 0 if limit_s is None else round(limit_s * 1e9)
        self._queue: deque[tuple[int, RawStream, Connection]] = deque()

    @property
    def next_ns(self) -> int:
        return self._queue[0][0] if self._queue else NEVER_NS

    def begin(self, raw: RawStream, connection: Connection, now_ns: int) -> None:
        """A request's time runs from now on; one that was waiting for its connection starts anew."""
        if self.limit_s is not None:
            self._queue.append((now_ns + self._limit_ns, raw, connection))

    def reached(self, now_ns: int) -> Iterator[Connection]:
        """The connections whose request has reached its limit."""
        queue = self._queue
        while queue and queue[0][0] <= now_ns:
            _, raw, connection = queue.popleft()
            sent_since = raw.t_send_ns is not None and raw.t_send_ns + self._limit_ns > now_ns
            if connection.raw is raw and not sent_since:
                yield connection
