"""A replay from outside: Locust in child processes, their events read here, the run folder completed at the end.

Locust runs in processes of its own since it patches the standard library, reads ``sys.argv`` and owns its process's
signals. Children are told what to do over one pipe and report over another; a child whose parent has gone ends by
itself, a parent whose child has gone keeps what was measured.
"""

import contextlib
import json
import math
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kvload.private import open_file
from kvload.records import RunManifest, ServerSample
from kvload.rundir import RunDir
from kvload.units import request_limits
from kvload.workloads.run import plan as plans
from kvload.workloads.run.completion import Outcome, complete, reserve
from kvload.workloads.run.faults import describe, fault_of
from kvload.workloads.run.headers import child_environment
from kvload.workloads.run.live import LiveBoard, Progress
from kvload.workloads.run.machine_use import MachineUse
from kvload.workloads.run.plan import ReplayPlan

LOCUSTFILE = Path(__file__).parents[1] / "swarm" / "locustfile.py"
POLL_S = 0.25
_HEALTH_EVERY_S = 1.0
_DEAD_AFTER = 3
_GIVE_UP_AFTER_S = 15.0
"""How much longer than it was told the load generator may take to end."""

START_PATIENCE_S = 90.0
_SPOOL_BYTES_PER_S = 5e6
"""How long the load generator may take to start, beside what reading the schedule takes."""


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to know of a run while it goes on.

    Attributes:
        on_progress: called a few times a second.
        on_start: called once, with the run's zero on ``time.monotonic``.
        on_end: called once, when the last answer has ended and nothing has been evaluated yet.
        on_complete: called once, when the run folder is complete; with a web page this is before the page is closed.
        on_notice: called with a sentence for the user (a worker died, the server died ...).
        is_server_dead: asked after failures, at most once a second: the reason if the server is certainly gone.
        interrupts: how often an end was asked for, beside the signals that reach a run in the main thread.
    """

    on_progress: Callable[[Progress], None] = lambda _progress: None
    on_start: Callable[[float], None] = lambda _zero: None
    on_end: Callable[[], None] = lambda: None
    on_complete: Callable[[], None] = lambda: None
    on_notice: Callable[[str], None] = lambda _text: None
    is_server_dead: Callable[[], str | None] = lambda: None
    interrupts: Callable[[], int] = lambda: 0


def run_replay(plan: ReplayPlan, run: RunDir, hooks: Hooks | None = None) -> RunManifest:
    """Replay a plan and complete the run folder; returns the final manifest.

    The first interrupt (Ctrl-C) ends the sending and lets answers in flight come in, a second one cuts them off; the
    manifest then says ``interrupted`` and is partial; a third one does not wait for anything. Whatever happens every
    planned request has a record afterwards, and the manifest says how the run ended.

    Args:
        plan: what to send where.
        run: a run folder whose manifest is written, without what only the end can tell.

    Raises:
        MachineError: there is no room for the run, or not even for its end.
    """
    return Replay(plan, run, hooks or Hooks()).run()


class Replay:
    """One run; see :func:`run_replay`."""

    def __init__(self, plan: ReplayPlan, run: RunDir, hooks: Hooks) -> None:
        self.plan = plan
        self.run_dir = run
        self.hooks = hooks
        self.outcome = Outcome(LiveBoard(request_limits(plan.slo)))
        self._interrupts = 0
        self._stopping = False
        self._cut = False
        self._give_up_at = math.inf
        self._children: list[subprocess.Popen[bytes]] = []
        self._gone: set[int] = set()
        self._events_fd = self._control_fd = -1
        self._pending = b""
        self._next_progress = 0.0
        self._failed_seen = self._answered_seen = 0
        self._page_told = False
        self._dead_answers = 0
        self._leashes: list[int] = []
        self._use: MachineUse | None = None
        self._token = plan.swarm.token or secrets.token_hex(16)
        self._start_until = math.inf
        self._next_health = 0.0
        self._wall_started = time.monotonic()

    def run(self) -> RunManifest:
        """Run to the end and return the final manifest."""
        reserve(self.run_dir, len(self.plan.planned))
        folder = plans.spool(self.plan, self.run_dir.path)
        # the workers have the bodies now: with long prompts they are most of what this process would hold
        self.plan = plans.without_bodies(self.plan)
        if not self.plan.swarm.page_stays and not self.plan.swarm.remote_workers:
            size = sum(path.stat().st_size for path in folder.iterdir())
            self._start_until = time.monotonic() + START_PATIENCE_S + size / _SPOOL_BYTES_PER_S
        former = self._catch_interrupts()
        try:
            try:
                self._spawn(folder)
                self._watch()
            except Exception as error:
                # what was measured is kept, and the manifest says what failed
                self.outcome.end_by(f"kvload failed: {describe(error)}", fault_of(error))
                self._end_children()
                complete(self.run_dir, self.plan, self.outcome)
                raise
            if not self.plan.swarm.page_stays or not self.outcome.over:
                self._end_children()
            manifest = complete(self.run_dir, self.plan, self.outcome)
            plans.remove(folder)
            self._tell(self.hooks.on_complete)
            self._keep_page()
        finally:
            self._end_children()
            for number, handler in former.items():
                signal.signal(number, handler)
        return manifest

    def _keep_page(self) -> None:
        """Leave the web page where it is until somebody interrupts."""
        if not self.plan.swarm.page_stays or self._control_fd < 0 or self._interrupts:
            return
        self._tell(self.hooks.on_notice, "the page stays until you interrupt (Ctrl-C)")
        while not self._interrupts and self._children[0].poll() is None:
            self._read_events(POLL_S)

    def _tell(self, hook: Callable[..., None], *what: Any) -> None:
        """Tell whoever wants to know; a terminal that has gone away ends nothing."""
        with contextlib.suppress(OSError):
            hook(*what)

    # -- children ---------------------------------------------------------------------------------------------------

    def _catch_interrupts(self) -> dict[int, Any]:
        def note(number: int, _frame: FrameType | None) -> None:
            # asked to end from outside, or with the terminal gone, we do not linger
            self._interrupts += 1 if number == signal.SIGINT else 2

        former: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not the main thread: whoever owns the signals ends the run
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # nohup: the end of the session is not meant for us
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    former[number] = signal.signal(number, note)
        return former

    def _spawn(self, folder: Path) -> None:
        plan, swarm = self.plan, self.plan.swarm
        events_read, events_write = os.pipe()
        control_read, control_write = os.pipe()
        self._events_fd, self._control_fd = events_read, control_write
        alone = plan.all_workers == 1 and swarm.remote_workers == 0
        master = ["--kvload-plan", str(folder.resolve()), "--users", str(plan.all_workers), "--spawn-rate", "1000"]
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
        self._start(master, (events_write, control_read), "locust")
        os.close(events_write)
        os.close(control_read)
        if not alone:
            for number in range(plan.sending.workers):
                # it ends when its end of this pipe does, that is with this process at the latest
                held, leash = os.pipe()
                self._leashes.append(leash)
                worker = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
                worker += ["--kvload-control-fd", str(held)]
                self._start(worker, (held,), f"locust-worker-{number}")
                os.close(held)

    def _start(self, arguments: list[str], fds: tuple[int, ...], log_name: str) -> None:
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", self.plan.address.url, *arguments]
        command += ["--loglevel", "INFO", "--config", os.devnull]
        with open_file(self.run_dir.path / f"{log_name}.log", "wb") as log:
            # A session of its own: Ctrl-C on the terminal reaches only us, and we decide what it means.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env=child_environment(self.plan.headers, token=self._token, run_folder=self.run_dir.path),
                start_new_session=True,
                cwd=self.run_dir.path,
                umask=0o077,
            )
        if self.plan.swarm.cpus and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # it is gone, or may not be moved: that shows elsewhere
                os.sched_setaffinity(child.pid, self.plan.swarm.cpus)
        self._children.append(child)

    def _command(self, **command: Any) -> None:
        if self._control_fd < 0:
            return
        try:
            os.write(self._control_fd, json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            # closed with the others, at the end: another thread may be about to write
            return

    def _end_children(self) -> None:
        """End whatever still runs: first by closing the pipe, then by asking, then by force."""
        if self._control_fd >= 0:
            os.close(self._control_fd)
            self._control_fd = -1
        if not self.outcome.over:
            self._let_go()
        for child in self._children[1:]:
            _end(child, patience_s=5.0 if self.outcome.over else 0.5)
        for child in self._children[:1]:
            _end(child, patience_s=10.0 if self.outcome.over else 2.0)
        self._let_go()
        if self._events_fd >= 0:
            self._read_events(0.0)
            os.close(self._events_fd)
            self._events_fd = -1

    def _let_go(self) -> None:
        while self._leashes:
            os.close(self._leashes.pop())

    # -- while it runs ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        master = self._children[0]
        while not self.outcome.over:
            alive = self._read_events(POLL_S)
            self._heed_interrupts()
            self._look_after_workers()
            self._look_after_server()
            self._look_for_page()
            self._show_progress()
            if time.monotonic() > self._give_up_at:
                self.outcome.errors.append("the load generator did not end when told to")
                break
            if self.outcome.zero_ns is None and time.monotonic() > self._start_until:
                self.outcome.end_by("the load generator did not start in time", "kvload")
                self.outcome.errors.append(f"the load generator did not start in time: see {self._log_path}")
                break
            if not alive or master.poll() is not None:
                self._read_events(0.0)
                if not self.outcome.over:
                    self._master_gone(master)
                break
        if self._use is not None:
            self.outcome.machine = self._use.shares()
        self._tell(self.hooks.on_end)
        self._show_progress(final=True)

    def _master_gone(self, master: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            master.wait(5.0)
        killed = master.returncode is not None and master.returncode < 0
        self.outcome.end_by("the load generator ended unexpectedly", "machine" if killed else "kvload")
        last = _last_line(self._log_path)
        self.outcome.errors.append(f"Locust ended with status {master.returncode} ({last}): see {self._log_path}")
        self._tell(self.hooks.on_notice, self.outcome.errors[-1])

    @property
    def _log_path(self) -> Path:
        return self.run_dir.path / "locust.log"

    def _read_events(self, patience_s: float) -> bool:
        """Handle what the master has to tell; False once its pipe is closed."""
        if self._events_fd < 0 or not select.select([self._events_fd], [], [], patience_s)[0]:
            return True
        data = os.read(self._events_fd, 1 << 20)
        if not data:
            return False
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._handle(json.loads(line))
        return True

    def _handle(self, event: Mapping[str, Any]) -> None:
        notice = self.outcome.take(event)
        if notice is not None:
            self._tell(self.hooks.on_notice, notice)
        if event["event"] == "started":
            self._use = MachineUse()
            self._tell(self.hooks.on_start, event["zero_ns"] / 1e9)
        elif event["event"] == "stopped":
            self._stopping = True

    def _heed_interrupts(self) -> None:
        self._interrupts = max(self._interrupts, self.hooks.interrupts())
        if self._interrupts and not self._stopping:
            self._stopping = True
            self.outcome.end_by("interrupted", "user")
            words = "interrupted: waiting for the answers in flight; interrupt again to cut them off"
            self._tell(self.hooks.on_notice, words)
            waits_s = 0.0 if self.outcome.zero_ns is None else self.plan.sending.drain_s
            self._give_up_at = time.monotonic() + waits_s + _GIVE_UP_AFTER_S
            self._command(command="stop", cause="interrupted", cut=False)
        if self._interrupts > 1 and not self._cut:
            self._cut = True
            self.outcome.end_by("interrupted", "user")
            self._give_up_at = time.monotonic() + _GIVE_UP_AFTER_S
            self._command(command="stop", cause="interrupted", cut=True)
        if self._interrupts > 3:
            self._give_up_at = 0.0

    def _look_after_workers(self) -> None:
        for child in self._children[1:]:
            if child.poll() is not None and child.pid not in self._gone:
                self._gone.add(child.pid)
                self._command(command="worker_gone", pid=child.pid)

    def _look_after_server(self) -> None:
        """After failures ask whether the server is still there; if it certainly is not, end the run.

        A server that has answered a request since it was last asked is there, whatever its health page says.
        """
        failed, answered = self.outcome.board.total("failed"), self.outcome.board.total("answered")
        now = time.monotonic()
        if answered > self._answered_seen:
            self._answered_seen, self._dead_answers = answered, 0
            self._failed_seen = failed
        if self._stopping or failed == self._failed_seen or now < self._next_health:
            return
        self._next_health = now + _HEALTH_EVERY_S
        reason = self.hooks.is_server_dead()
        if reason is None:
            self._failed_seen, self._dead_answers = failed, 0
            return
        self._dead_answers += 1
        if self._dead_answers >= _DEAD_AFTER:
            self._stopping = True
            self.outcome.end_by(f"server died: {reason}", "server")
            self._tell(self.hooks.on_notice, f"the server died ({reason}): nothing more is sent")
            self._command(command="stop", cause="server_died", cut=False)

    def _look_for_page(self) -> None:
        """Tell once that the web page is there: Locust takes some seconds to begin."""
        swarm = self.plan.swarm
        if swarm.web_port is None or self._page_told:
            return
        with contextlib.suppress(OSError), socket.create_connection((swarm.web_host, swarm.web_port), POLL_S):
            self._page_told = True
            told = "" if swarm.autostart else ": start the run there"
            self._tell(self.hooks.on_notice, f"the page is at http://{swarm.web_host}:{swarm.web_port}/kvload/{told}")

    def show_sample(self, sample: ServerSample) -> None:
        """Pass a scrape on to the web page."""
        self._command(command="sample", t_s=sample.t_s, cache_usage=sample.cache_usage)

    def _show_progress(self, *, final: bool = False) -> None:
        now = time.monotonic()
        if now < self._next_progress and not final:
            return
        self._next_progress = now + POLL_S
        board = self.outcome.board
        elapsed = 0.0 if self.outcome.zero_ns is None else max(0.0, now - self.outcome.zero_ns / 1e9)
        span = max((request.offset_s for request in self.plan.planned[-1:]), default=0.0)
        sent, unsent = board.total("sent"), board.total("unsent")
        closed_loop = self.plan.sending.concurrency is not None
        if self.outcome.over or final:
            state = "ended"
        elif self.outcome.zero_ns is None:
            state = "preparing"
        else:
            state = "draining" if sent + unsent >= len(self.plan.planned) or self._stopping else "running"
        self._tell(
            self.hooks.on_progress,
            Progress(
                state=state,
                planned=len(self.plan.planned),
                sent=sent,
                done=board.total("done"),
                failed=board.total("failed"),
                unsent=unsent,
                in_flight=board.total("in_flight"),
                elapsed_s=elapsed,
                left_s=None if self.outcome.zero_ns is None or closed_loop else max(0.0, span - elapsed),
                ttft_p50_s=board.quantile("ttft", 0.5),
                ttft_p99_s=board.quantile("ttft", 0.99),
                tpot_p50_s=board.quantile("tpot", 0.5),
                lag_p99_s=board.quantile("lag", 0.99),
                attainment=board.met / board.judged if board.slo and board.judged else None,
                workers=self.plan.all_workers,
                lost_workers=len(self.outcome.lost),
            ),
        )


def _end(child: subprocess.Popen[bytes], *, patience_s: float) -> None:
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
            return


def _last_line(log: Path) -> str:
    """The last words of a log, however long it is."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][-300:] if lines else ""
    return ""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
