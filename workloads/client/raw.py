"""One request as the streaming client leaves it, before anything of its answer is looked at."""

from dataclasses import dataclass, field
from typing import Any

from kvload.records import Status
from kvload.workloads.client.http1 import ResponseHead


@dataclass(slots=True)
class RawStream:
    """One request as the streaming client leaves it: bytes, stamps and how it ended.

    Attributes:
        key: whatever the caller gave with the request.
        reads: three items for each read, see below; one list, since to touch several for every chunk of a thousand
            streams costs more than the rest of the work on it.
        tie_offset_ns: ``CLOCK_REALTIME`` minus ``CLOCK_MONOTONIC`` while it ran, None if wall time was stepped then.
        t_send_ns: just before its first byte was handed to the kernel; None if that never happened.
        complete: the answer ended as its framing says.
        cause, error: why it ended otherwise.
        retries: times it was sent again after a stale connection.
        connection: where it is under way (a :class:`~kvload.workloads.client.connection.Connection`).
    """

    key: Any
    t_start_ns: int
    reads: list[Any] = field(default_factory=list)
    tie_offset_ns: int | None = None
    t_send_ns: int | None = None
    t_end_ns: int = 0
    head: ResponseHead | None = None
    body_start: int = 0
    complete: bool = False
    status: Status = "ok"
    cause: str | None = None
    error: str | None = None
    retries: int = 0
    connection: Any = None

    @property
    def pieces(self) -> list[bytes]:
        """What each read gave."""
        return self.reads[0::3]

    @property
    def stamps(self) -> list[bytes | None]:
        """The kernel's receive stamp of each piece (raw ``struct timespec``), None where there was none."""
        return self.reads[1::3]

    @property
    def seen_ns(self) -> list[int]:
        """When user space learnt of each piece (monotonic)."""
        return self.reads[2::3]
