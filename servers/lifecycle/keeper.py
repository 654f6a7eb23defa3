"""Runs one server detached from everything, and writes down how it ended.

``python -I keeper.py STATE_FILE [CPUS] -- COMMAND ...`` returns at once. A copy of itself stays behind as leader of
a new session, starts COMMAND in it, waits for its end, records exit code or signal in STATE_FILE, and ends what the
command left behind. Without it nobody could tell later why a detached server died: only a parent learns of a SIGKILL.

CPUS is a list of processors (``0,2,3``) that the command and all it starts are kept to.

This file runs by its path under any Python, isolated from the environment made for the server, and uses the standard
library alone. STATE_FILE is JSON: ``keeper_pid`` and ``pid`` at the start, ``error`` if the command could not be
started, ``exit_code`` or ``signal`` and ``ended_at`` (Unix seconds) at the end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

SWEEP_S = 3.0
"""How long processes that a dead server left behind may take to follow it."""


def main(argv: list[str]) -> int:
    """Detach, and keep the command that follows ``--``."""
    before, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    if not 1 <= len(before) <= 2 or not command:
        return 2
    state_file, *cpus = before
    if cpus:
        os.sched_setaffinity(0, {int(number) for number in cpus[0].split(",")})
    if os.fork() > 0:
        return 0
    os.setsid()
    Keeper(Path(state_file)).keep(command)
    return 0


class Keeper:
    """The process that stays with a server for as long as it runs."""

    def __init__(self, state_file: Path) -> None:
        self._state_file = state_file
        self._state: dict[str, int | float | str] = {"keeper_pid": os.getpid()}
        self._server: subprocess.Popen[bytes] | None = None

    def keep(self, command: list[str]) -> None:
        """Start the command, wait for it, record its end, and end what it left."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        try:
            self._server = subprocess.Popen(command)
        except OSError as error:
            self._record(error=f"{error.strerror}: {error.filename}", ended_at=time.time())
            return
        self._record(pid=self._server.pid)
        code = self._server.wait()
        self._record(ended_at=time.time(), **({"signal": -code} if code < 0 else {"exit_code": code}))
        self._sweep()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self._server is not None:
            self._server.send_signal(number)

    def _record(self, **values: int | float | str) -> None:
        self._state.update(values)
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._state), encoding="utf-8")
        temporary.replace(self._state_file)

    def _sweep(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        deadline = time.monotonic() + SWEEP_S
        os.killpg(0, signal.SIGTERM)
        while self._others() and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._others():
            os.killpg(0, signal.SIGKILL)

    def _others(self) -> bool:
        """Whether other processes are in this session's process group (Linux; elsewhere nobody is seen)."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(folder.name) != os.getpid() and stat[0] != "Z" and int(stat[2]) == os.getpgrp():
                return True
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
