"""A replay from outside: the load generator started and watched, the run folder completed at the end.

Whatever happens to the load generator, what was measured is kept.
"""

import contextlib
import math
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from kvload.records import RunManifest, ServerSample
from kvload.rundir import RunDir
from kvload.units import request_limits
from kvload.workloads.run import plan as plans
from kvload.workloads.run.completion import Outcome, complete, reserve
from kvload.workloads.run.faults import describe, fault_of
from kvload.workloads.run.generator import LoadGenerator
from kvload.workloads.run.live import LiveBoard, Progress
from kvload.workloads.run.machine_use import MachineUse
from kvload.workloads.run.plan import ReplayPlan

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
        self._next_progress = 0.0
        self._failed_seen = self._answered_seen = 0
        self._page_told = False
        self._dead_answers = 0
        self._use: MachineUse | None = None
        self._generator = LoadGenerator(run.path)
        self._start_until = math.inf
        self._next_health = 0.0

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
                self._generator.start(self.plan, folder)
                self._watch()
            except Exception as error:
                # what was measured is kept, and the manifest says what failed
                self.outcome.end_by(f"kvload failed: {describe(error)}", fault_of(error))
                self._end_generator()
                complete(self.run_dir, self.plan, self.outcome)
                raise
            if not self.plan.swarm.page_stays or not self.outcome.over:
                self._end_generator()
            manifest = complete(self.run_dir, self.plan, self.outcome)
            plans.remove(folder)
            self._tell(self.hooks.on_complete)
            self._keep_page()
        finally:
            self._end_generator()
            for number, handler in former.items():
                signal.signal(number, handler)
        return manifest

    def _keep_page(self) -> None:
        """Leave the web page where it is until somebody interrupts."""
        if not self.plan.swarm.page_stays or not self._generator.takes_commands or self._interrupts:
            return
        self._tell(self.hooks.on_notice, "the page stays until you interrupt (Ctrl-C)")
        while not self._interrupts and self._generator.runs:
            self._read_events(POLL_S)

    def _tell(self, hook: Callable[..., None], *what: Any) -> None:
        """Tell whoever wants to know; a terminal that has gone away ends nothing."""
        with contextlib.suppress(OSError):
            hook(*what)

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

    def _end_generator(self) -> None:
        for event in self._generator.end(is_over=self.outcome.over):
            self._handle(event)

    def _watch(self) -> None:
        while not self.outcome.over:
            alive = self._read_events(POLL_S)
            self._heed_interrupts()
            for pid in self._generator.lost_workers():
                self._generator.tell(command="worker_gone", pid=pid)
            self._look_after_server()
            self._look_for_page()
            self._show_progress()
            if time.monotonic() > self._give_up_at:
                self.outcome.errors.append("the load generator did not end when told to")
                break
            if self.outcome.zero_ns is None and time.monotonic() > self._start_until:
                self.outcome.end_by("the load generator did not start in time", "kvload")
                self.outcome.errors.append(f"the load generator did not start in time: see {self._generator.log_path}")
                break
            if not alive or not self._generator.runs:
                self._read_events(0.0)
                if not self.outcome.over:
                    self._master_gone()
                break
        if self._use is not None:
            self.outcome.machine = self._use.shares()
        self._tell(self.hooks.on_end)
        self._show_progress(final=True)

    def _master_gone(self) -> None:
        status = self._generator.wait(5.0)
        killed = status is not None and status < 0
        self.outcome.end_by("the load generator ended unexpectedly", "machine" if killed else "kvload")
        last = self._generator.last_words()
        self.outcome.errors.append(f"Locust ended with status {status} ({last}): see {self._generator.log_path}")
        self._tell(self.hooks.on_notice, self.outcome.errors[-1])

    def _read_events(self, patience_s: float) -> bool:
        """Handle what the load generator has to tell; False once it tells nothing any more."""
        events = self._generator.events(patience_s)
        for event in events or []:
            self._handle(event)
        return events is not None

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
            self._generator.tell(command="stop", cause="interrupted", cut=False)
        if self._interrupts > 1 and not self._cut:
            self._cut = True
            self.outcome.end_by("interrupted", "user")
            self._give_up_at = time.monotonic() + _GIVE_UP_AFTER_S
            self._generator.tell(command="stop", cause="interrupted", cut=True)
        if self._interrupts > 3:
            self._give_up_at = 0.0

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
            self._generator.tell(command="stop", cause="server_died", cut=False)

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
        self._generator.tell(command="sample", t_s=sample.t_s, cache_usage=sample.cache_usage)

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
