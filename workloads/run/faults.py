"""What went wrong in the load generator itself: in words, and whose doing it was."""

import errno
from typing import Literal

from kvload.errors import ExitStatus, KvloadError

Fault = Literal["user", "server", "machine", "kvload"]

_MACHINE_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL),
    }
)


def describe(error: BaseException) -> str:
    """One sentence."""
    if isinstance(error, KvloadError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def fault_of(error: BaseException) -> Fault:
    """The machine's, where it has no room; else ours."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _MACHINE_ERRORS):
        return "machine"
    if isinstance(error, KvloadError):
        return {ExitStatus.SERVER: "server", ExitStatus.MACHINE: "machine"}.get(error.exit_status, "kvload")  # type: ignore[return-value]
    return "kvload"
