"""Where an experiment is gone on with: as it began, but for what is asked."""

from typing import Any

import pytest

from kvload.cli.options import BesideFlags
from kvload.cli.server_readings import Resumed, resumed
from kvload.errors import UsageError
from kvload.experiment.plan import Arm
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.host import machine
from kvload.servers.host.machine import Gpu, Listing

VLLM = LaunchRequest(engine="vllm")


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(Gpu(number, "H100", (9, 0), 81_559, 0) for number in range(3))
    monkeypatch.setattr(machine, "listing", lambda: Listing(found))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def go_on(began: tuple[str, ...], asked: str | None = None, per_arm: int = 1, **flags: Any) -> Resumed:
    place = flags.pop("began_at", "local")
    return resumed(
        VLLM, began, per_arm, (place, "head:1"), BesideFlags(**flags), asked, [Arm(name="none", method="none")]
    )


def test_nothing_asked_changes_nothing() -> None:
    assert go_on(("0", "2")) == Resumed(VLLM, ("0", "2"), 1, "local", "head:1")
    assert go_on((), began_at="ray", per_arm=2) == Resumed(VLLM, (), 2, "ray", "head:1")
    assert go_on(()) == Resumed(VLLM, (), 1, "local", "head:1")


def test_other_gpus_fewer_of_them_or_a_row() -> None:
    assert go_on(("0", "1"), "2").gpus == ("2",)
    assert go_on(("0", "1"), "all").gpus == ("0", "1", "2")
    row = go_on(("0", "1"), serial=True)
    assert (row.gpus, row.launch.gpus) == ((), ("0",))
    assert go_on(("0", "1", "2"), "0,1").gpus == ("0", "1")
    with pytest.raises(UsageError, match="takes 2 GPUs, and 1 are named"):
        go_on(("0", "1"), "2", per_arm=2)


def test_what_is_asked_alone_is_heeded() -> None:
    wider = resumed(VLLM, ("0", "1"), 1, ("local", "auto"), BesideFlags(per_arm=2), None, [])
    assert (wider.per_arm, wider.gpus) == (2, ("0", "1"))
    elsewhere = resumed(VLLM, (), 1, ("ray", "head:1"), BesideFlags(address="other:2"), None, [])
    assert (elsewhere.place, elsewhere.address) == ("ray", "other:2")
    here = resumed(VLLM, (), 1, ("ray", "head:1"), BesideFlags(), "0,1", [])
    assert (here.place, here.gpus) == ("local", ("0", "1"))


def test_gpus_that_are_no_longer_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no GPU 3") as told:
        go_on(("0", "3"))
    assert "name others: --gpus" in str(told.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    with pytest.raises(UsageError, match="GPU 0 is not among those"):
        go_on(("0", "1"))
    assert go_on(("0", "1"), "all").gpus == ("1", "2")


def test_a_server_that_runs_already_is_given_no_gpu() -> None:
    theirs = [Arm(name="theirs", url="http://127.0.0.1:1")]
    with pytest.raises(UsageError, match="'theirs' runs already"):
        resumed(VLLM, (), 1, ("local", "auto"), BesideFlags(), "0", theirs)
    assert resumed(VLLM, (), 1, ("local", "auto"), BesideFlags(), None, theirs).gpus == ()
