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


ROCR = "ROCR_VISIBLE_DEVICES"
NVIDIA = Vendor("NVIDIA", "/dev/nvidiactl", "CUDA_VISIBLE_DEVICES", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
AMD = Vendor("AMD", "/dev/kfd", "HIP_VISIBLE_DEVICES", same=("CUDA_VISIBLE_DEVICES",), around=ROCR)

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
        their numbers; of a GPU whose number is not known, or a part of one (MIG), the UUID. ``all`` leaves out GPUs
        that do not answer, and takes the parts of those that are divided.

    Raises:
        UsageError: it is no such list, or names a GPU that is not there, does not answer, is divided, or that this
            process was not given; or the driver does not work.
    """
    made = of or vendor()
    known = _look(made, env, where)
    if text.strip() == "all":
        if not (found := known.all()):
            raise UsageError("no GPU was found", where=f"{where} all", hint=known.hint() or "name them: --gpus 0,1")
        return found
    gpus: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not _DEVICE.fullmatch(part):
            raise UsageError(f"'{part}' is no GPU's number", where=where, hint="for example --gpus 0,1, or all")
        gpu = _number(part)
        if gpu in gpus:
            named = f"{part}, which is GPU {gpu}," if part != gpu else f"GPU {gpu}"
            raise UsageError(f"{named} is named twice", where=where)
        known.check(gpu, where)
        gpus.append(gpu)
    return tuple(gpus)


def usable(env: Mapping[str, str], of: Vendor | None = None) -> tuple[str, ...]:
    """The GPUs that this process may use and that answer: what ``all`` means; none where none is found.

    Raises:
        UsageError: the driver does not work, or a variable leaves this process none.
    """
    return _look(of or vendor(), env, "GPUs").all()


def kinds(gpus: Sequence[str], env: Mapping[str, str], of: Vendor | None = None) -> dict[str, str]:
    """What GPUs are (``NVIDIA H100 80GB HBM3``, with the profile of a part), as far as the vendor's tool tells.

    Args:
        gpus: as :func:`parse_gpus` gives them.
        env: this process's environment.
    """
    made = of or vendor()
    if made is AMD:
        within = _listed(env[ROCR]) if ROCR in env else None
        told = machines.amd_gpus()
        named = {gpu: within[int(gpu)] for gpu in gpus if gpu.isdigit() and int(gpu) < len(within)} if within else {}
        return {gpu: told[number] for gpu in gpus if (number := named.get(gpu, gpu)) in told}
    told = {str(gpu.index): gpu.name for gpu in machines.gpus()}
    if any(gpu.startswith("MIG-") for gpu in gpus):
        told |= {uuid: kind for uuid, (_, kind) in machines.gpu_parts().items()}
    return {gpu: told[gpu] for gpu in gpus if gpu in told}


def lost() -> dict[str, str]:
    """GPUs of this machine that do not answer, by number or bus address, and what the vendor's tool says of each."""
    return dict(machines.listing().lost)


@dataclass(frozen=True)
class _Known:
    """What is known of a machine's GPUs, and of those that this process may use.

    Attributes:
        there: their numbers; empty where nothing lists them, and then any is taken as given.
        lost: those that do not answer, and why.
        parts: the GPU of each part (MIG).
        allowed: those this process may use; None for all.
        variable: what says so.
    """

    there: tuple[str, ...]
    lost: Mapping[str, str]
    parts: Mapping[str, str]
    allowed: tuple[str, ...] | None
    variable: str

    def all(self) -> tuple[str, ...]:
        found = []
        for gpu in self.there if self.allowed is None else self.allowed:
            if gpu not in self.lost:
                found += self._parts_of(gpu) or [gpu]
        return tuple(found)

    def check(self, gpu: str, where: str) -> None:
        """Refuse a GPU that cannot be used."""
        parent = self.parts.get(gpu, gpu)
        if parent in self.lost:
            raise UsageError(f"GPU {gpu} does not answer: {self.lost[parent]}", where=where, hint="name the others")
        if divided := self._parts_of(gpu):
            hint = f"name its parts: --gpus {','.join(divided)}"
            raise UsageError(f"GPU {gpu} is divided (MIG): a server would get one part of it", where=where, hint=hint)
        listed = tuple(self.parts) if gpu.startswith("MIG-") else self.there
        if listed and gpu not in listed:
            raise UsageError(f"there is no GPU {gpu}", where=where, hint=self.hint())
        if self.allowed is not None and gpu not in self.allowed and parent not in self.allowed:
            raise UsageError(
                f"GPU {gpu} is not among those this process may use",
                where=where,
                hint=f"{self.variable} leaves it: {', '.join(self.allowed)}",
            )

    def hint(self) -> str | None:
        """Which GPUs there are."""
        said = [f"this machine has: {', '.join([*self.there, *self.parts])}"] if self.there else []
        said += [f"GPU {gpu} does not answer ({why})" for gpu, why in self.lost.items()]
        return "; ".join(said) or None

    def _parts_of(self, gpu: str) -> list[str]:
        return [part for part, parent in self.parts.items() if parent == gpu]


def _look(of: Vendor, env: Mapping[str, str], where: str) -> _Known:
    listing = machines.listing()
    there, parts = tuple(str(gpu.index) for gpu in listing.gpus), {}
    if of is NVIDIA:
        if listing.fault is not None:
            raise UsageError(
                f"nvidia-smi fails: {listing.fault}",
                where=where,
                hint="mend the driver; where no GPU is named, the engine looks for one itself",
            )
        parts = {uuid: parent for uuid, (parent, _) in machines.gpu_parts().items()}
    elif of is AMD:
        there = tuple(machines.amd_gpus()) if ROCR not in env else ()
    allowed, variable = _allowed(of, env)
    if allowed is not None and not allowed:
        raise UsageError(f"{variable} leaves this process no GPU", where=where, hint=f"unset {variable}")
    return _Known(there, listing.lost, parts, None if allowed is None else tuple(allowed), variable)


def _allowed(of: Vendor, env: Mapping[str, str]) -> tuple[list[str] | None, str]:
    """What a scheduler, or the user, has left this process, and the variable that says so; None where all of them."""
    if of.around is not None and of.around in env:
        # numbers count within what that one leaves
        within = [str(number) for number in range(len(_listed(env[of.around])))]
        if of.variable not in env:
            return within, of.around
        return [gpu for gpu in _listed(env[of.variable]) if gpu in within], of.variable
    variable = next((one for one in (of.variable, *of.same) if one in env), None)
    if variable is None:
        return None, of.variable
    return [_number(part) for part in _listed(env[variable])], variable


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
