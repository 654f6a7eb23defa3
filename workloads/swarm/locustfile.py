"""The Locust file of a replay: one User a worker, which walks the worker's share of an absolute schedule.

``kvload replay`` runs it; ``locust -f`` does, too, with options of its own or those of a ``locust.conf``::

    locust -f locustfile.py --headless --host http://127.0.0.1:8000 --trace trace.jsonl --run-dir runs/mine

Locust's statistics are fed for its own page and tables; what kvload reports is made from the records in the run folder
alone.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import gevent
from locust import User, constant, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from kvload.errors import ExitStatus, KvloadError
from kvload.workloads.run.headers import inherited_headers
from kvload.workloads.swarm.session import Session
from kvload.workloads.swarm.standalone import OPTIONS, StandaloneRun


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
    try:
        session = Session(environment, folder, standalone)
    except Exception:
        # Locust would log it and go on without us
        logging.getLogger(__name__).exception("the run cannot be set up")
        sys.exit(ExitStatus.FAULT)
    environment.kvload_session = session
    if environment.web_ui is not None and session.coordinator is not None:
        from kvload.workloads.swarm.webui import add_page

        add_page(environment.web_ui, session.coordinator, session.start_from_page, session.stop_from_page)
    environment.stop_timeout = 1.0 if session.coordinator is None else session.coordinator.settings.sending.drain_s + 5


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def on_test_start(environment: Environment, **_: Any) -> None:
    """Start the run, in the process that coordinates it.

    A worker that comes while its master starts users may be told so before it is set up.
    """
    session: Session | None = getattr(environment, "kvload_session", None)
    if session is not None and session.coordinator is not None:
        gevent.spawn(session.begin)


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def on_test_stopping(environment: Environment, **_: Any) -> None:
    """Stopped from Locust's page: nothing more is sent, what is in flight may end."""
    session: Session | None = getattr(environment, "kvload_session", None)
    if (
        session is not None
        and session.coordinator is not None
        and session.coordinator.state in {"preparing", "running"}
    ):
        session.coordinator.stop("interrupted", cut=False)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def on_quitting(environment: Environment, **_: Any) -> None:
    """Write down what is still in flight."""
    session: Session | None = getattr(environment, "kvload_session", None)
    if session is not None:
        session.close()
