"""The exceptions kvload raises for its users, and the exit code of each.

::

    KvloadError                what was wrong, where, and what to do        exit 2
    +-- UsageError             a flag, a config value, a combination        exit 2
    |   +-- PortHeldError      a port that another server has               exit 2
    +-- TraceError             a trace file: names file, line and field     exit 2
    +-- RunDirError            a run folder that cannot be read or written  exit 2
    +-- PairingError           two runs that must not be compared           exit 2
    +-- GateFailedError        a --fail-if condition came true              exit 1
    +-- ServerError            a server did not start, answer or survive    exit 3
    |   +-- StartFailedError   it did not come up: the cause, its log's end exit 3
    |   +-- ServerDiedError    it came up, and died before it was done         exit 3
    |   +-- VerificationFailedError   its cache is not what was asked for   exit 3
    +-- MachineError           this machine: disk, files, memory            exit 4
    +-- InternalError          a fault of kvload's own that ended a run     exit 70

Anything else that escapes is a fault in kvload itself, keeps its traceback and exits with 70.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit codes of the ``kvload`` command."""

    OK = 0
    GATE_FAILED = 1
    USAGE = 2
    SERVER = 3
    MACHINE = 4
    FAULT = 70
    INTERRUPTED = 130


class KvloadError(Exception):
    """A problem the user can act on.

    Args:
        message: what was wrong, in one sentence.
        where: the file and line, flag or address it concerns, if there is one.
        hint: what to do about it, if that is known.
    """

    exit_status = ExitStatus.USAGE

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(KvloadError):
    """A flag, a configuration value or a combination of them that cannot be used."""


class TraceError(KvloadError):
    """A trace that cannot be read; ``where`` is ``file:line`` and the message names the field."""


class RunDirError(KvloadError):
    """A run folder that is missing, incomplete or not writable."""


class PairingError(KvloadError):
    """Two runs whose requests are not the same requests; the message names the first mismatch."""


class GateFailedError(KvloadError):
    """A condition given with ``--fail-if`` came true."""

    exit_status = ExitStatus.GATE_FAILED


class ServerError(KvloadError):
    """A server that did not start, did not answer, or died."""

    exit_status = ExitStatus.SERVER


class MachineError(KvloadError):
    """This machine has no room: on its disk, in its memory, among the files a process may open."""

    exit_status = ExitStatus.MACHINE


class InternalError(KvloadError):
    """A fault of kvload's own, in a process whose traceback is in its log."""

    exit_status = ExitStatus.FAULT
