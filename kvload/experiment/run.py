"""Making the runs of a plan: launch, replay, stop, arm after arm; what is complete already is not made again."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvload.address import Address
from kvload.errors import ServerError, UsageError
from kvload.experiment.plan import Arm, ExperimentPlan, PlannedRun, is_complete, set_aside
from kvload.experiment.replay import Listener, ReplayOptions, replay_once
from kvload.private import make_folder
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.servers.launcher import LaunchEvent


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


def pending(plan: ExperimentPlan, out: Path) -> list[PlannedRun]:
    """The runs that are not complete yet, in the plan's order."""
    return [run for run in plan.runs() if not is_complete(run_path(out, run))]


def trace_copy(plan: ExperimentPlan, out: Path) -> Path:
    """The experiment's own copy of its trace, so that a resumed experiment replays the same one."""
    return out / ("trace" + "".join(Path(plan.trace).suffixes[-2:]))


def run_path(out: Path, run: PlannedRun) -> Path:
    """The folder of a run within an experiment's folder."""
    return out / "runs" / run.folder


def run_all(
    plan: ExperimentPlan, out: Path, watcher: Watcher, *, headers: Mapping[str, str] | None = None, verify: bool = True
) -> None:
    """Make every run that is not complete; an unfinished one is set aside and made again.

    Args:
        headers: sent with every request; they are not part of the plan, since they may hold keys.
        verify: check each launched server's cache before it is used.

    Raises:
        KeyboardInterrupt: the user interrupted a run; what was measured is kept.
        ServerError: a server did not start, failed its verification or died.
    """
    runs = plan.runs()
    for run in pending(plan, out):
        watcher.on_run(run, runs.index(run) + 1, len(runs))
        folder = run_path(out, run)
        set_aside(folder)
        make_folder(folder.parent)
        arm = plan.arm(run.arm)
        with serving(arm, plan.launch, watcher.on_launch, verify=verify) as server:
            manifest = replay_once(_options(plan, out, arm, run, server, headers or {}), watcher.listener).manifest()
        if manifest.ended == "interrupted":
            raise KeyboardInterrupt
        if manifest.partial:
            raise ServerError(
                f"the run of '{arm.name}' did not come to its end: {manifest.ended}",
                where=str(folder),
                hint=f"go on with kvload compare --resume {out}",
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
    arm: Arm, options: Mapping[str, Any], on_event: "Callable[[LaunchEvent], None]", *, verify: bool
) -> Iterator[str | None]:
    """The name of a server launched for the arm, stopped afterwards; None for an arm with a URL.

    Args:
        arm: its method is launched.
        options: those of ``launch`` that all arms share.
        on_event: told what the server does until it is ready.
        verify: check its cache before it is used.
    """
    if arm.url is not None:
        yield None
        return
    from kvload.servers.launcher import LaunchRequest, launch, stop

    request = msgspec.convert(
        {**options, "method": arm.method or "none", "name": None, "verify": verify}, LaunchRequest
    )
    entry = launch(request, on_event)
    try:
        yield entry.name
    finally:
        stop(entry)


def _options(
    plan: ExperimentPlan, out: Path, arm: Arm, run: PlannedRun, server: str | None, headers: Mapping[str, str]
) -> ReplayOptions:
    from kvload.workloads.schedule.arrivals import ArrivalSpec

    given = dict(plan.replay)
    arrivals = msgspec.convert(given.pop("arrivals", {}), ArrivalSpec)
    try:
        return ReplayOptions(
            trace=trace_copy(plan, out),
            server=server,
            address=None if arm.url is None else Address.parse(arm.url, where=f"--arm {arm.name}"),
            out=run_path(out, run),
            arrivals=arrivals,
            headers=headers,
            arm=arm.name,
            repeat=run.repeat,
            **given,
        )
    except TypeError as error:
        raise UsageError(f"the plan was made by another version of kvload: {error}", where=str(out)) from error
