"""Ending a launched server: all of its processes, nobody else's, and a look whether the GPU is free again."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import msgspec
import psutil

from kvload.errors import ServerError
from kvload.servers.host import machine as machines
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.process import end_all, is_alive, session_members
from kvload.servers.lifecycle.registry import ServerEntry

GPU_FREE_TIMEOUT_S = 15.0
GPU_SLACK_MIB = 512


@dataclass(frozen=True)
class StopReport:
    """How a server was stopped.

    Attributes:
        was_running: False where it was dead already.
        killed: processes that did not end in time and were killed.
        gpu_left_mib: GPU memory still in use beyond what was in use before the server was started; None without a GPU,
            and while other servers on it hold memory of their own: the last one to stop answers for all.
    """

    was_running: bool
    killed: bool
    gpu_left_mib: int | None = None


def stop(entry: ServerEntry) -> StopReport:
    """End all processes of a server, and only those, then forget it.

    Raises:
        ServerError: some would not end; they are named.
    """

    def members() -> list[psutil.Process]:
        return session_members(entry.anchors, entry.token)

    was_running = bool(entry.pid) and is_alive(entry.pid, entry.mark)
    # Taken while its processes prove that they are ours; the session's later members are found through them.
    known = {process.pid: process for process in members()}

    def left() -> list[psutil.Process]:
        alive = {p.pid: p for p in known.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE}
        return list({**alive, **{p.pid: p for p in members()}}.values())

    if was_running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGTERM)
        _wait_for_end(entry, entry.stop_grace_s)
    killed = was_running and is_alive(entry.pid, entry.mark)
    stubborn = end_all(left)
    if stubborn:
        raise ServerError(
            f"processes {', '.join(map(str, stubborn))} of the server '{entry.name}' do not end",
            hint="they may be waiting for a device; try again, or see what they are with ps",
        )
    kept = registry.load(entry.name)
    registry.remove(entry)
    return StopReport(was_running, killed, _gpu_left(kept if kept is not None and kept.token == entry.token else entry))


def _wait_for_end(entry: ServerEntry, grace_s: float) -> None:
    deadline = time.monotonic() + grace_s
    while is_alive(entry.pid, entry.mark) and time.monotonic() < deadline:
        time.sleep(0.05)


def _gpu_left(entry: ServerEntry) -> int | None:
    """GPU memory in use beyond what was before the start, once it no longer shrinks; small rests count as none."""
    before = entry.gpu_used_before_mib
    if before is None:
        return None
    others = [
        (other, other.gpu_used_before_mib)
        for other in registry.entries()
        if other.gpu_used_before_mib is not None
        and _share_gpus(entry, other)
        and other.pid
        and is_alive(other.pid, other.mark)
    ]
    for other, others_before in others:
        if others_before > before:
            registry.save(msgspec.structs.replace(other, gpu_used_before_mib=before))
    if others:
        return None
    deadline = time.monotonic() + GPU_FREE_TIMEOUT_S
    while True:
        used = machines.gpu_used_mib(entry.info.gpus)
        if used is None:
            return None
        left = used - before
        if left <= GPU_SLACK_MIB:
            return 0
        if time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def _share_gpus(one: ServerEntry, other: ServerEntry) -> bool:
    """Whether memory of one server may be on a GPU of the other: a server that was given no GPUs may be on any."""
    return not one.info.gpus or not other.info.gpus or bool(set(one.info.gpus) & set(other.info.gpus))
