"""Lists of GPUs, and the variables that hold a process to them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kvload.errors import UsageError
from kvload.servers.host import machine
from kvload.servers.host.devices import AMD, NVIDIA, VENDORS, kinds, parse_gpus, usable, vendor, visible
from kvload.servers.host.machine import Gpu, Listing


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(Gpu(number, "H100", (9, 0), 81_559, 0) for number in range(4))
    monkeypatch.setattr(machine, "listing", lambda: Listing(found))
    monkeypatch.setattr(machine, "gpu_uuids", lambda: {"GPU-8f1d2c3b-0000": "1", "GPU-9a2b-1111": "2"})


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "listing", Listing)


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


Tool = Callable[..., None]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tool:
    """Puts a program on the path that prints what another machine's printed, by the first of its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, status: int = 0, **printed: str) -> None:
        cases = "".join(
            f"  {'*' if first == 'other' else first}*) cat {folder / name}.{first};;\n" for first in printed
        )
        for first, text in printed.items():
            (folder / f"{name}.{first}").write_text(text, encoding="utf-8")
        script = folder / name
        body = f'#!/bin/sh\nPATH=/usr/bin:/bin\ncase "${{1#--}}" in\n{cases}esac\nexit {status}\n'
        script.write_text(body, encoding="utf-8")
        script.chmod(0o755)

    return make


GONE = "Unable to determine the device handle for GPU"
ROWS = [f"{number}, NVIDIA A100-SXM4-80GB, 8.0, 81920, 4\n" for number in range(4)]
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 2g.10gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-0aba1f5c-0a1e-4f4f-8f4a-bd6a7f3a1f9e)
"""


def test_a_driver_that_does_not_work_is_not_a_machine_without_gpus(tool: Tool) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest\n"
    tool("nvidia-smi", 9, other=said)
    for named in ("0,1", "all"):
        with pytest.raises(UsageError, match="nvidia-smi fails: NVIDIA-SMI has failed because"):
            parse_gpus(named, {})
    tool("nvidia-smi", 6, other="No devices were found\n")
    assert parse_gpus("0,1", {}) == ("0", "1")


@pytest.mark.parametrize(
    "printed",
    [
        "".join([*ROWS[:2], "2, [GPU is lost], [GPU is lost], [N/A], [N/A]\n", ROWS[3]]),
        "".join([*ROWS[:2], "2, NVIDIA A100-SXM4-80GB, 8.0, ERR!, ERR!\n", ROWS[3]]),
        "".join([f"{GONE}2: 0000:81:00.0: Unknown Error\n", *ROWS[:2], ROWS[3]]),
    ],
    ids=["brackets", "err", "line"],
)
def test_one_dead_gpu_is_told_and_the_others_are_used(tool: Tool, printed: str) -> None:
    tool("nvidia-smi", 15, query=printed)
    assert parse_gpus("all", {}) == ("0", "1", "3")
    assert parse_gpus("all", {"CUDA_VISIBLE_DEVICES": "2,3"}) == ("3",)
    with pytest.raises(UsageError, match=r"GPU 2 does not answer"):
        parse_gpus("1,2", {})


def test_where_the_dead_gpu_keeps_the_table_back_the_short_list_tells(tool: Tool) -> None:
    short = "".join(f"GPU {number}: NVIDIA A30 (UUID: GPU-{number}b9c7a0e-0000)\n" for number in (0, 1))
    lost = f"{GONE} 0000:B1:00.0: GPU is lost.  Reboot the system to recover this GPU\n"
    tool("nvidia-smi", 15, query=lost, **{"-L": lost + short})
    assert parse_gpus("all", {}) == ("0", "1")
    with pytest.raises(UsageError, match="there is no GPU 2") as told:
        parse_gpus("2", {})
    assert "GPU 0000:B1:00.0 does not answer (GPU is lost" in str(told.value)


def test_what_an_old_driver_or_a_shared_memory_does_not_tell_is_not_known(tool: Tool) -> None:
    tool("nvidia-smi", 0, query="0, NVIDIA GB10, 12.1, [N/A], [N/A]\n")
    (gpu,) = machine.gpus()
    assert (gpu.capability, gpu.memory_mib, gpu.used_mib) == ((12, 1), None, None)
    tool("nvidia-smi", 0, query="[N/A], 0, GPU-1234\n")
    assert machine.gpu_used_mib() is None


def test_a_divided_gpu_is_named_by_its_parts(tool: Tool) -> None:
    rows = "".join(f"{number}, NVIDIA A100-SXM4-40GB, 8.0, 40960, 4\n" for number in (0, 1))
    tool("nvidia-smi", 0, query=rows, **{"-L": DIVIDED})
    first, second = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"
    assert parse_gpus("all", {}) == (first, second, "1")
    assert parse_gpus(f"{second},1", {}) == (second, "1")
    assert parse_gpus("all", {"CUDA_VISIBLE_DEVICES": second}) == (second,)
    assert parse_gpus(first, {"CUDA_VISIBLE_DEVICES": "0"}) == (first,)
    with pytest.raises(UsageError, match="GPU 0 is divided") as told:
        parse_gpus("0,1", {})
    assert f"--gpus {first},{second}" in str(told.value)
    with pytest.raises(UsageError, match="there is no GPU MIG-ffff"):
        parse_gpus("MIG-ffff-1111", {})
    assert kinds((first, second, "1"), {}) == {
        first: "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        second: "NVIDIA A100-SXM4-40GB MIG 2g.10gb",
        "1": "NVIDIA A100-SXM4-40GB",
    }


@pytest.mark.usefixtures("four")
def test_what_a_scheduler_left_is_what_may_be_used() -> None:
    assert usable({}) == ("0", "1", "2", "3")
    assert usable({"CUDA_VISIBLE_DEVICES": "3,1"}) == ("3", "1")
    assert usable({"CUDA_VISIBLE_DEVICES": "GPU-9a2b"}) == ("2",)
    with pytest.raises(UsageError, match="leaves this process no GPU"):
        usable({"CUDA_VISIBLE_DEVICES": "NoDevFiles"})


ROCM_SMI = """{"card0": {"Card Series": "AMD Instinct MI300X VF", "Card Model": "0x74b5", "GFX Version": "gfx942"},
 "card1": {"Card Series": "AMD Instinct MI300X VF", "Card Model": "0x74b5"}, "card10": {"Card model": "0x0b0c"},
 "system": {"Driver version": "6.8.5"}}"""
AMD_SMI = """[{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002"}},
 {"gpu": 1, "asic": {"market_name": "AMD Instinct MI210"}}]"""


def test_amds_gpus_are_listed_by_either_tool(tool: Tool) -> None:
    tool("amd-smi", 0, static=AMD_SMI)
    assert parse_gpus("all", {}, of=AMD) == ("0", "1")
    assert kinds(("0", "1"), {}, AMD) == {"0": "AMD Instinct MI300X", "1": "AMD Instinct MI210"}
    # numbers count within what ROCR leaves
    assert kinds(("0",), {"ROCR_VISIBLE_DEVICES": "1"}, AMD) == {"0": "AMD Instinct MI210"}
    tool("rocm-smi", 0, showproductname=ROCM_SMI)
    assert machine.amd_gpus() == {"0": "AMD Instinct MI300X VF", "1": "AMD Instinct MI300X VF", "10": "0x0b0c"}
    with pytest.raises(UsageError, match="there is no GPU 2"):
        parse_gpus("2", {}, of=AMD)
    tool("rocm-smi", 1, other="ERROR:root:Driver not initialized (amdgpu not found in modules)\n")
    assert parse_gpus("all", {}, of=AMD) == ("0", "1")


@pytest.mark.usefixtures("no_gpu")
def test_what_slurm_sets_for_amd_is_read_whichever_variable_it_is() -> None:
    assert parse_gpus("all", {"CUDA_VISIBLE_DEVICES": "2,3"}, of=AMD) == ("2", "3")
    both = {"CUDA_VISIBLE_DEVICES": "2,3", "ROCR_VISIBLE_DEVICES": "2,3"}
    assert parse_gpus("all", both, of=AMD) == ("0", "1")
    with pytest.raises(UsageError, match="HIP_VISIBLE_DEVICES leaves this process no GPU"):
        parse_gpus("all", {"HIP_VISIBLE_DEVICES": "2,3", "ROCR_VISIBLE_DEVICES": "2,3"}, of=AMD)
