"""The load generator: Locust's processes, what they are told and what they tell.

Locust runs in processes of its own since it patches the standard library, reads ``sys.argv`` and owns its process's
signals. The master is told what to do over one pipe and reports over another, a JSON document a line each; a child
whose parent has gone ends by itself.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from kvload.private import open_file
from kvload.workloads.run.headers import child_environment
from kvload.workloads.run.plan import ReplayPlan

LOCUSTFILE = Path(__file__).parents[1] / "swarm" / "locustfile.py"


class LoadGenerator:
    """A master, and workers beside it where several processes send.

    Args:
        run_folder: gets the processes' logs.
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._gone: set[int] = set()
        self._events_fd = self._control_fd = -1
        self._pending = b""
        self._leashes: list[int] = []

    @property
    def log_path(self) -> Path:
        """The master's log."""
        return self._folder / "locust.log"

    @property
    def takes_commands(self) -> bool:
        """Whether it was started, and has not been ended."""
        return self._control_fd >= 0

    @property
    def runs(self) -> bool:
        """Whether the master's process is there."""
        return self._children[0].poll() is None

    def start(self, plan: ReplayPlan, spool: Path) -> None:
        """Start all processes of this machine.

        Args:
            plan: what is sent where, and by how many.
            spool: the folder that it was spooled to.
        """
        swarm, token = plan.swarm, plan.swarm.token or secrets.token_hex(16)
        events_read, events_write = os.pipe()
        control_read, control_write = os.pipe()
        self._events_fd, self._control_fd = events_read, control_write
        alone = plan.all_workers == 1 and swarm.remote_workers == 0
        master = ["--kvload-plan", str(spool.resolve()), "--users", str(plan.all_workers), "--spawn-rate", "1000"]
        master += ["--kvload-events-fd", str(events_write), "--kvload-control-fd", str(control_read)]
        if swarm.web_port is None:
            master += ["--headless", "--only-summary"]
        else:
            master += ["--web-host", swarm.web_host, "--web-port", str(swarm.web_port)]
            master += ["--autostart"] if swarm.autostart else []
        port = swarm.master_port if swarm.remote_workers else _free_port()
        if not alone:
            host = (swarm.master_host or "127.0.0.1") if swarm.remote_workers else "127.0.0.1"
            master += ["--master", "--master-bind-host", host, "--master-bind-port", str(port)]
            master += ["--expect-workers", str(plan.all_workers)]
        self._spawn(plan, token, master, (events_write, control_read), self.log_path)
        os.close(events_write)
        os.close(control_read)
        if not alone:
            for number in range(plan.sending.workers):
                # it ends when its end of this pipe does, that is with this process at the latest
                held, leash = os.pipe()
                self._leashes.append(leash)
                worker = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
                worker += ["--kvload-control-fd", str(held)]
                self._spawn(plan, token, worker, (held,), self._folder / f"locust-worker-{number}.log")
                os.close(held)

    def _spawn(self, plan: ReplayPlan, token: str, arguments: list[str], fds: tuple[int, ...], log_path: Path) -> None:
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", plan.address.url, *arguments]
        command += ["--loglevel", "INFO", "--config", os.devnull]
        with open_file(log_path, "wb") as log:
            # A session of its own: Ctrl-C on the terminal reaches only us, and we decide what it means.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env=child_environment(plan.headers, token=token, run_folder=self._folder),
                start_new_session=True,
                cwd=self._folder,
                umask=0o077,
            )
        if plan.swarm.cpus and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # it is gone, or may not be moved: that shows elsewhere
                os.sched_setaffinity(child.pid, plan.swarm.cpus)
        self._children.append(child)

    def tell(self, **command: Any) -> None:
        """Tell the master something; nothing happens where there is none any more."""
        if self._control_fd < 0:
            return
        try:
            os.write(self._control_fd, json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            # closed with the others, at the end: another thread may be about to write
            return

    def events(self, patience_s: float) -> list[dict[str, Any]] | None:
        """What the master has told since the last look, after waiting so long for it; None once its pipe is closed."""
        if self._events_fd < 0 or not select.select([self._events_fd], [], [], patience_s)[0]:
            return []
        data = os.read(self._events_fd, 1 << 20)
        if not data:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def lost_workers(self) -> list[int]:
        """Process ids of this machine's workers that have gone since the last look."""
        found = [child.pid for child in self._children[1:] if child.poll() is not None and child.pid not in self._gone]
        self._gone.update(found)
        return found

    def wait(self, patience_s: float) -> int | None:
        """The master's exit status, after waiting so long for its end at most; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._children[0].wait(patience_s)
        return self._children[0].returncode

    def last_words(self) -> str:
        """The last line of the master's log, however long the log is."""
        log = self.log_path
        with contextlib.suppress(OSError), log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
            return lines[-1][-300:] if lines else ""
        return ""

    def end(self, *, is_over: bool) -> list[dict[str, Any]]:
        """End whatever still runs: first by closing the pipe, then by asking, then by force.

        Args:
            is_over: whether the run has ended, so that the processes end by themselves in a moment.

        Returns:
            what the master told at the very end.
        """
        if self._control_fd >= 0:
            os.close(self._control_fd)
            self._control_fd = -1
        if not is_over:
            self._let_go()
        for child in self._children[1:]:
            _end(child, patience_s=5.0 if is_over else 0.5)
        for child in self._children[:1]:
            _end(child, patience_s=10.0 if is_over else 2.0)
        self._let_go()
        told: list[dict[str, Any]] = []
        if self._events_fd >= 0:
            told = self.events(0.0) or []
            os.close(self._events_fd)
            self._events_fd = -1
        return told

    def _let_go(self) -> None:
        while self._leashes:
            os.close(self._leashes.pop())


def _end(child: subprocess.Popen[bytes], *, patience_s: float) -> None:
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
            return


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
