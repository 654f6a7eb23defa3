"""Lists of GPUs, and the variables that hold a process to them."""

from pathlib import Path

import pytest

from kvload.errors import UsageError
from kvload.servers.host import machine
from kvload.servers.host.devices import AMD, NVIDIA, VENDORS, parse_gpus, vendor, visible
from kvload.servers.host.machine import Gpu


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(Gpu(number, "H100", (9, 0), 81_559, 0) for number in range(4))
    monkeypatch.setattr(machine, "gpus", lambda: found)
    monkeypatch.setattr(machine, "gpu_uuids", lambda: {"GPU-8f1d2c3b-0000": "1", "GPU-9a2b-1111": "2"})


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())


@pytest.mark.usefixtures("four")
def test_what_is_there_may_be_named() -> None:
    assert parse_gpus("0,3", {}) == ("0", "3")
    assert parse_gpus("all", {}) == ("0", "1", "2", "3")
    assert parse_gpus("all", {"CUDA_VISIBLE_DEVICES": "2,3"}) == ("2", "3")
    assert parse_gpus("GPU-8f1d2c3b-0000,MIG-4e5f-11", {}) == ("1", "MIG-4e5f-11")
    assert parse_gpus("1", {"CUDA_VISIBLE_DEVICES": "GPU-8f1d"}) == ("1",)
    assert parse_gpus("all", {"CUDA_VISIBLE_DEVICES": "GPU-8f1d2c3b-0000,3,-1,0"}) == ("1", "3")
    assert parse_gpus("MIG-4e5f-11", {"CUDA_VISIBLE_DEVICES": "MIG-4e5f-11,MIG-4e5f-12"}) == ("MIG-4e5f-11",)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("text", "env", "why"),
    [
        ("4", {}, "there is no GPU 4"),
        ("0,0", {}, "named twice"),
        ("0,,1", {}, "no GPU's number"),
        ("0;rm", {}, "no GPU's number"),
        ("0,1", {"CUDA_VISIBLE_DEVICES": "2,3"}, "may use"),
        ("1,GPU-8f1d2c3b-0000", {}, "which is GPU 1, is named twice"),
        ("GPU-ffff-0000", {}, "there is no GPU GPU-ffff-0000"),
        ("0", {"CUDA_VISIBLE_DEVICES": "GPU-8f1d"}, "may use"),
        ("0", {"CUDA_VISIBLE_DEVICES": "MIG-4e5f-11"}, "may use"),
        ("0", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES leaves this process no GPU"),
        ("all", {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES leaves this process no GPU"),
    ],
)
def test_what_is_not_there_or_not_ours_is_refused(text: str, env: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_gpus(text, env)


@pytest.mark.usefixtures("no_gpu")
def test_where_no_gpu_is_seen_numbers_are_taken_as_given_and_all_is_refused() -> None:
    assert parse_gpus("0,1", {}) == ("0", "1")
    with pytest.raises(UsageError, match="no GPU was found"):
        parse_gpus("all", {})


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("of", VENDORS, ids=lambda one: one.name)
def test_each_vendors_own_variable_is_set(of: object, tmp_path: Path) -> None:
    made = next(one for one in VENDORS if one is of)
    device = tmp_path / made.device.lstrip("/")
    device.parent.mkdir(parents=True)
    device.touch()
    assert vendor(tmp_path) is made
    assert visible(("1", "2"), made)[made.variable] == "1,2"


@pytest.mark.usefixtures("no_gpu")
def test_amds_numbers_count_within_what_rocr_leaves_and_vllms_other_variable_agrees() -> None:
    assert parse_gpus("all", {"ROCR_VISIBLE_DEVICES": "2,3"}, of=AMD) == ("0", "1")
    with pytest.raises(UsageError, match="GPU 2 is not among"):
        parse_gpus("2", {"ROCR_VISIBLE_DEVICES": "2,3"}, of=AMD)
    assert parse_gpus("1", {"HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "2,3"}, of=AMD) == ("1",)
    assert visible(("1",), AMD) == {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}


def test_numbers_mean_what_nvidia_smi_shows() -> None:
    assert visible(("1",), NVIDIA) == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible((), NVIDIA) == {}
