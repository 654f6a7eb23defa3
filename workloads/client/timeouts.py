"""Limits on how long a request may take, kept in the order in which they are reached."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from kvload.workloads.client.raw import RawStream

NEVER_NS = 1 << 62


class Timeouts:
    """Follows requests from the moment they are to be sent, on an open connection or not yet, to their limit.

    Args:
        limit_s: from then to a request's end; None for no limit.

    Attributes:
        next_ns: when the next limit may be reached (monotonic).
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._limit_ns = 0 if limit_s is None else round(limit_s * 1e9)
        self._queue: deque[tuple[int, RawStream]] = deque()

    @property
    def next_ns(self) -> int:
        return self._queue[0][0] if self._queue else NEVER_NS

    def begin(self, raw: RawStream) -> None:
        """A request's time runs from its start on."""
        if self.limit_s is not None:
            self._queue.append((raw.t_start_ns + self._limit_ns, raw))

    def reached(self, now_ns: int) -> Iterator[Any]:
        """The connections whose request has reached its limit."""
        queue = self._queue
        while queue and queue[0][0] <= now_ns:
            _, raw = queue.popleft()
            if raw.connection is not None:
                yield raw.connection
