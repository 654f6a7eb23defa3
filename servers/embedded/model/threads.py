"""How many threads torch gets."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

MOST = 8
LOOK_S = 0.25
SMALL_BYTES = 32 << 20
"""Weights up to this size lie in one core's reach: a step of them is shorter than what threads wait for each other."""


@dataclass(frozen=True)
class Threads:
    """A number of threads, and what it follows from."""

    count: int
    why: str


def usable_cores() -> int:
    """Physical cores this process may use: the machine's, its affinity and its control group considered."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")
    try:
        most, period = quota.read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(most) // int(period)))
    except (OSError, ValueError):
        pass  # no control group of version 2, or "max": no quota
    return max(1, cores)


def idle_cores() -> float:
    """Cores of the machine that nobody used in the last quarter of a second."""
    cores = os.cpu_count() or 1
    return float(cores * (1 - psutil.cpu_percent(LOOK_S) / 100))


def choose_threads(weight_bytes: int, usable: int, idle: float) -> Threads:
    """As many as there are idle cores for, one of several left to the HTTP side and the load's sender.

    Torch's threads wait for each other after every operation: with a thread more than there are free cores, each of the
    hundreds of operations of a step waits for the scheduler.

    Args:
        weight_bytes: of the model.
        usable: cores this process may use.
        idle: cores of the machine that are free.
    """
    if weight_bytes <= SMALL_BYTES:
        return Threads(1, f"a model of {weight_bytes >> 20} MiB gains nothing by more")
    free = max(1, min(usable, round(idle)))
    if free > 2:
        return Threads(min(MOST, free - 1), f"{free} of {usable} usable cores are idle, one is left to the clients")
    return Threads(free, f"{free} of {usable} usable cores are idle")
