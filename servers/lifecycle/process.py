"""Processes of a launched server: told from strangers' by their start, found as a session, ended together."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

TOKEN_VARIABLE = "KVLOAD_SERVER_TOKEN"  # noqa: S105  a name
"""Environment variable that every process of a launched server inherits, with that server's own random value."""


def start_mark(pid: int) -> str | None:
    """When a process started, in a form that no later process of the same number can repeat; None if there is none.

    On Linux the kernel's own start time in clock ticks with the identity of the boot: unlike a wall-clock time it
    does not move when the machine's clock is set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The command name stands in brackets and may itself hold brackets and spaces: count from the last one.
        return f"{boot}:{stat.rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        pass
    try:
        return f"{psutil.Process(pid).create_time():.3f}"
    except psutil.Error:
        return None


def is_alive(pid: int, mark: str | None) -> bool:
    """Whether the process with that start mark still runs; a zombie does not."""
    if mark is None or start_mark(pid) != mark:
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def session_members(anchors: Iterable[tuple[int, str]], token: str) -> list[psutil.Process]:
    """Every living process of one launched server.

    Members are the anchors, their descendants, the processes of a session that an anchor leads, and whatever carries
    the server's token in its environment. A session's number is trusted only while the keeper, which made that session,
    proves that it is still ours: an anchor that merely belongs to a session (a shell's, say) speaks for itself alone.
    The token finds those that left the session.

    Args:
        anchors: pid and start mark of known processes of the server; its keeper leads its session.
        token: value of :data:`TOKEN_VARIABLE`.
    """
    living = [pid for pid, mark in anchors if is_alive(pid, mark)]
    sessions = {pid for pid in living if _session(pid) == pid}
    members: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if (
                process.pid in living or _session(process.pid) in sessions or _carries(process, token)
            ) and process.status() != psutil.STATUS_ZOMBIE:
                members[process.pid] = process
        except psutil.Error:
            continue
    for process in list(members.values()):
        try:
            members.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.Error:
            continue
    return list(members.values())


def end_all(members: Callable[[], list[psutil.Process]], *, grace_s: float = 2.0, kill_s: float = 5.0) -> list[int]:
    """End processes: ask all of them, then kill those left. Returns the pids that would not go.

    Args:
        members: lists the processes still to end; asked again after each step, since they may start others.
        grace_s: how long to wait after asking.
        kill_s: how long to wait for the kernel after killing.
    """
    for send, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, kill_s)):
        deadline = time.monotonic() + patience_s
        signalled: set[int] = set()
        while left := members():
            for process in left:
                if process.pid not in signalled:
                    signalled.add(process.pid)
                    _send(process, send)
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        else:
            return []
    return [process.pid for process in members()]


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _carries(process: psutil.Process, token: str) -> bool:
    try:
        return process.environ().get(TOKEN_VARIABLE) == token
    except (psutil.Error, OSError):
        return False
