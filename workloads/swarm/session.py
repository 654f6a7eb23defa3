"""A run inside a Locust process: what master and workers tell each other, guarded, and how the process ends."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from kvload import __version__
from kvload.errors import ExitStatus
from kvload.records import RequestRecord, ServerSample
from kvload.workloads.client.network import machine_id
from kvload.workloads.run.headers import RUN_FOLDER_VARIABLE, TOKEN_VARIABLE, inherited_headers
from kvload.workloads.swarm.coordinator import Coordinator
from kvload.workloads.swarm.messages import (
    Assign,
    Finished,
    FromWorker,
    Go,
    Hello,
    Join,
    Live,
    Message,
    Ping,
    Pong,
    Ready,
    Records,
    Refuse,
    Share,
    Stop,
    WantsShare,
    decode,
    encode,
    new_nonce,
    proof,
    proves,
)
from kvload.workloads.swarm.pipes import EventPipe, listen, own_pipes
from kvload.workloads.swarm.standalone import StandaloneRun
from kvload.workloads.swarm.worker import ReplayWorker

M = TypeVar("M", bound=Message)
F = TypeVar("F", bound=FromWorker)
_END_AFTER_S = 5.0
"""A process whose parent is gone ends by then, whatever still holds it."""


class Session:
    """A run inside this Locust process: the master's part, the worker's part, or both.

    Locust swallows what a message handler or a greenlet raises. Here each of them is guarded: a worker that fails tells
    its master, a master that fails tells the process that started it, and both end.
    """

    def __init__(self, environment: Environment, folder: Path | None, standalone: StandaloneRun | None) -> None:
        self.environment = environment
        self.runner: Any = environment.runner
        self.worker: ReplayWorker | None = None
        self.coordinator: Coordinator | None = None
        self.standalone = standalone
        own = own_pipes(sys.argv[1:])
        self.pipe = EventPipe(own.events_fd)
        self._token = os.environ.get(TOKEN_VARIABLE, "")
        self._run_folder = os.environ.get(RUN_FOLDER_VARIABLE)
        self._nonce = new_nonce()
        self._share = bytearray()
        self._assigned: Assign | None = None
        self._pongs: list[tuple[int, int]] = []
        if not isinstance(self.runner, MasterRunner):
            self.worker = ReplayWorker(self._send, inherited_headers(), self._mirror)
            self._handle(Hello, self._on_hello, self._worker_failed)
            self._handle(Refuse, self._on_refuse, self._worker_failed)
            self._handle(Assign, self._on_assign, self._worker_failed)
            self._handle(Share, self._on_share, self._worker_failed)
            self._handle(Go, self._on_go, self._worker_failed)
            self._handle(Stop, self._on_stop, self._worker_failed)
            self._handle(Pong, self._on_pong, self._worker_failed)
        if not isinstance(self.runner, WorkerRunner) and folder is not None:
            tell = self.pipe.tell if standalone is None else standalone.tell
            master = self.coordinator = Coordinator(self.runner, folder, self._token, tell, self._over)
            self._handle(Join, master.joins, self._master_failed)
            self._heed(WantsShare, lambda worker, _: master.wants_share(worker))
            self._heed(Ready, lambda worker, _: master.is_ready(worker))
            self._heed(Live, lambda worker, live: master.take_live(worker, live.report))
            self._heed(Records, lambda worker, some: master.take_records(worker, some.records, some.chunks))
            self._heed(Finished, master.has_finished)
            self._heed(Ping, master.tell_time)
            self._repeat(0.2, master.look)
            self._repeat(1.0, master.draw)
            if isinstance(self.runner, MasterRunner) and own.control_fd is not None:
                self._wait_for_workers(master)
        if own.control_fd is not None:
            gevent.spawn(listen, own.control_fd, self._on_command, self._parent_gone)
        if standalone is not None and not isinstance(self.runner, WorkerRunner):
            gevent.signal_handler(signal.SIGINT, self._interrupted)

    def _wait_for_workers(self, master: Coordinator) -> None:
        """Locust ends a run when the last worker leaves, be it a stranger or a refused one: not before ours came.

        Whoever wants to end it then tells so by the control pipe.
        """
        for name in ("stop", "quit"):
            end = getattr(self.runner, name)

            def end_unless_waiting(*args: Any, _end: Callable[..., None] = end, **options: Any) -> None:
                if not master.waits_for_workers:
                    _end(*args, **options)

            setattr(self.runner, name, end_unless_waiting)

    # -- guards -----------------------------------------------------------------------------------------------------

    def _handle(self, kind: type[M], handler: Callable[[M], None], on_failure: Callable[[Exception], None]) -> None:
        """Have a kind of message handled; what fails in that goes to ``on_failure``."""

        def handle(msg: Any, **_: Any) -> None:
            try:
                message = decode(msg.data, kind)
            except ValueError as problem:
                # a stranger's, or another version's: no reason to end anything
                logging.getLogger(__name__).warning("%s is ignored: %s", kind.kind(), problem)
                return
            try:
                handler(message)
            except Exception as error:
                logging.getLogger(__name__).exception("in the handler of %s", kind.kind())
                on_failure(error)

        self.runner.register_message(kind.kind(), handle)

    def _heed(self, kind: type[F], handler: Callable[[Any, F], None]) -> None:
        """Have a kind of message handled if it is from a worker that was given work."""
        master = self._master()

        def handle(message: F) -> None:
            worker = master.known(message.pass_word)
            if worker is not None:
                handler(worker, message)

        self._handle(kind, handle, self._master_failed)

    def _repeat(self, every_s: float, action: Callable[[], None]) -> None:
        def run() -> None:
            while True:
                gevent.sleep(every_s)
                try:
                    action()
                except Exception as error:
                    logging.getLogger(__name__).exception("while the run was looked after")
                    self._master_failed(error)
                    return

        gevent.spawn(run)

    def _worker_failed(self, error: Exception) -> None:
        self._worker().fail(error)

    def _master_failed(self, error: Exception) -> None:
        self._master().has_failed(error)

    # -- messages to a worker ---------------------------------------------------------------------------------------

    def _on_hello(self, hello: Hello) -> None:
        client = self._client_id()
        join = Join(
            version=__version__,
            nonce=self._nonce,
            proof=proof(self._token, "join", hello.nonce, client),
            client=client,
            machine=machine_id(),
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        self._send(join)

    def _on_refuse(self, refuse: Refuse) -> None:
        logging.getLogger(__name__).error("there is no work for this worker: %s", refuse.reason)
        if self.coordinator is None:
            self.environment.process_exit_code = ExitStatus.USAGE
            # Locust's own way out does not end a worker that was never started
            gevent.spawn_later(1.0, os._exit, ExitStatus.USAGE)
            gevent.spawn(self._quit)

    def _on_assign(self, assign: Assign) -> None:
        if not proves(assign.proof, self._token, "assign", self._nonce, assign.pass_word):
            self._on_refuse(Refuse(reason="its master does not know the run's token: --token"))
            return
        self._assigned = assign
        if assign.machine != machine_id():
            gevent.spawn(self._measure_clock)
        within_reach = self.coordinator is not None or self._run_folder == assign.settings.run_path
        if within_reach and assign.machine == machine_id():
            self._worker().assign(assign.settings, assign.shard, assign.pass_word, None)
            self._send(Ready(pass_word=assign.pass_word))
        else:
            self._send(WantsShare(pass_word=assign.pass_word))

    def _on_share(self, share: Share) -> None:
        assign = self._assigned
        self._share += share.data
        if share.last and assign is not None:
            self._worker().assign(assign.settings, assign.shard, assign.pass_word, bytes(self._share))
            self._share.clear()
            self._send(Ready(pass_word=assign.pass_word))

    def _measure_clock(self) -> None:
        """Ask the master for its time a few times; the answer that came back fastest is the truest."""
        for _ in range(8):
            if self._assigned is not None:
                self._send(Ping(pass_word=self._assigned.pass_word, here_ns=time.time_ns()))
            gevent.sleep(0.05)

    def _on_pong(self, pong: Pong) -> None:
        now = time.time_ns()
        self._pongs.append((now - pong.here_ns, pong.master_ns - (pong.here_ns + now) // 2))

    def _on_go(self, go: Go) -> None:
        zero_ns = go.zero_ns
        if go.machine != machine_id():
            ahead_ns = min(self._pongs)[1] if self._pongs else 0
            zero_ns = go.zero_wall_ns - ahead_ns - time.time_ns() + time.monotonic_ns()
        self._worker().go(zero_ns)

    def _on_stop(self, stop: Stop) -> None:
        self._worker().stop(stop.cause, cut=stop.cut)

    # -- the parent -------------------------------------------------------------------------------------------------

    def _on_command(self, command: dict[str, Any]) -> None:
        if self.coordinator is None:
            return
        try:
            self._obey(command)
        except Exception as error:
            logging.getLogger(__name__).exception("at a command of the parent")
            self._master_failed(error)

    def _obey(self, command: dict[str, Any]) -> None:
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
        """Nobody is left to report to: end now, with the records there are, and end for certain."""
        try:
            if self.coordinator is not None and self.coordinator.state in {"preparing", "running"}:
                self.coordinator.stop("interrupted", cut=True)
                gevent.sleep(2)
            elif self.worker is not None and self.coordinator is None:
                self.worker.stop("interrupted", cut=True)
                gevent.sleep(1)
        finally:
            gevent.spawn_later(_END_AFTER_S, os._exit, ExitStatus.INTERRUPTED)
            self._quit()

    def _interrupted(self) -> None:
        """End at Ctrl-C, between two acts: an exception would fall into the middle of one, and lose its record."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.coordinator is not None and self.coordinator.state in {"preparing", "running"}:
            self.coordinator.stop("interrupted", cut=True)
        gevent.spawn(self._quit)

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

    def begin(self) -> None:
        """Locust's test has begun: so does the run."""
        try:
            self._master().begin()
        except Exception as error:
            logging.getLogger(__name__).exception("at the start of the run")
            self._master_failed(error)

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

    def _client_id(self) -> str:
        return str(getattr(self.runner, "client_id", "local"))

    def _send(self, message: Message) -> None:
        self.runner.send_message(message.kind(), encode(message))

    def _mirror(self, record: RequestRecord) -> None:
        """Show a request to Locust's own statistics: one event, with the time the whole answer took.

        A request that failed has no such time: it stands among the failures, and not among the response times as 0.
        """
        if record.status == "unsent":
            return
        is_ok = record.status == "ok"
        took_s = record.e2e_s
        self.environment.events.request.fire(
            request_type="replay",
            name=record.task or "request",
            response_time=took_s * 1e3 if is_ok and took_s is not None else None,
            response_length=record.output_tokens or 0,
            exception=None if is_ok else RuntimeError(record.cause or record.status),
            context={},
        )
