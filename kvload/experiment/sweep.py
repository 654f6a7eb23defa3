"""A sweep: every method is launched and its load raised step by step, to find what it carries within the limits.

One launch serves all levels of a walk. Repeats are walks of their own, with launches of their own and the arms in
rotated order, so that what drifts with time does not fall on one arm. A walk stops where attainment is gone. Everything
is kept in one folder and can be gone on with::

    OUT/sweep.json            SweepPlan
    OUT/trace.jsonl           a copy of the trace
    OUT/runs/NAME             one run folder for each arm, level and repeat
    OUT/results.json ...      what was found (written by the command)
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from kvload.errors import KvloadError, RunDirError, ServerError, UsageError
from kvload.experiment.ending import answered, error_of
from kvload.experiment.forecast import Forecast
from kvload.experiment.lanes import Lanes
from kvload.experiment.options import ReplayOptions, RunOptions
from kvload.experiment.placement import PlacedRun, PlacementLog, is_gone, read_placement
from kvload.experiment.plan import Arm, is_complete, set_aside
from kvload.experiment.replay import Listener, replay_once
from kvload.experiment.run import check_answers, senders, serving
from kvload.experiment.slots import Slot, spread
from kvload.private import make_folder, write_bytes
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.servers.engines.base import LaunchRequest
from kvload.workloads.run.plan import Swarm

if TYPE_CHECKING:
    from kvload.analysis.sweep.model import Point, Sweep
    from kvload.servers.launcher import LaunchEvent
    from kvload.servers.lifecycle.places import Place, Room, Server

PLAN_NAME = "sweep.json"
GONE = 0.1
"""Below this attainment nothing is left to be seen at higher loads: a walk stops."""

AUTO_LEVELS = 8
"""Levels a search is expected to take, for the estimate of its time alone."""

REQUESTS_IN_FLIGHT = 16
"""A closed loop sends at least so many requests for each one in flight: the first of each are an empty server's."""


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides the outcome of a sweep.

    Attributes:
        trace, trace_sha256, rows: the trace's path as given, its content's digest, and how many requests it has.
        axis: what is raised: the rate (requests a second) or the concurrency (closed loop).
        levels: the loads in rising order; empty for a search that starts at ``start`` and stops when capacity is known
            to ``tolerance``, or after ``most`` levels.
        target: share of sent requests that must meet the limits.
        duration_s: a rate is kept up for at least so long, where the trace has the requests for it.
        warm_up_s: requests of a rate's first seconds do not count, since they find an emptier server than it is in
            service; of a closed loop the first of every place in flight do not. 0 for none.
        burstiness: shape of the gamma gaps between arrivals; 1 is Poisson.
        launch, run: what all arms share, as in a comparison's plan.
        gpus, price_per_gpu_hour: GPUs of one server and their price, for the cost; None where nothing is to be said
            about it.
        spread: GPUs that walks are spread over, side by side; empty where one follows the other.
        place, place_address: where servers are started, see :func:`kvload.servers.launcher.place_of`.
    """

    trace: str
    trace_sha256: str
    rows: int
    arms: tuple[Arm, ...]
    axis: Literal["rate", "concurrency"]
    levels: tuple[float, ...] = ()
    start: float = 1.0
    tolerance: float = 0.1
    most: int = 12
    repeats: int = 1
    target: float = 0.9
    duration_s: float = 60.0
    warm_up_s: float = 0.0
    burstiness: float = 1.0
    launch: LaunchRequest = msgspec.field(default_factory=LaunchRequest)
    run: RunOptions = msgspec.field(default_factory=RunOptions)
    gpus: int | None = None
    price_per_gpu_hour: float | None = None
    spread: tuple[str, ...] = ()
    place: str = "local"
    place_address: str = "auto"
    command: str | None = None

    def walks(self) -> list[tuple[Arm, int]]:
        """Arms and repeats in the order they are walked: every repeat starts one arm later than the one before it."""
        found = []
        for repeat in range(self.repeats):
            turn = repeat % len(self.arms)
            found += [(arm, repeat) for arm in self.arms[turn:] + self.arms[:turn]]
        return found

    def requests_at(self, level: float) -> int:
        """How many requests are sent at a level of load: enough to prove the target, and to keep the load up."""
        held = level * (self.duration_s if self.axis == "rate" else REQUESTS_IN_FLIGHT)
        wanted = max(needed(self.target), math.ceil(held)) + self.warm_up_at(level)
        return min(wanted, self.run.schedule.limit or self.rows, self.rows)

    def warm_up_at(self, level: float) -> int:
        """How many of the requests at a level do not count, about."""
        if not self.warm_up_s:
            return 0
        return math.ceil(level * self.warm_up_s) if self.axis == "rate" else math.ceil(level)

    def span_s(self, level: float) -> float:
        """About how long sending takes at a level."""
        return self.requests_at(level) / level if self.axis == "rate" else self.duration_s

    def launch_s(self, arm: Arm) -> float:
        """About how long an arm's server takes to start."""
        from kvload.servers.engines.base import Adapter, known

        return 0.0 if arm.url else (known(self.launch.engine) or Adapter).start_estimate_s


def needed(target: float) -> int:
    """Requests that must all meet the limits before Wilson's 95 % interval lies above the target.

    >>> needed(0.99), needed(0.9)
    (381, 35)
    """
    z2 = 1.959964**2
    return math.ceil(z2 * target / (1 - target) - 1e-9) if target < 1 else 1


@dataclass(frozen=True)
class SweepWatcher:
    """Who is told how a sweep goes on.

    Attributes:
        on_level: a replay begins: arm, level, repeat, and the forecast of the whole sweep.
        on_point: what it came to.
        on_failed: an arm could not be measured on; the others are.
        on_launch: what an arm's server does until it is ready.
        listener: what the replay does.
        for_slot: who is told of what goes on in one slot, where walks go on side by side.
    """

    on_level: "Callable[[Arm, float, int, Forecast], None]" = lambda _arm, _level, _repeat, _forecast: None
    on_point: "Callable[[Point], None]" = lambda _point: None
    on_failed: Callable[[Arm, KvloadError], None] = lambda _arm, _error: None
    on_launch: "Callable[[LaunchEvent], None]" = lambda _event: None
    listener: Listener = field(default_factory=Listener)
    for_slot: "Callable[[Slot], SweepWatcher] | None" = None


@dataclass
class _Lane:
    """Where walks go on one after the other: who is told, what is still to come, and what of the machine is theirs."""

    watcher: SweepWatcher
    forecast: Forecast
    launch: LaunchRequest
    swarm: Swarm
    room: "Room | None" = None


def check(plan: SweepPlan) -> None:
    """Find what cannot work before anything has run: too few requests, methods or settings the engine refuses.

    Raises:
        UsageError: the plan cannot be carried out.
    """
    least = min(plan.run.schedule.limit or plan.rows, plan.rows)
    if least < needed(plan.target):
        raise UsageError(
            f"{least} requests cannot prove a share of {plan.target:.3g}: it takes {needed(plan.target)} a load",
            where="--target",
            hint="use a longer trace, or a lower --target",
        )
    launched = [arm for arm in plan.arms if arm.method is not None]
    # what a cluster's nodes can do is told there: this machine may have neither the engine nor a GPU
    if launched and plan.place == "local":
        from kvload.servers.launcher import plan_for

        for arm in launched:
            plan_for(replace(plan.launch, method=arm.method or "none"))


def next_level(plan: SweepPlan, done: "list[Point]", first_walk: "list[float]") -> float | None:
    """The load to try next in one walk of one arm; None where the walk is over.

    Args:
        plan: the sweep.
        done: the walk's points so far.
        first_walk: the levels of the arm's first walk, which later ones of a search repeat; empty in the first.
    """
    from kvload.analysis.run.capacity import next_rate

    if not plan.levels and not first_walk:
        if len(done) >= plan.most:
            return None
        attempts = [(point.level, point.sent, point.met) for point in done]
        # Levels are tried again by the walks that repeat this one.
        found = next_rate(attempts, start_rps=plan.start, target=plan.target, tolerance=plan.tolerance, tries=1)
        if found is None:
            return None
        if plan.axis == "rate":
            return float(f"{found:.4g}")
        whole = float(max(round(found), 1))
        return None if any(point.level == whole for point in done) else whole
    tried = {point.level for point in done}
    if plan.levels and any(point.met < GONE * point.sent for point in done):
        return None
    return next((level for level in plan.levels or sorted(first_walk) if level not in tried), None)


class SweepRunner:
    """Makes the runs of a plan that are not there yet.

    Args:
        plan: the sweep.
        out: its folder.
        watcher: who is told.
        headers: sent with every request; not part of the plan, since they may hold keys.
        verify: check each launched server's cache before it is used.
        slots: where walks go on side by side; one after the other where there are none.
        place: where servers are started; this machine where None.
    """

    def __init__(
        self,
        plan: SweepPlan,
        out: Path,
        watcher: SweepWatcher,
        *,
        headers: Mapping[str, str] | None = None,
        verify: bool = True,
        slots: Sequence[Slot] = (),
        place: "Place | None" = None,
    ) -> None:
        self.plan = plan
        self.out = out
        self.watcher = watcher
        self.headers = headers or {}
        self.verify = verify
        self.slots = slots
        self.place = place
        self.failed: dict[str, str] = {}
        self._points = points_of(plan, out)
        self.forecast = Forecast(self._expected(plan.walks()))

    def run(self) -> dict[str, str]:
        """Walk every arm in every repeat; why arms failed, by name.

        Raises:
            KeyboardInterrupt: the user stopped it; what was measured is kept.
        """
        if self.slots:
            self._run_beside()
            return self.failed
        walks = self.plan.walks()
        lane = _Lane(self.watcher, self.forecast, self.plan.launch, Swarm())
        for number, (arm, repeat) in enumerate(walks):
            if arm.name in self.failed or self._next(arm, repeat) is None:
                continue
            try:
                self._walk(arm, repeat, walks[number + 1 :], lane)
            except ServerError as error:
                self.failed[arm.name] = error.message
                self.watcher.on_failed(arm, error)
        return self.failed

    def _run_beside(self) -> None:
        walks = [(arm, repeat) for arm, repeat in self.plan.walks() if self._next(arm, repeat) is not None]
        queues = spread(walks, len(self.slots), arm_of={walk: walk[0].name for walk in walks})
        log = PlacementLog(self.out, self.slots)
        done: set[tuple[Arm, int]] = set()
        heard = [self.watcher.for_slot(slot) if self.watcher.for_slot else self.watcher for slot in self.slots]

        def ready(walk: tuple[Arm, int]) -> bool:
            """Later walks of a search repeat the levels of the arm's first."""
            arm, repeat = walk
            return repeat == 0 or bool(self.plan.levels) or (arm, 0) not in walks or (arm, 0) in done

        def work(number: int, walk: tuple[Arm, int]) -> bool:
            arm, repeat = walk
            slot, watcher = self.slots[number], self._interruptible(heard[number], lanes)
            left = queues[number][queues[number].index(walk) + 1 :] if walk in queues[number] else []
            launch = replace(self.plan.launch, gpus=slot.gpus, cpus=slot.server_cpus)
            lane = _Lane(watcher, Forecast([]), launch, Swarm(cpus=slot.client_cpus), slot.room)
            placed = PlacedRun(arm=arm.name, repeat=repeat, slot=slot.name, began_at=time.time())
            began = time.monotonic()
            try:
                self._walk(arm, repeat, left, lane)
            except KeyboardInterrupt:
                lanes.end()
                return True
            except ServerError as error:
                if is_gone(error):
                    lanes.give_back(walk)
                    return False
                self.failed[arm.name] = error.message
                watcher.on_failed(arm, error)
                log.add(msgspec.structs.replace(placed, failed=error.message))
                return log.useless(slot, error) is None
            log.add(msgspec.structs.replace(placed, replay_s=time.monotonic() - began), slot)
            done.add(walk)
            return True

        lanes = Lanes(queues, work, wanted=lambda walk: walk[0].name not in self.failed, ready=ready)
        try:
            lanes.run()
        finally:
            log.add(None)
        for arm, repeat in walks:
            if (arm, repeat) not in done and arm.name not in self.failed:
                self.failed[arm.name] = "no GPU was left to run it on"

    def _interruptible(self, watcher: SweepWatcher, lanes: "Lanes[tuple[Arm, int]]") -> SweepWatcher:
        """The watcher, in a thread that gets no signals."""

        def on_launch(event: "LaunchEvent") -> None:
            if lanes.interrupts:
                raise KeyboardInterrupt
            watcher.on_launch(event)

        listener = replace(watcher.listener, interrupts=lambda: lanes.interrupts)
        return replace(watcher, on_launch=on_launch, listener=listener)

    def _walk(self, arm: Arm, repeat: int, later: "list[tuple[Arm, int]]", lane: _Lane) -> None:
        plan, forecast, watcher = self.plan, lane.forecast, lane.watcher
        forecast.expect([plan.launch_s(arm), *self._levels_s(arm, repeat), *self._expected(later)])
        forecast.begin()
        with serving(
            arm, lane.launch, watcher.on_launch, verify=self.verify, place=self.place, room=lane.room
        ) as server:
            forecast.end()
            while (level := self._next(arm, repeat)) is not None:
                forecast.expect([*self._levels_s(arm, repeat), *self._expected(later)])
                forecast.begin(plan.span_s(level))
                watcher.on_level(arm, level, repeat, forecast)
                point = self._measure(arm, level, repeat, server, lane)
                self._points.append(point)
                forecast.end()
                watcher.on_point(point)

    def _measure(self, arm: Arm, level: float, repeat: int, server: "Server | None", lane: _Lane) -> "Point":
        plan = self.plan
        folder = run_path(self.out, arm, level, repeat)
        set_aside(folder)
        make_folder(folder.parent)
        options = self._options(arm, level, repeat, server, folder)
        with senders(options.run, self.place, server, self.headers, lane.swarm) as (run_options, swarm):
            run = replay_once(replace(options, run=run_options, swarm=swarm), lane.watcher.listener)
        manifest = run.manifest()
        if manifest.ended == "interrupted":
            raise KeyboardInterrupt
        if manifest.partial and (error := error_of(manifest, where=str(folder))) is not None:
            raise error
        if not any(point.met for point in self._points if point.arm == arm.name):
            # At a load that is too high answers may all be late; where none came before, something else is wrong.
            check_answers(arm, manifest, folder)
        return measured(plan, run, level)

    def _options(self, arm: Arm, level: float, repeat: int, server: "Server | None", folder: Path) -> ReplayOptions:
        plan = self.plan
        seed = plan.run.schedule.seed + repeat
        open_loop = plan.axis == "rate"
        part = plan.run.schedule.arrivals
        arrivals = (
            replace(part, kind="gamma", rate=level, burstiness=plan.burstiness, seed=seed)
            if open_loop
            else replace(part, kind="once")
        )
        schedule = replace(plan.run.schedule, arrivals=arrivals, limit=plan.requests_at(level))
        sending = replace(plan.run.sending, concurrency=None if open_loop else int(level))
        return ReplayOptions(
            trace=trace_copy(plan, self.out),
            run=replace(plan.run, schedule=schedule, sending=sending),
            running=server,
            address=arm.address(insecure=plan.run.insecure),
            headers=self.headers,
            out=folder,
            arm=arm.name,
            repeat=repeat,
        )

    def _next(self, arm: Arm, repeat: int) -> float | None:
        mine = [point for point in self._points if point.arm == arm.name]
        first = [] if repeat == 0 or self.plan.levels else [point.level for point in mine if point.repeat == 0]
        return next_level(self.plan, [point for point in mine if point.repeat == repeat], first)

    def _levels_s(self, arm: Arm, repeat: int) -> list[float]:
        """Estimates of a walk's levels that are still to be tried."""
        plan = self.plan
        mine = [point for point in self._points if point.arm == arm.name]
        done = {point.level for point in mine if point.repeat == repeat}
        if plan.levels or repeat:
            planned = plan.levels or tuple(point.level for point in mine if point.repeat == 0)
            return [plan.span_s(level) for level in planned if level not in done]
        if self._next(arm, repeat) is None:
            return []
        spans = [plan.span_s(level) for level in done] or [plan.span_s(plan.start)]
        return [sum(spans) / len(spans)] * max(min(AUTO_LEVELS, plan.most) - len(done), 1)

    def _expected(self, walks: "list[tuple[Arm, int]]") -> list[float]:
        steps = []
        for arm, repeat in walks:
            if arm.name not in self.failed and (levels := self._levels_s(arm, repeat)):
                steps += [self.plan.launch_s(arm), *levels]
        return steps


def trace_copy(plan: SweepPlan, out: Path) -> Path:
    """The sweep's own copy of its trace."""
    return out / ("trace" + "".join(Path(plan.trace).suffixes[-2:]))


def run_path(out: Path, arm: Arm, level: float, repeat: int) -> Path:
    """The folder of one run within a sweep's folder."""
    slug = re.sub(r"[^A-Za-z0-9.=_-]+", "-", arm.name).strip("-")
    return out / "runs" / f"{slug}-at-{level:g}-r{repeat}"


def save(plan: SweepPlan, out: Path) -> None:
    """Keep the plan in the sweep's folder.

    Raises:
        UsageError: the folder holds something else already.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError("the folder is not empty", where=f"--out {out}", hint=f"go on with it by --resume {out}")
    make_folder(out)
    write_bytes(out / PLAN_NAME, msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def load(out: Path) -> SweepPlan:
    """Read the plan of a sweep's folder.

    Raises:
        RunDirError: there is none, or it does not parse.
    """
    path = out / PLAN_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=SweepPlan)
    except OSError as error:
        raise RunDirError(f"not a sweep's folder: {error.strerror}", where=str(path)) from error
    except msgspec.MsgspecError as error:
        raise RunDirError(f"the plan does not parse: {error}", where=str(path)) from error


def measured(plan: SweepPlan, run: RunDir, level: float, slo_limits: Mapping[str, float] | None = None) -> "Point":
    """One run as a point, without its warm-up."""
    from kvload.analysis.sweep.points import point_of

    return point_of(
        run,
        level,
        slo_limits=slo_limits,
        warm_up_s=plan.warm_up_s if plan.axis == "rate" else 0.0,
        first_left_out=plan.warm_up_at(level) if plan.axis == "concurrency" else 0,
        at_least=needed(plan.target) if plan.warm_up_s else 0,
    )


def points_of(plan: SweepPlan, out: Path, slo_limits: Mapping[str, float] | None = None) -> "list[Point]":
    """The points of all complete runs, judged by the plan's limits or others (seconds by metric)."""
    found: list[Point] = []
    unanswered: list[Point] = []
    for folder in sorted((out / "runs").glob("*-at-*-r*")) if out.exists() else []:
        level = re.search(r"-at-([0-9.e+-]+)-r[0-9]+$", folder.name)
        if level and is_complete(folder):
            run = RunDir.open(folder)
            kept = unanswered if _says_nothing(run.manifest()) else found
            kept.append(measured(plan, run, float(level[1]), slo_limits))
    # At a load that is too high all may fail; an arm of which nothing else is known was not measured.
    arms = {point.arm for point in found}
    return [*found, *(point for point in unanswered if point.arm in arms)]


def _says_nothing(manifest: RunManifest) -> bool:
    return bool(manifest.sent) and not answered(manifest)


def results(
    plan: SweepPlan,
    out: Path,
    *,
    failed: Mapping[str, str] | None = None,
    slo_limits: Mapping[str, float] | None = None,
    price_per_gpu_hour: float | None = None,
) -> "Sweep":
    """What a sweep's folder shows, complete or not.

    Args:
        plan, out: the sweep and its folder.
        failed: why arms could not be measured on.
        slo_limits: limits in seconds that replace the plan's.
        price_per_gpu_hour: replaces the plan's.

    Raises:
        RunDirError: no run is complete.
    """
    from kvload.analysis.sweep.curve import curves_of
    from kvload.analysis.sweep.model import Sweep

    points = points_of(plan, out, slo_limits)
    if not points:
        raise RunDirError("no run is complete", where=str(out), hint=f"kvload sweep --resume {out}")
    manifests = {point.arm: RunDir.open(out / "runs" / point.run).manifest() for point in reversed(points)}
    baseline = next(arm.name for arm in plan.arms if arm.baseline)
    price = plan.price_per_gpu_hour if price_per_gpu_hour is None else price_per_gpu_hour
    gpus = plan.gpus or (1 if price is not None else None)
    curves, dispersion = curves_of(
        points,
        [arm.name for arm in plan.arms],
        axis=plan.axis,
        baseline=baseline,
        target=plan.target,
        servers={arm: manifest.server for arm, manifest in manifests.items()},
        failed=failed,
        price_per_hour=price * gpus if price is not None and gpus else None,
        seed=plan.run.schedule.seed,
    )
    first = manifests[points[0].arm]
    starts = [manifest.started_at for manifest in manifests.values() if manifest.started_at is not None]
    spent_s = sum(point.duration_s or 0.0 for point in points)
    return Sweep(
        axis=plan.axis,
        trace=msgspec.structs.replace(first.trace, path=Path(plan.trace).name),
        mode=first.mode,
        limits_s=dict(plan.run.slo if slo_limits is None else slo_limits),
        target=plan.target,
        repeats=plan.repeats,
        curves=curves,
        dispersion=dispersion,
        started_at=min(starts, default=None),
        command=plan.command,
        gpus=plan.gpus,
        gpu_hours=spent_s / 3600 * plan.gpus if plan.gpus else None,
        price_per_gpu_hour=price,
        notes=(*_notes(plan, points, dispersion), *_time_notes(out)),
    )


def _time_notes(out: Path) -> list[str]:
    kept = read_placement(out)
    return [note for note in (kept.time_note() if kept else None,) if note is not None]


def _notes(plan: SweepPlan, points: "list[Point]", dispersion: float | None) -> tuple[str, ...]:
    notes = []
    if dispersion is None:
        notes.append("each load was run once: what drifts between equal runs is not in the intervals (--repeats 3)")
    elif dispersion > 1.5:
        notes.append(
            f"equal runs differ {dispersion**0.5:.2g} times as much as counting explains; the intervals hold that"
        )
    bound = [point for point in points if point.client_bound]
    if bound:
        notes.append(
            f"the client was the limit in {len(bound)} of {len(points)} runs "
            f"(from {min(point.level for point in bound):g} on): raise --workers"
        )
    short = sorted(
        {
            point.level
            for point in points
            if plan.axis == "rate" and point.sent + point.warm_up < math.floor(point.level * plan.duration_s)
        }
    )
    if short:
        notes.append(
            f"the trace is too short to keep {short[0]:g}/s up for {plan.duration_s:g} s: "
            "queues had less time to build up than they would in service"
        )
    return tuple(notes)
