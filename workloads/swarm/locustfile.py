"""The Locust file of a replay: one User a worker, which walks the worker's share of an absolute schedule.

``kvload replay`` runs it; ``locust -f`` does, too, with options of its own or those of a ``locust.conf``::

    locust -f locustfile.py --headless --host http://127.0.0.1:8000 --trace trace.jsonl --run-dir runs/mine

Locust's statistics are fed for its own page and tables; what kvload reports is made from the records in the run folder
alone.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust import User, constant, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from kvload.errors import KvloadError
from kvload.records import RequestRecord, ServerSample
from kvload.workloads.client.network import machine_id
from kvload.workloads.run.headers import inherited_headers
from kvload.workloads.run.plan import PlanSettings, plan_folder, shard_path
from kvload.workloads.swarm.coordinator import Coordinator
from kvload.workloads.swarm.pipes import EventPipe, listen
from kvload.workloads.swarm.standalone import OPTIONS, StandaloneRun
from kvload.workloads.swarm.worker import ReplayWorker


class ReplayUser(User):  # type: ignore[misc]
    """The visible shell of a worker: it lasts as long as the worker's share of the run."""

    fixed_count = 0
    wait_time = constant(1)

    @task  # type: ignore[untyped-decorator]
    def walk(self) -> None:
        """Wait until every request of this worker's share has its record."""
        session: Session | None = getattr(self.environment, "kvload_session", None)
        if session is None or session.worker is None:
            gevent.sleep(1)
            return
        try:
            session.worker.finished.wait()
        except gevent.GreenletExit:
            # Locust takes its users away: stopped from its page, or at the end of its patience
            session.worker.stop("interrupted", cut=True)
            raise


class Session:
    """A run inside this Locust process: the master's part, the worker's part, or both."""

    def __init__(self, environment: Environment, folder: Path | None, standalone: StandaloneRun | None) -> None:
        options = environment.parsed_options
        self.environment = environment
        self.runner: Any = environment.runner
        self.worker: ReplayWorker | None = None
        self.coordinator: Coordinator | None = None
        self.standalone = standalone
        self.pipe = EventPipe(options.kvload_events_fd)
        self._share = b""
        self._assigned: tuple[PlanSettings, int] | None = None
        self._pongs: list[tuple[int, int]] = []
        if not isinstance(self.runner, MasterRunner):
            self.worker = ReplayWorker(self.runner.send_message, inherited_headers(), self._mirror)
            for kind in ("assign", "share", "go", "stop", "pong"):
                self.runner.register_message(f"kvload_{kind}", getattr(self, f"_on_{kind}"))
        if not isinstance(self.runner, WorkerRunner) and folder is not None:
            tell = self.pipe.tell if standalone is None else standalone.tell
            self.coordinator = Coordinator(self.runner, folder, tell, self._over)
            for kind in ("wants_share", "ready", "live", "records", "finished", "ping"):
                self.runner.register_message(f"kvload_{kind}", getattr(self, f"_on_{kind}"))
        if options.kvload_control_fd is not None:
            gevent.spawn(listen, options.kvload_control_fd, self._on_command, self._parent_gone)

    # -- messages to a worker ---------------------------------------------------------------------------------------

    def _on_assign(self, msg: Any, **_: Any) -> None:
        import msgspec

        worker = self._worker()
        settings = msgspec.json.decode(msg.data["settings"], type=PlanSettings)
        self._assigned = (settings, msg.data["shard"])
        if msg.data["machine"] != machine_id():
            gevent.spawn(self._measure_clock)
        if msg.data["machine"] == machine_id() and shard_path(plan_folder(settings), msg.data["shard"]).exists():
            worker.assign(settings, msg.data["shard"], None)
            self._say_ready(msg.data["shard"])
        else:
            self._send("kvload_wants_share", {"shard": msg.data["shard"]})

    def _say_ready(self, shard: int) -> None:
        self._send("kvload_ready", {"shard": shard, "machine": machine_id(), "pid": os.getpid()})

    def _on_share(self, msg: Any, **_: Any) -> None:
        self._share += msg.data["data"]
        if msg.data["last"] and self._assigned is not None:
            settings, shard = self._assigned
            self._worker().assign(settings, shard, self._share)
            self._share = b""
            self._say_ready(shard)

    def _measure_clock(self) -> None:
        """Ask the master for its time a few times; the answer that came back fastest is the truest."""
        for _ in range(8):
            self._send("kvload_ping", {"here_ns": time.time_ns(), "client": self.runner.client_id})
            gevent.sleep(0.05)

    def _on_pong(self, msg: Any, **_: Any) -> None:
        now = time.time_ns()
        trip = now - msg.data["here_ns"]
        self._pongs.append((trip, msg.data["master_ns"] - (msg.data["here_ns"] + now) // 2))

    def _on_go(self, msg: Any, **_: Any) -> None:
        if msg.data["machine"] == machine_id():
            zero_ns = msg.data["zero_ns"]
        else:
            ahead_ns = min(self._pongs)[1] if self._pongs else 0
            zero_ns = msg.data["zero_wall_ns"] - ahead_ns - time.time_ns() + time.monotonic_ns()
        self._worker().go(zero_ns)

    def _on_stop(self, msg: Any, **_: Any) -> None:
        self._worker().stop(msg.data["cause"], cut=msg.data["cut"])

    # -- messages to the master -------------------------------------------------------------------------------------

    def _on_wants_share(self, msg: Any, **_: Any) -> None:
        self._master().wants_share(msg.data["shard"])

    def _on_ready(self, msg: Any, **_: Any) -> None:
        self._master().is_ready(msg.data["shard"], msg.data["machine"], msg.data["pid"])

    def _on_live(self, msg: Any, **_: Any) -> None:
        self._master().take_live(msg.data["report"])

    def _on_records(self, msg: Any, **_: Any) -> None:
        self._master().take_records(msg.data["shard"], msg.data["records"], msg.data["chunks"])

    def _on_finished(self, msg: Any, **_: Any) -> None:
        self._master().has_finished(msg.data["shard"], msg.data["error"])

    def _on_ping(self, msg: Any, **_: Any) -> None:
        data = {"here_ns": msg.data["here_ns"], "master_ns": time.time_ns()}
        self.runner.send_message("kvload_pong", data, msg.data["client"])

    # -- the parent -------------------------------------------------------------------------------------------------

    def _on_command(self, command: dict[str, Any]) -> None:
        master = self._master()
        kind = command["command"]
        if kind == "stop":
            master.stop(command["cause"], cut=command["cut"])
        elif kind == "worker_gone":
            master.lose_local(command["pid"])
        elif kind == "sample":
            master.take_sample(ServerSample(t_s=command["t_s"], cache_usage=command["cache_usage"]))
        elif kind == "quit":
            self._quit()

    def _parent_gone(self) -> None:
        """Nobody is left to report to: end now, with the records there are."""
        if self.coordinator is not None and self.coordinator.state in {"preparing", "running"}:
            self.coordinator.stop("interrupted", cut=True)
            gevent.sleep(2)
        self._quit()

    def _over(self) -> None:
        options = self.environment.parsed_options
        self._finish_standalone()
        if options.headless or options.autostart:
            gevent.spawn(self._quit)
        else:
            gevent.spawn(self.runner.stop)

    def _quit(self) -> None:
        self.pipe.flush(2.0)
        self.runner.quit()
        if self.environment.web_ui is not None:
            self.environment.web_ui.stop()

    def start_from_page(self) -> None:
        """The page's start button."""
        if self._master().state == "waiting":
            gevent.spawn(self.runner.start, self._master().settings.shards, 1000)

    def stop_from_page(self) -> None:
        """The page's stop button: nothing more is sent, what is in flight may end."""
        self._master().stop("interrupted", cut=False)

    def _finish_standalone(self) -> None:
        if self.standalone is not None:
            logging.getLogger(__name__).info(self.standalone.finish())
            self.standalone = None

    def close(self) -> None:
        """The process ends, whatever for: nothing that was measured is left behind."""
        if self.coordinator is not None and self.coordinator.state in {"preparing", "running"}:
            self.coordinator.stop("interrupted", cut=True)
        if self.worker is not None:
            self.worker.close()
        self._finish_standalone()

    # -- both -------------------------------------------------------------------------------------------------------

    def _worker(self) -> ReplayWorker:
        if self.worker is None:
            raise RuntimeError("a worker's message reached a master")
        return self.worker

    def _master(self) -> Coordinator:
        if self.coordinator is None:
            raise RuntimeError("a master's message reached a worker")
        return self.coordinator

    def _send(self, kind: str, data: Any) -> None:
        self.runner.send_message(kind, data)

    def _mirror(self, record: RequestRecord) -> None:
        """Show a request to Locust's own statistics."""
        if record.status == "unsent":
            return
        problem = None if record.status == "ok" else RuntimeError(record.cause or record.status)
        fire = self.environment.events.request.fire
        name = record.task or "replay"
        fire(
            request_type="e2e",
            name=name,
            # None is left out of its percentiles
            response_time=_ms(record.e2e_s),
            response_length=record.output_tokens or 0,
            exception=problem,
            context={},
        )
        if record.ttft_s is not None:
            ttft_ms = _ms(record.ttft_s)
            fire(request_type="ttft", name=name, response_time=ttft_ms, response_length=0, exception=None, context={})


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else value_s * 1e3


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: Any) -> None:
    """Our options beside Locust's own."""
    parser.add_argument(
        "--kvload-plan", type=str, default=None, help="A plan spooled by kvload replay", include_in_web_ui=False
    )
    for name, (default, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=str, default=default, help=text, include_in_web_ui=False)
    for name in ("--kvload-events-fd", "--kvload-control-fd"):
        parser.add_argument(name, type=int, default=None, help="A pipe of kvload replay", include_in_web_ui=False)


@events.init.add_listener  # type: ignore[untyped-decorator]
def on_init(environment: Environment, **_: Any) -> None:
    """Set up this process's part of the run."""
    options = environment.parsed_options
    # plain strings: Locust sends its options to the workers
    folder = Path(options.kvload_plan) if options.kvload_plan else None
    standalone: StandaloneRun | None = None
    if folder is None and options.trace and not isinstance(environment.runner, WorkerRunner):
        workers = options.expect_workers if isinstance(environment.runner, MasterRunner) else 1
        try:
            standalone = StandaloneRun(options, inherited_headers(), workers)
        except KvloadError as error:
            logging.getLogger(__name__).error(error)
            sys.exit(error.exit_status)
        folder = standalone.folder
    session = Session(environment, folder, standalone)
    environment.kvload_session = session
    if environment.web_ui is not None and session.coordinator is not None:
        from kvload.workloads.swarm.webui import add_page

        add_page(environment.web_ui, session.coordinator, session.start_from_page, session.stop_from_page)
    environment.stop_timeout = 1.0 if session.coordinator is None else session.coordinator.settings.sending.drain_s + 5


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def on_test_start(environment: Environment, **_: Any) -> None:
    """Start the run, in the process that coordinates it."""
    session: Session = environment.kvload_session
    if session.coordinator is not None:
        gevent.spawn(session.coordinator.begin)


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def on_test_stopping(environment: Environment, **_: Any) -> None:
    """Stopped from Locust's page: nothing more is sent, what is in flight may end."""
    session: Session = environment.kvload_session
    if session.coordinator is not None and session.coordinator.state in {"preparing", "running"}:
        session.coordinator.stop("interrupted", cut=False)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def on_quitting(environment: Environment, **_: Any) -> None:
    """Write down what is still in flight."""
    session: Session = environment.kvload_session
    session.close()
