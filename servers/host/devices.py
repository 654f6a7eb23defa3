"""Which GPUs a process sees: the list a user gives, and the variable that each vendor's runtime reads.

NVIDIA's numbers are those of ``nvidia-smi`` once ``CUDA_DEVICE_ORDER`` asks for the order of the bus (CUDA Programming
Guide, "CUDA Environment Variables"); AMD's runtime reads ``HIP_VISIBLE_DEVICES`` (ROCm documentation, "GPU isolation
techniques"), Intel's ``ZE_AFFINITY_MASK`` (Level Zero specification), Huawei's ``ASCEND_RT_VISIBLE_DEVICES``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvload.errors import UsageError
from kvload.servers.host import machine as machines

_DEVICE = re.compile(r"\d{1,4}|(?:GPU|MIG)-[A-Za-z0-9/-]{4,80}")


@dataclass(frozen=True)
class Vendor:
    """How one vendor's runtime is told which GPUs it may use.

    Attributes:
        device: a file that is there where its driver is.
        variable: holds the list.
        fixed: variables without which the list would not mean what its tools show.
    """

    name: str
    device: str
    variable: str
    fixed: Mapping[str, str]


NVIDIA = Vendor("NVIDIA", "/dev/nvidiactl", "CUDA_VISIBLE_DEVICES", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})

VENDORS = (
    NVIDIA,
    Vendor("AMD", "/dev/kfd", "HIP_VISIBLE_DEVICES", {}),
    Vendor("Ascend", "/dev/davinci_manager", "ASCEND_RT_VISIBLE_DEVICES", {}),
    Vendor("Intel", "/dev/dri/by-path", "ZE_AFFINITY_MASK", {}),
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


def visible(gpus: Sequence[str], of: Vendor | None = None) -> dict[str, str]:
    """The variables that leave a process these GPUs alone; none where no list is given.

    Args:
        gpus: numbers as the vendor's tools show them, or NVIDIA's UUIDs.
        of: whose they are; as :func:`vendor` finds where None.
    """
    if not gpus:
        return {}
    made = of or vendor()
    return {made.variable: ",".join(gpus), **made.fixed}


def parse_gpus(text: str, env: Mapping[str, str], *, where: str = "--gpus") -> tuple[str, ...]:
    """A list of GPUs as users write it: ``0,1,3``, UUIDs, or ``all``.

    Args:
        env: this process's environment; where a scheduler has left it some GPUs only, others are refused.

    Raises:
        UsageError: it is no such list, or names a GPU that is not there, or that this process was not given.
    """
    there = [str(gpu.index) for gpu in machines.gpus()]
    allowed = [part.strip() for part in env.get(vendor().variable, "").split(",") if part.strip()]
    if text.strip() == "all":
        found = tuple(allowed or there)
        if not found:
            raise UsageError("no GPU was found", where=f"{where} all", hint="name them: --gpus 0,1")
        return found
    gpus = tuple(part.strip() for part in text.split(","))
    for gpu in gpus:
        if not _DEVICE.fullmatch(gpu):
            raise UsageError(f"'{gpu}' is no GPU's number", where=where, hint="for example --gpus 0,1, or all")
        if gpus.count(gpu) > 1:
            raise UsageError(f"GPU {gpu} is named twice", where=where)
        if gpu.isdigit() and there and gpu not in there:
            raise UsageError(f"there is no GPU {gpu}", where=where, hint=f"this machine has: {', '.join(there)}")
        if gpu.isdigit() and allowed and all(one.isdigit() for one in allowed) and gpu not in allowed:
            raise UsageError(
                f"GPU {gpu} is not among those this process may use",
                where=where,
                hint=f"{vendor().variable} leaves it: {', '.join(allowed)}",
            )
    return gpus
