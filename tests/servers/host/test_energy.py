"""Energy from two readings of a counter, against an NVML that the test turns."""

from typing import Any

import pytest

from kvload.servers.host.energy import EnergyMeter


class Nvml:
    """Two GPUs of 300 W and 100 W; the second may refuse to tell."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, silent: bool = False) -> None:
        self.now = 0.0
        self.silent = silent

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  named as NVML has it
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        return number

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"GPU {handle}"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return type("Info", (), {"used": (handle + 1) << 30})

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if handle == 1 and self.silent:
            raise self.NVMLError
        return round(1000 * (5000 + (300 if handle == 0 else 100) * self.now))


def test_energy_is_the_difference_of_two_readings() -> None:
    nvml = Nvml()
    meter = EnergyMeter(nvml, lambda: nvml.now)
    nvml.now = 10.0
    meter.start()
    nvml.now = 30.0
    first, second = meter.stop()
    assert first.energy_j == pytest.approx(6000)
    assert first.power_w == pytest.approx(300)
    assert first.memory_bytes == 1 << 30
    assert second.name == "GPU 1"
    assert second.energy_j == pytest.approx(2000)


def test_a_gpu_that_does_not_tell_is_unmeasured_and_not_zero() -> None:
    nvml = Nvml(silent=True)
    meter = EnergyMeter(nvml, lambda: nvml.now)
    meter.start()
    nvml.now = 5.0
    assert [gpu.energy_j for gpu in meter.stop()] == [pytest.approx(1500), None]


def test_without_nvml_nothing_is_measured() -> None:
    meter = EnergyMeter(None)
    meter.start()
    assert meter.stop() == []


@pytest.mark.parametrize("gpu", ["1", "GPU-11"])
def test_only_a_servers_own_gpus_are_counted(gpu: str) -> None:
    nvml = Nvml()
    meter = EnergyMeter(nvml, lambda: nvml.now, gpus=(gpu,))
    meter.start()
    nvml.now = 10.0
    (only,) = meter.stop()
    assert only.name == "GPU 1"
    assert only.energy_j == pytest.approx(1000)
