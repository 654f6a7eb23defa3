"""Runs one server detached from everything, and writes down how it ended.

``python -I keeper.py STATE_FILE [cpus=LIST] [leash=FD] -- COMMAND ...`` returns at once. A copy of itself stays behind
as leader of a new session, starts COMMAND in it, waits for its end, records exit code or signal in STATE_FILE, and ends
what the command left behind. Without it nobody could tell later why a detached server died: only a parent learns of a
SIGKILL.

``cpus`` is a list of processors (``0,2,3``) that the command and all it starts are kept to. ``leash`` is a descriptor
of a pipe: when nobody holds its other end any more, however they ended, the command is ended as well.

This file runs by its path under any Python, isolated from the environment made for the server, and uses the standard
library alone. STATE_FILE is JSON: ``keeper_pid`` and ``pid`` at the start, ``error`` if the command could not be
started, ``exit_code`` or ``signal`` and ``ended_at`` (Unix seconds) at the end.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

GRACE_S = 10.0
"""How long a server may take to end once its leash was let go of."""

SWEEP_S = 3.0
"""How long processes that a dead server left behind may take to follow it."""


def main(argv: list[str]) -> int:
    """Detach, and keep the command that follows ``--``."""
    before, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    if not before or not command:
        return 2
    options = dict(option.split("=", 1) for option in before[1:])
    if "cpus" in options:
        os.sched_setaffinity(0, {int(number) for number in options["cpus"].split(",")})
    if os.fork() > 0:
        return 0
    os.setsid()
    Keeper(Path(before[0])).keep(command, int(options["leash"]) if "leash" in options else None)
    return 0


class Keeper:
    """The process that stays with a server for as long as it runs."""

    def __init__(self, state_file: Path) -> None:
        self._state_file = state_file
        self._state: dict[str, int | float | str] = {"keeper_pid": os.getpid()}
        self._server: subprocess.Popen[bytes] | None = None

    def keep(self, command: list[str], leash: int | None = None) -> None:
        """Start the command, wait for it, record its end, and end what it left.

        Args:
            leash: descriptor whose end of file ends the command.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        try:
            self._server = subprocess.Popen(command)
        except OSError as error:
            self._record(error=f"{error.strerror}: {error.filename}", ended_at=time.time())
            return
        self._record(pid=self._server.pid)
        if leash is not None:
            threading.Thread(target=self._end_with, args=(leash, self._server), daemon=True).start()
        code = self._server.wait()
        self._record(ended_at=time.time(), **({"signal": -code} if code < 0 else {"exit_code": code}))
        self._sweep()

    def _end_with(self, leash: int, server: "subprocess.Popen[bytes]") -> None:
        while os.read(leash, 1):
            pass
        server.terminate()
        time.sleep(GRACE_S)
        server.kill()

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
