"""Which GPUs a process sees: the list a user gives, and the variable that each vendor's runtime reads.

NVIDIA's numbers are those of ``nvidia-smi`` once ``CUDA_DEVICE_ORDER`` asks for the order of the bus (CUDA Programming
Guide, "CUDA Environment Variables"); AMD's runtime reads ``HIP_VISIBLE_DEVICES``, whose numbers count within
``ROCR_VISIBLE_DEVICES`` where that is set (ROCm documentation, "GPU isolation techniques"), Intel's
``ZE_AFFINITY_MASK`` (Level Zero specification), Huawei's ``ASCEND_RT_VISIBLE_DEVICES``.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvload.errors import UsageError
from kvload.servers.host import machine as machines

_DEVICE = re.compile(r"\d{1,4}|(?:GPU|MIG)-[A-Za-z0-9/-]{4,80}")
_STARTS = re.compile(r"\d|(?:GPU|MIG)-")


@dataclass(frozen=True)
class Vendor:
    """How one vendor's runtime is told which GPUs it may use.

    Attributes:
        device: a file that is there where its driver is.
        variable: holds the list.
        fixed: variables without which the list would not mean what its tools show.
        same: others that hold the same list, and that engines hold against it.
        around: one whose list numbers in ``variable`` count within, where it is set.
    """

    name: str
    device: str
    variable: str
    fixed: Mapping[str, str] = field(default_factory=dict)
    same: tuple[str, ...] = ()
    around: str | None = None


NVIDIA = Vendor("NVIDIA", "/dev/nvidiactl", "CUDA_VISIBLE_DEVICES", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
AMD = Vendor("AMD", "/dev/kfd", "HIP_VISIBLE_DEVICES", same=("CUDA_VISIBLE_DEVICES",), around="ROCR_VISIBLE_DEVICES")

VENDORS = (
    NVIDIA,
    AMD,
    Vendor("Ascend", "/dev/davinci_manager", "ASCEND_RT_VISIBLE_DEVICES"),
    Vendor("Intel", "/dev/dri/by-path", "ZE_AFFINITY_MASK"),
)
"""In the order they are looked for; a display driver's ``/dev/dri`` says least, so it comes last."""


def vendor(root: Path = Path("/")) -> Vendor:
    """Whose GPUs this machine has; NVIDIA's where none is found.

    Args:
        root: where the device files are looked for.
    """
    if machines.gpus():
        return NVIDIA
    return next((one for one in VENDORS if (root / one.device.lstrip("/")).exists()), NVIDIA)


def are_there(root: Path = Path("/")) -> bool:
    """Whether this machine has GPUs, of whatever vendor."""
    return bool(machines.gpus()) or any((root / one.device.lstrip("/")).exists() for one in VENDORS)


def visible(gpus: Sequence[str], of: Vendor | None = None) -> dict[str, str]:
    """The variables that leave a process these GPUs alone; none where no list is given.

    Args:
        gpus: numbers as the vendor's tools show them, or NVIDIA's UUIDs.
        of: whose they are; as :func:`vendor` finds where None.
    """
    if not gpus:
        return {}
    made = of or vendor()
    return {**dict.fromkeys((made.variable, *made.same), ",".join(gpus)), **made.fixed}


def parse_gpus(
    text: str, env: Mapping[str, str], *, where: str = "--gpus", of: Vendor | None = None
) -> tuple[str, ...]:
    """A list of GPUs as users write it: ``0,1,3``, UUIDs, or ``all``.

    Args:
        env: this process's environment; where a scheduler has left it some GPUs only, others are refused.
        of: whose they are; as :func:`vendor` finds where None.

    Returns:
        their numbers; of a GPU whose number is not known, or a part of one (MIG), the UUID.

    Raises:
        UsageError: it is no such list, or names a GPU that is not there, or that this process was not given.
    """
    made = of or vendor()
    there = [str(gpu.index) for gpu in machines.gpus()]
    allowed, variable = _allowed(made, env)
    if allowed is not None and not allowed:
        raise UsageError(f"{variable} leaves this process no GPU", where=f"{where} {text}", hint=f"unset {variable}")
    if text.strip() == "all":
        found = tuple(allowed or there)
        if not found:
            raise UsageError("no GPU was found", where=f"{where} all", hint="name them: --gpus 0,1")
        return found
    gpus: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not _DEVICE.fullmatch(part):
            raise UsageError(f"'{part}' is no GPU's number", where=where, hint="for example --gpus 0,1, or all")
        gpu = _number(part)
        if gpu in gpus:
            named = f"{part}, which is GPU {gpu}," if part != gpu else f"GPU {gpu}"
            raise UsageError(f"{named} is named twice", where=where)
        if there and gpu not in there and not gpu.startswith("MIG-"):
            raise UsageError(f"there is no GPU {gpu}", where=where, hint=f"this machine has: {', '.join(there)}")
        if allowed is not None and gpu not in allowed:
            raise UsageError(
                f"GPU {gpu} is not among those this process may use",
                where=where,
                hint=f"{variable} leaves it: {', '.join(allowed)}",
            )
        gpus.append(gpu)
    return tuple(gpus)


def _allowed(of: Vendor, env: Mapping[str, str]) -> tuple[list[str] | None, str]:
    """What a scheduler, or the user, has left this process, and the variable that says so; None where all of them."""
    if of.around is not None and of.around in env and of.variable not in env:
        # numbers count within what that one leaves
        return [str(number) for number in range(len(_listed(env[of.around])))], of.around
    if of.variable not in env:
        return None, of.variable
    return [_number(part) for part in _listed(env[of.variable])], of.variable


def _listed(text: str) -> list[str]:
    """What such a variable lists: the runtimes stop at the first that is no GPU (``-1``, ``NoDevFiles``)."""
    parts = [part.strip() for part in text.split(",")]
    return list(itertools.takewhile(_STARTS.match, parts))


def _number(gpu: str) -> str:
    """A GPU's number, of its UUID or of enough of that to tell it from others; as it is where that is not known."""
    if not gpu.startswith("GPU-"):
        return gpu
    found = [number for uuid, number in machines.gpu_uuids().items() if uuid.lower().startswith(gpu.lower())]
    return found[0] if len(found) == 1 else gpu
