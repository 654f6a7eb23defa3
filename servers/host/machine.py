"""What this machine has: GPUs, processor features, memory. Asked without importing torch."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. ``capability`` is its compute capability, 9.0 as (9, 0); memory in MiB."""

    index: int
    name: str
    capability: tuple[int, int] | None
    memory_mib: int
    used_mib: int

    @property
    def generation(self) -> str:
        """The architecture's name, where it is known."""
        major, minor = self.capability or (0, 0)
        return {7: "Turing" if minor >= 5 else "Volta", 8: "Ada" if minor == 9 else "Ampere", 9: "Hopper"}.get(
            major, "Blackwell" if major >= 10 else "unknown"
        )


@dataclass(frozen=True)
class Machine:
    """GPUs and the processor. ``cpu_flags`` are the kernel's names of its features (Linux; empty elsewhere)."""

    gpus: tuple[Gpu, ...]
    cpu_name: str
    cores: int
    cpu_flags: frozenset[str]
    memory_bytes: int

    @property
    def has_bfloat16(self) -> bool:
        """Whether the processor multiplies matrices of bfloat16."""
        return has_bfloat16(self.cpu_flags)

    @property
    def has_avx512(self) -> bool:
        """Whether the processor has AVX-512 or AMX; taken as given where its features cannot be read."""
        if platform.machine().lower() not in {"x86_64", "amd64"} or not self.cpu_flags:
            return True
        return bool(self.cpu_flags & {"avx512f", "amx_tile"})


BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def has_bfloat16(cpu_flags: frozenset[str] | None = None) -> bool:
    """Whether a processor has instructions for products of bfloat16; without them they are slower than float32's.

    Args:
        cpu_flags: the kernel's names of its features; this machine's where None.
    """
    return bool(BFLOAT16_FLAGS & (_processor()[1] if cpu_flags is None else cpu_flags))


def look() -> Machine:
    """Describe the machine this process runs on."""
    name, flags = _processor()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return Machine(gpus(), name, cores, flags, psutil.virtual_memory().total)


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists; none where it is missing or fails."""
    found = []
    for row in _nvidia_smi("index,name,compute_cap,memory.total,memory.used"):
        if len(row) != 5 or not row[0].isdigit():
            continue
        major, _, minor = row[2].partition(".")
        capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        found.append(Gpu(int(row[0]), row[1], capability, _mib(row[3]), _mib(row[4])))
    return tuple(found)


def gpu_uuids() -> dict[str, str]:
    """Number of each GPU that nvidia-smi lists, by its UUID; empty where it is missing or fails."""
    return {row[1]: row[0] for row in _nvidia_smi("index,uuid") if len(row) == 2 and row[0].isdigit()}


def gpu_used_mib(gpus: Sequence[str] = ()) -> int | None:
    """Memory in use on GPUs together, in MiB; None without a GPU.

    Args:
        gpus: those meant, by number or UUID; all where empty.
    """
    rows = _nvidia_smi("memory.used,index,uuid")
    used = [_mib(row[0]) for row in rows if len(row) == 3 and (not gpus or row[1] in gpus or row[2] in gpus)]
    return sum(used) if used else None


def _nvidia_smi(fields: str) -> list[list[str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _mib(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _processor() -> tuple[str, frozenset[str]]:
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, flags
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in {"flags", "Features"}:
            flags = frozenset(value.split())
    return name, flags
