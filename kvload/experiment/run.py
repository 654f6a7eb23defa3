"""Making the runs of a plan: launch, replay, stop, arm after arm; what is complete already is not made again."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvload.errors import KvloadError, MachineError, ServerError
from kvload.experiment.ending import answered, causes, error_of
from kvload.experiment.options import ReplayOptions, RunOptions
from kvload.experiment.placement import INTERRUPTED, PlacementLog
from kvload.experiment.plan import Arm, ExperimentPlan, PlannedRun, is_complete, set_aside
from kvload.experiment.replay import Listener, replay_once
from kvload.experiment.slots import Slot
from kvload.keys import overridden
from kvload.private import make_folder
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.workloads.run.plan import Swarm

if TYPE_CHECKING:
    from kvload.servers.launcher import LaunchEvent, LaunchRequest
    from kvload.servers.lifecycle.places import Place, Room, Server
    from kvload.servers.lifecycle.rootcause import RootCause


DYING_S = 1.0
"""How long a server's process may outlive its connections."""


@dataclass(frozen=True)
class Watcher:
    """Who is told how an experiment goes on.

    Attributes:
        on_run: a run begins, with its number (from 1) among all runs.
        on_launch: what its server does until it is ready.
        listener: what the replay does.
    """

    on_run: Callable[[PlannedRun, int, int], None] = lambda _run, _number, _of: None
    on_launch: "Callable[[LaunchEvent], None]" = lambda _event: None
    listener: Listener = field(default_factory=Listener)


@dataclass(frozen=True)
class Sent:
    """What every run of an experiment is made with beside its plan, and is kept nowhere.

    Attributes:
        headers: sent with every request; they may hold keys.
        arm_headers: for the servers of single arms, in place of headers of the same name.
        swarm: Locust's web page while a run goes on.
        place: where servers are started; this machine where None.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    arm_headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    swarm: Swarm = field(default_factory=Swarm)
    place: "Place | None" = None


@dataclass
class Took:
    """How long the parts of a run took, in seconds; None for those that it did not come to."""

    launch_s: float | None = None
    replay_s: float | None = None
    stop_s: float | None = None


def pending(plan: ExperimentPlan, out: Path) -> list[PlannedRun]:
    """The runs that are not complete yet, in the plan's order."""
    return [run for run in plan.runs() if not is_complete(run_path(out, run))]


def trace_copy(plan: ExperimentPlan, out: Path) -> Path:
    """The experiment's own copy of its trace, so that a resumed experiment replays the same one."""
    return out / ("trace" + "".join(Path(plan.trace).suffixes[-2:]))


def run_path(out: Path, run: PlannedRun) -> Path:
    """The folder of a run within an experiment's folder."""
    return out / "runs" / run.folder


def run_all(plan: ExperimentPlan, out: Path, watcher: Watcher, sent: Sent | None = None) -> dict[str, KvloadError]:
    """Make every run that is not complete, one after the other; an unfinished one is set aside and made again.

    An arm that fails (its server does not start, or dies, or answers nothing) is not tried again, and the others go
    on. Without the baseline, and without room on this machine, there is nothing to go on with.

    Returns:
        what went wrong, by the arm's name.

    Raises:
        KeyboardInterrupt: the user interrupted a run; what was measured is kept.
        ServerError: the baseline's server did not start, failed its verification or died.
        MachineError: this machine has no room for the runs.
    """
    runs = plan.runs()
    failed: dict[str, KvloadError] = {}
    slot = Slot(0, plan.launch.gpus)
    log = PlacementLog(out, (slot,))
    for run in pending(plan, out):
        if run.arm in failed:
            continue
        watcher.on_run(run, runs.index(run) + 1, len(runs))
        arm = plan.arm(run.arm)
        placed = log.begin(run.arm, run.repeat, slot)
        try:
            took = make_run(plan, out, run, plan.launch, watcher, sent or Sent())
            log.add(placed.with_parts(took.launch_s, took.replay_s, took.stop_s), slot)
        except KeyboardInterrupt:
            log.add_lost(placed, INTERRUPTED)
            raise
        except MachineError:
            raise
        except KvloadError as error:
            log.add_lost(placed, error.message)
            if arm.baseline:
                error.hint = error.hint or f"go on with kvload compare --resume {out}"
                raise
            failed[arm.name] = error
            watcher.listener.on_notice(f"the arm '{arm.name}' failed, the others go on: {error}")
    return failed


def make_run(
    plan: ExperimentPlan,
    out: Path,
    run: PlannedRun,
    launch: "LaunchRequest",
    watcher: Watcher,
    sent: Sent,
    room: "Room | None" = None,
) -> Took:
    """Launch, replay, stop: one run into its folder; an unfinished one that is there is set aside.

    Args:
        launch: the server, but for its method.
        room: where the server is started; wherever there is room where None.

    Raises:
        KeyboardInterrupt: the user interrupted it.
        KvloadError: the server did not start, failed its verification or died; or the run did not come to its end.
    """
    folder = run_path(out, run)
    set_aside(folder)
    make_folder(folder.parent)
    arm = plan.arm(run.arm)
    took = Took()
    began = time.monotonic()
    headers = overridden(sent.headers, sent.arm_headers.get(arm.base, {}))
    with (
        serving(arm, launch, watcher.on_launch, place=sent.place, room=room) as server,
        senders(plan.run, sent.place, server, headers, sent.swarm) as (run_options, swarm),
    ):
        ready = time.monotonic()
        took.launch_s = ready - began
        options = replace(_options(plan, out, run, server, headers, swarm), run=run_options)
        manifest = replay_to_its_end(options, server, watcher.listener)
        ended = time.monotonic()
        took.replay_s = ended - ready
    took.stop_s = time.monotonic() - ended
    check_answers(arm, manifest, folder)
    return took


def replay_to_its_end(options: ReplayOptions, server: "Server | None", listener: Listener) -> RunManifest:
    """Replay against a server that was launched for it, or against somebody else's.

    Args:
        server: the launched one.

    Raises:
        KeyboardInterrupt: the user interrupted it.
        ServerDiedError: the launched server died, before the run or in it.
        KvloadError: the run did not begin, or did not come to its end, for another reason.
    """
    error: KvloadError | None
    try:
        manifest = replay_once(options, listener).manifest()
    except ServerError as raised:
        error = raised
    else:
        if manifest.ended == "interrupted":
            raise KeyboardInterrupt
        error = error_of(manifest, where=str(options.out)) if manifest.partial else None
        if error is None:
            return manifest
    gone = _death_of(server) if server is not None and isinstance(error, ServerError) else None
    if gone is None:
        raise error
    from kvload.servers.lifecycle.starting import ServerDiedError

    told = error.message if gone.message in error.message else f"server died: {gone.message}"
    raise ServerDiedError(told, gone, error.where) from error


def _death_of(server: "Server") -> "RootCause | None":
    """Why a server that has failed is gone; None where it lives. Its connections break before its process ends."""
    deadline = time.monotonic() + DYING_S
    while (gone := server.alive()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return gone


def check_answers(arm: Arm, manifest: RunManifest, folder: Path) -> None:
    """Raise where an arm answered nothing: another repeat would say no more, nor anything be compared with it."""
    if manifest.sent and not answered(manifest):
        what = "the baseline" if arm.baseline else "the arm"
        raise ServerError(
            f"{what} '{arm.name}' answered none of {manifest.sent} requests: {causes(manifest.failures)}",
            where=str(folder),
            hint="raise --timeout and --drain where answers were cut, or lower the load",
        )


def completed(plan: ExperimentPlan, out: Path) -> dict[str, tuple[RunDir, ...]]:
    """The complete runs of each arm, by repeat."""
    found: dict[str, tuple[RunDir, ...]] = {arm.name: () for arm in plan.arms}
    for run in plan.runs():
        path = run_path(out, run)
        if is_complete(path):
            found[run.arm] += (RunDir.open(path),)
    return found


@contextlib.contextmanager
def serving(
    arm: Arm,
    wanted: "LaunchRequest",
    on_event: "Callable[[LaunchEvent], None]",
    *,
    place: "Place | None" = None,
    room: "Room | None" = None,
) -> "Iterator[Server | None]":
    """A server launched for the arm, stopped afterwards; None for an arm with a URL.

    Args:
        arm: its method is launched.
        wanted: the server, but for its method.
        on_event: told what the server does until it is ready.
        place, room: where it is started; on this machine where None.
    """
    if arm.url is not None:
        yield None
        return
    from kvload.servers.launcher import place_of

    arguments = (*wanted.engine_args, *arm.engine_args)
    request = replace(wanted, method=arm.method or "none", engine_args=arguments, name=None)
    server = (place or place_of("local")).start(request, on_event, room)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def senders(
    options: RunOptions, place: "Place | None", server: "Server | None", headers: Mapping[str, str], swarm: Swarm
) -> Iterator[tuple[RunOptions, Swarm]]:
    """The workers of a run: on this machine, or as tasks on a cluster's nodes other than the server's.

    Args:
        options, swarm: as they were asked for.
        place: where the server is.
        headers: sent with every request; workers elsewhere are told them, through the cluster.

    Yields:
        both, as they must be for these workers.
    """
    if place is None or server is None or server.is_here:
        yield options, swarm
        return
    from kvload.workloads.run.headers import request_headers
    from kvload.workloads.swarm.remote import run_worker

    host, port, token = place.address, _free_port(), secrets.token_hex(8)
    arguments = {
        "master_host": host,
        "master_port": port,
        "headers": dict(request_headers(headers)),
        "token": token,
    }
    count = max(options.sending.workers, 1)
    with place.elsewhere(run_worker, arguments, count, server.entry.info.node) as made:
        if not made:
            yield options, swarm
            return
        swarm = replace(swarm, master_host=host, master_port=port, remote_workers=made, token=token, cpus=())
        yield replace(options, sending=replace(options.sending, workers=0)), swarm


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _options(
    plan: ExperimentPlan,
    out: Path,
    run: PlannedRun,
    server: "Server | None",
    headers: Mapping[str, str],
    swarm: Swarm,
) -> ReplayOptions:
    arm = plan.arm(run.arm)
    return ReplayOptions(
        trace=trace_copy(plan, out),
        run=plan.run,
        running=server,
        address=arm.address(insecure=plan.run.insecure),
        model=plan.served_model,
        headers=headers,
        swarm=swarm,
        out=run_path(out, run),
        arm=arm.name,
        repeat=run.repeat,
    )
