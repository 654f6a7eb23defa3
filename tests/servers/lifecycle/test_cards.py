"""GPUs that an experiment holds against others, and what else is said to be on them."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kvload.errors import UsageError
from kvload.servers.host import machine
from kvload.servers.host.machine import Gpu, Listing
from kvload.servers.lifecycle import cards, registry
from kvload.servers.lifecycle.process import start_mark
from tests.servers.lifecycle.test_registry import entry_of


def test_a_gpu_is_held_once_and_let_go_of_with_its_process(state_folder: Path) -> None:
    code = (
        "import sys\nfrom kvload.servers.lifecycle import cards\n"
        "with cards.held(('0', 'MIG-1/2'), 'runs/first (process 7)'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert cards.holder("0") == "runs/first (process 7)"
        assert cards.holder("1") is None
        for wanted in (("1", "0"), ("MIG-1/2",)):
            with pytest.raises(UsageError, match=r"is being measured on: runs/first \(process 7\)"):
                cards.held(wanted, "second").__enter__()
        with cards.held(("1", "2"), "second"):  # what was taken before a refusal was given back
            assert cards.holder("1") == "second"
        other.kill()
    assert cards.holder("0") is None
    with cards.held(("0",), "second"):
        pass
    with cards.held((), "nothing"):
        pass


def test_what_else_is_on_a_gpu_is_said(state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = tuple(Gpu(number, "H100", (9, 0), 81_559, used) for number, used in enumerate((40_000, 4, 30_000)))
    monkeypatch.setattr(machine, "listing", lambda: Listing(gpus))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        entry = entry_of("mine", process.pid, start_mark(process.pid) or "")
        entry = msgspec.structs.replace(entry, info=msgspec.structs.replace(entry.info, gpus=["2"]))
        registry.claim(entry)
        ours, foreign = cards.occupied(("0", "1", "2"))
        assert foreign == "40,000 MiB of GPU 0 are in use by other programs, which may be measured too"
        assert ours.startswith("the server 'mine' is on GPU 2 as well")
        assert cards.occupied(("1",)) == []
        process.kill()
    assert cards.occupied(("1", "2"))[0].startswith("30,000 MiB of GPU 2")
    registry.remove(entry)
