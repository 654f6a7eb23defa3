"""Clocks: the kernel's receive timestamps, their tie to the monotonic clock, and a timer that keeps absolute deadlines.

Linux stamps every TCP segment when it arrives from the network (``SO_TIMESTAMPNS``, socket(7)) and hands the stamp of
the last byte read over with the data, as ancillary data of ``recvmsg``. A reader that comes late still learns when the
data came. The stamps are on ``CLOCK_REALTIME``; :class:`ClockTie` turns them into ``CLOCK_MONOTONIC``.
"""

import ctypes
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass

SO_TIMESTAMPNS = 35
"""Value of ``SO_TIMESTAMPNS_OLD`` on Linux (asm-generic/socket.h); the ancillary message carries the same type."""

ANCILLARY_BYTES = 64
"""Room for one ``struct timespec`` and its header."""

TIMESPEC = struct.Struct("@qq")
_TFD_TIMER_ABSTIME = 1
_RENEWAL_NS = 1_000_000_000
_STEP_NS = 2_000_000
"""A tie that moved by more than this between two readings means that wall time was stepped."""

_ITIMERSPEC = struct.Struct("@qqqq")


def enable_receive_stamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what arrives on this socket; False where the platform has no such stamps."""
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class ClockTie:
    """``CLOCK_REALTIME`` minus ``CLOCK_MONOTONIC`` at one moment, in nanoseconds, and how well it is known.

    Wall time is slewed and now and then stepped; a tie is therefore renewed every second or so and used only for
    stamps of its own time.
    """

    offset_ns: int
    uncertainty_ns: int

    @classmethod
    def measure(cls, attempts: int = 5) -> "ClockTie":
        """Read both clocks a few times and keep the reading with the smallest gap around it."""
        ties = []
        for _ in range(attempts):
            before = time.monotonic_ns()
            wall = time.time_ns()
            after = time.monotonic_ns()
            ties.append(cls(wall - (before + after) // 2, after - before))
        return min(ties, key=lambda tie: tie.uncertainty_ns)

    def monotonic_ns(self, timespec: bytes) -> int:
        """The monotonic time, in nanoseconds, of the raw ``struct timespec`` of an ancillary message."""
        seconds, nanoseconds = TIMESPEC.unpack_from(timespec)
        return int(seconds) * 1_000_000_000 + int(nanoseconds) - self.offset_ns


class RunningTie:
    """A :class:`ClockTie` that is renewed every second, and counts the steps of wall time between.

    Attributes:
        offset_ns: of the latest tie.
        steps: how often wall time was found to have been stepped.
    """

    def __init__(self) -> None:
        self.offset_ns = ClockTie.measure().offset_ns
        self.steps = 0
        self._renewal_ns = time.monotonic_ns() + _RENEWAL_NS

    def keep(self, now_ns: int) -> None:
        """Renew the tie if it is old at ``now_ns`` (monotonic)."""
        if now_ns < self._renewal_ns:
            return
        offset_ns = ClockTie.measure().offset_ns
        self.steps += abs(offset_ns - self.offset_ns) > _STEP_NS
        self.offset_ns = offset_ns
        self._renewal_ns = now_ns + _RENEWAL_NS


class DeadlineTimer:
    """A ``timerfd`` on ``CLOCK_MONOTONIC`` that becomes readable at an absolute time.

    An event loop's own timeout is rounded to milliseconds (``epoll_wait``) and delayed by the timer slack; a timerfd
    is neither (timerfd_create(2)).
    """

    def __init__(self) -> None:
        # PyDLL keeps the interpreter's lock: the calls are shorter than giving it up and taking it again.
        libc = ctypes.PyDLL(None, use_errno=True)
        fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self.fd: int = fd
        self._settime = libc.timerfd_settime
        self._spec = ctypes.create_string_buffer(_ITIMERSPEC.size)
        self._armed_ns: int | None = None

    def arm(self, deadline_ns: int) -> None:
        """Become readable at ``deadline_ns`` (monotonic); a time in the past fires at once."""
        if deadline_ns == self._armed_ns:
            return
        deadline = max(deadline_ns, 1)
        _ITIMERSPEC.pack_into(self._spec, 0, 0, 0, deadline // 1_000_000_000, deadline % 1_000_000_000)
        if self._settime(self.fd, _TFD_TIMER_ABSTIME, self._spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        self._armed_ns = deadline_ns

    def clear(self) -> None:
        """Take note that it fired: it must be armed again to fire again."""
        self._armed_ns = None
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
