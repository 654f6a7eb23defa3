"""What the GPUs of this machine took during a run: energy from NVML's counters, power, memory.

NVML counts the energy of a whole GPU since the driver was loaded (``nvmlDeviceGetTotalEnergyConsumption``, millijoules,
from Volta on), so that two readings give a run's energy without sampling. Idle draw and other programs' work are in it.
"""

import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

from kvload.records import GpuUse

T = TypeVar("T")


def load_nvml() -> Any | None:
    """NVML's Python binding, initialised; None where it or a driver is missing (``pip install 'kvload[nvml]'``)."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


class EnergyMeter:
    """Two readings of every GPU's counter.

    Args:
        nvml: the binding; None measures nothing.
        clock: seconds, monotonic.
        gpus: those meant, by number or UUID; all where empty.
    """

    def __init__(
        self,
        nvml: ModuleType | Any | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        gpus: Sequence[str] = (),
    ) -> None:
        self._nvml = nvml
        self._gpus = frozenset(gpus)
        self._clock = clock
        self._began = 0.0
        self._before: list[float | None] = []

    def start(self) -> None:
        """The first reading."""
        self._began = self._clock()
        self._before = [self._joules(handle) for handle in self._handles()]

    def stop(self) -> list[GpuUse]:
        """The second reading: what each GPU took since :meth:`start`; empty where nothing can be read."""
        span_s = self._clock() - self._began
        found = []
        for number, handle in enumerate(self._handles()):
            before = self._before[number] if number < len(self._before) else None
            after = self._joules(handle)
            energy = None if before is None or after is None or after < before else after - before
            found.append(
                GpuUse(
                    name=self._read("nvmlDeviceGetName", handle, str),
                    energy_j=energy,
                    power_w=None if energy is None or span_s <= 0 else energy / span_s,
                    memory_bytes=self._read("nvmlDeviceGetMemoryInfo", handle, lambda info: int(info.used)),
                )
            )
        return found

    def _handles(self) -> list[Any]:
        if self._nvml is None:
            return []
        try:
            count = self._nvml.nvmlDeviceGetCount()
            handles = {number: self._nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)}
        except self._nvml.NVMLError:
            return []
        return [handle for number, handle in handles.items() if not self._gpus or self._is_meant(number, handle)]

    def _is_meant(self, number: int, handle: Any) -> bool:
        return str(number) in self._gpus or self._read("nvmlDeviceGetUUID", handle, str) in self._gpus

    def _joules(self, handle: Any) -> float | None:
        return self._read("nvmlDeviceGetTotalEnergyConsumption", handle, lambda value: float(value) / 1000)

    def _read(self, call: str, handle: Any, make: Callable[[Any], T]) -> T | None:
        """One value of one GPU; None where it does not tell."""
        if self._nvml is None:
            return None
        try:
            return make(getattr(self._nvml, call)(handle))
        except self._nvml.NVMLError:
            return None
