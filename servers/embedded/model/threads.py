"""How many threads torch gets."""

import os
from pathlib import Path

import psutil

MOST = 8


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


def default_threads() -> int:
    """One core is left to the HTTP side and the load's sender.

    Torch's threads wait for each other after every operation: with a thread more than there are free cores, each of the
    hundreds of operations of a step waits for the scheduler.
    """
    return min(MOST, max(1, usable_cores() - 1))
