"""The keeper keeps what it starts to the processors it is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvload.servers.lifecycle import keeper

COMMAND = "import json, os, sys; json.dump(sorted(os.sched_getaffinity(0)), open(sys.argv[1], 'w'))"


@pytest.mark.parametrize("kept", [True, False])
def test_a_server_runs_on_its_own_processors(kept: bool, tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    wanted = mine[-1:] if kept else mine
    cpus = [f"cpus={','.join(map(str, wanted))}"] if kept else []
    state, seen = tmp_path / "state", tmp_path / "seen"
    command = [sys.executable, "-I", keeper.__file__, str(state), *cpus, "--", sys.executable, "-c", COMMAND, str(seen)]
    assert subprocess.run(command, check=False).returncode == 0
    deadline = time.monotonic() + 30
    while (not state.exists() or "ended_at" not in json.loads(state.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(state.read_text())["exit_code"] == 0
    assert json.loads(seen.read_text()) == wanted


def test_without_a_command_nothing_is_kept(tmp_path: Path) -> None:
    assert (
        subprocess.run([sys.executable, "-I", keeper.__file__, str(tmp_path / "s"), "--"], check=False).returncode == 2
    )
