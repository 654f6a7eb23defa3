"""What ``kvload doctor`` looks at: everything on this machine that bears on launching servers and measuring them."""

import importlib.metadata
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kvload.config import state_dir
from kvload.errors import KvloadError
from kvload.servers.engines.base import ENGINES, adapter
from kvload.servers.host import machine as machines
from kvload.servers.host.machine import Machine
from kvload.units import format_bytes

OPEN_FILES_WANTED = 4096
SO_TIMESTAMPNS = 35
"""Linux's number of the socket option; Python's socket module does not name it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, what was found, and what to do about it."""

    what: str
    found: str
    state: Literal["ok", "warning", "info"] = "ok"
    advice: str | None = None


def check(pythons: list[str]) -> list[Finding]:
    """Look at everything.

    Args:
        pythons: further interpreters or environments to look for engines in.
    """
    machine = machines.look()
    return [
        *_engines(pythons, machine),
        *_hardware(machine),
        *_packages(),
        *_clocks(),
        _open_files(),
        Finding("state folder", str(state_dir()), "info"),
    ]


def _engines(pythons: list[str], machine: Machine) -> Iterator[Finding]:
    for python in [None, *pythons]:
        for name in ENGINES:
            if adapter(name).in_kvload and python is not None:
                continue
            what = f"engine {name}" + (f" in {python}" if python else "")
            try:
                build = adapter(name).find(python, os.environ, machine)
            except KvloadError as error:
                yield Finding(what, str(error), "warning")
                continue
            if build is None:
                yield Finding(what, "not installed", "info")
            elif build.problem:
                yield Finding(what, f"{build.version or 'version unknown'}, {build.device}", "warning", build.problem)
            else:
                yield Finding(what, f"{build.version or 'version unknown'}, runs on {build.device}")


def _hardware(machine: Machine) -> Iterator[Finding]:
    for gpu in machine.gpus:
        capability = ".".join(map(str, gpu.capability)) if gpu.capability else "?"
        memory = gpu.used_mib is not None and gpu.memory_mib is not None
        used = f"{gpu.used_mib} of {gpu.memory_mib} MiB in use" if memory else "its memory is not told"
        yield Finding(f"GPU {gpu.index}", f"{gpu.name}, {gpu.generation}, compute capability {capability}, {used}")
    listing = machines.listing()
    for number, why in listing.lost.items():
        yield Finding(
            f"GPU {number}", f"does not answer: {why}", "warning", "see the kernel's log (dmesg) for Xid errors"
        )
    if listing.fault is not None:
        yield Finding("GPU", f"nvidia-smi fails: {listing.fault}", "warning", "mend the driver")
    elif not machine.gpus:
        yield Finding("GPU", "none (nvidia-smi lists none)", "info")
    wide = "AVX-512 or AMX" if machine.has_avx512 else "no AVX-512: vLLM's CPU build cannot quantise its KV cache"
    yield Finding("processor", f"{machine.cpu_name}, {machine.cores} usable cores, {wide}", "info")
    if machine.cores < 2:
        yield Finding("cores", "one", "warning", "server and client share it: latencies will include the client's work")
    yield Finding("memory", format_bytes(machine.memory_bytes), "info")


def _packages() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})", "info")
    for package in ("torch", "transformers", "locust", "numpy"):
        try:
            yield Finding(package, importlib.metadata.version(package), "info")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "missing", "warning", "install kvload again")


def _clocks() -> Iterator[Finding]:
    resolution = time.get_clock_info("monotonic").resolution
    yield Finding(
        "monotonic clock",
        f"{time.get_clock_info('monotonic').implementation}, resolution {resolution * 1e9:.0f} ns",
        "ok" if resolution <= 1e-6 else "warning",
        None if resolution <= 1e-6 else "latencies cannot be finer than this",
    )
    start = time.perf_counter()
    time.sleep(0.001)
    overshoot_s = time.perf_counter() - start - 0.001
    yield Finding(
        "timer",
        f"a sleep of 1 ms took {overshoot_s * 1e6:.0f} us longer",
        "ok" if overshoot_s < 0.002 else "warning",
        None if overshoot_s < 0.002 else "the machine is busy or its timer is coarse: requests will be sent late",
    )
    stamped = kernel_timestamps()
    yield Finding(
        "kernel receive timestamps",
        "arrive with the data" if stamped else "not available",
        "ok" if stamped else "warning",
        None if stamped else "arrival times will be taken in user space, after the client's own delays",
    )


def kernel_timestamps() -> bool:
    """Whether the kernel stamps data that arrives on a TCP socket over loopback (Linux, ``SO_TIMESTAMPNS``)."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), timeout=2)
            server, _ = listener.accept()
            with client, server:
                client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
                # The kernel turns its stamping on a moment after the first socket asks for it.
                for _ in range(20):
                    server.send(b"x")
                    _, ancillary, _, _ = client.recvmsg(1, 128)
                    if any(level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS for level, kind, _ in ancillary):
                        return True
                    time.sleep(0.01)
    except (OSError, AttributeError):
        return False
    return False


def _open_files() -> Finding:
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError):
        return Finding("open files", "limit unknown", "info")
    enough = soft >= OPEN_FILES_WANTED or soft == resource.RLIM_INFINITY
    return Finding(
        "open files",
        f"limit {soft}",
        "ok" if enough else "warning",
        None if enough else f"each stream takes one: raise it with 'ulimit -n {min(hard, 65536)}'",
    )
