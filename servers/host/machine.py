"""What this machine has: GPUs, processor features, memory. Asked without importing torch."""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. ``capability`` is its compute capability, 9.0 as (9, 0); memory in MiB, None where not told."""

    index: int
    name: str
    capability: tuple[int, int] | None
    memory_mib: int | None
    used_mib: int | None

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


@dataclass(frozen=True)
class Listing:
    """What nvidia-smi tells of the GPUs.

    Attributes:
        gpus: those that answer.
        lost: those that do not, by number or bus address, with what it says of each.
        fault: why it tells of none at all; None where it does, or there is none.
    """

    gpus: tuple[Gpu, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists and that answer; none where it is missing or fails."""
    return listing().gpus


def listing() -> Listing:
    """The GPUs that nvidia-smi lists, and what is wrong with the others, or with the driver.

    One that has fallen off the bus shows as fields in brackets (``[GPU is lost]``, ``[Unknown Error]``), as ``ERR!`` or
    as a line of its own; older drivers then tell of the others in their short list alone. They have no ``compute_cap``.
    """
    if shutil.which("nvidia-smi") is None:
        return Listing()
    found: list[Gpu] = []
    lost: dict[str, str] = {}
    text = ""
    for fields in ("index,name,compute_cap,memory.total,memory.used", "index,name,memory.total,memory.used"):
        text = _ask(f"--query-gpu={fields}", "--format=csv,noheader,nounits")
        for row in _rows(text):
            if len(row) != fields.count(",") + 1 or not row[0].isdigit():
                continue
            if fault := next((cell for cell in row[1:] if _LOST.search(cell)), None):
                lost[row[0]] = fault.strip("[]")
                continue
            found.append(Gpu(int(row[0]), row[1], _version(row[2]) if len(row) == 5 else None, *map(_mib, row[-2:])))
        if found or lost:
            break
    lost |= {match["gpu"]: match["why"].strip() for match in _UNREACHABLE.finditer(text)}
    if not found:
        for match in _NAMED.finditer(_ask("-L")):
            found.append(Gpu(int(match["index"]), match["name"], None, None, None))
    if found or lost or "No devices were found" in text:
        return Listing(tuple(found), lost)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "it says nothing")
    return Listing(fault=first[:200])


def gpu_parts() -> dict[str, tuple[str, str]]:
    """The parts that GPUs are divided into (MIG), by their UUID: the GPU's number, and what is told of the part."""
    found: dict[str, tuple[str, str]] = {}
    index, name = "", ""
    for line in _ask("-L").splitlines():
        if match := _NAMED.match(line):
            index, name = match["index"], match["name"]
        elif (match := _PART.match(line)) and index:
            found[match["uuid"]] = (index, f"{name} MIG {match['profile']}")
    return found


def gpu_uuids() -> dict[str, str]:
    """Number of each GPU that nvidia-smi lists, by its UUID; empty where it is missing or fails."""
    rows = _rows(_ask("--query-gpu=index,uuid", "--format=csv,noheader,nounits"))
    return {row[1]: row[0] for row in rows if len(row) == 2 and row[0].isdigit() and row[1].startswith("GPU-")}


def gpu_used_mib(gpus: Sequence[str] = ()) -> int | None:
    """Memory in use on GPUs together, in MiB; None without a GPU, and where one of them does not tell.

    Args:
        gpus: those meant, by number or UUID; all where empty.
    """
    rows = _rows(_ask("--query-gpu=memory.used,index,uuid", "--format=csv,noheader,nounits"))
    used = [_mib(row[0]) for row in rows if len(row) == 3 and (not gpus or row[1] in gpus or row[2] in gpus)]
    known = [mib for mib in used if mib is not None]
    return sum(known) if used and len(known) == len(used) else None


def amd_gpus() -> dict[str, str]:
    """What AMD's GPUs are, by number, as rocm-smi or amd-smi names them; empty where neither does."""
    for program, arguments in (
        ("rocm-smi", ("--showproductname", "--json")),
        ("amd-smi", ("static", "--asic", "--json")),
    ):
        try:
            told = json.loads(_ask(*arguments, program=program) or "null")
        except (ValueError, RecursionError):
            continue
        if found := dict(_amd_cards(told)):
            return dict(sorted(found.items(), key=lambda item: int(item[0])))
    return {}


def _amd_cards(told: object) -> Iterator[tuple[str, str]]:
    """Numbers and names of ``{"card0": {"Card Series": NAME}}`` or ``[{"gpu": 0, "asic": {"market_name": NAME}}]``."""
    if isinstance(told, dict) and isinstance(told.get("gpu_data"), list):
        told = told["gpu_data"]
    if isinstance(told, list):
        for card in told:
            if isinstance(card, dict) and isinstance(card.get("gpu"), int):
                asic = card.get("asic")
                name = asic.get("market_name") if isinstance(asic, dict) else None
                yield str(card["gpu"]), str(name or "AMD GPU")
        return
    for key, card in told.items() if isinstance(told, dict) else ():
        match = re.fullmatch(r"card(\d{1,3})", str(key))
        if match and isinstance(card, dict):
            lowered = {str(name).lower(): value for name, value in card.items()}
            yield match[1], str(lowered.get("card series") or lowered.get("card model") or "AMD GPU")


_LOST = re.compile(r"GPU is lost|requires reset|Unknown Error|^ERR!", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"Unable to determine the device handle for GPU ?(?P<gpu>[0-9A-Fa-f:.]*[0-9A-Fa-f])"
    r"(?:: [0-9A-Fa-f:.]+)?: (?P<why>.{1,80})"
)
_NAMED = re.compile(r"^GPU (?P<index>\d{1,3}): (?P<name>.{1,80}?) \(UUID: GPU-", re.MULTILINE)
_PART = re.compile(r"^\s+MIG (?P<profile>\S{1,20})\s+Device\s+\d+: \(UUID: (?P<uuid>MIG-[A-Za-z0-9/-]{4,80})\)")


def _ask(*arguments: str, program: str = "nvidia-smi") -> str:
    """What a vendor's tool prints, whatever it ends with: one dead GPU makes it fail, and tell of the others."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{program} does not answer within 20 s"
    except OSError as error:
        return f"{program} does not run: {error.strerror}"
    return done.stdout if done.stdout.strip() else done.stderr


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def _version(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _mib(text: str) -> int | None:
    return int(text) if text.isdigit() else None


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
