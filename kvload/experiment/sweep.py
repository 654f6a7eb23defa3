"""A sweep: every method is launched and its load raised step by step, to find what it carries within the limits.

One launch serves all levels of a walk. Repeats are walks of their own, with launches of their own and the arms in
rotated order, so that what drifts with time does not fall on one arm. A walk stops where attainment is gone. Everything
is kept in one folder and can be gone on with::

    OUT/sweep.json            SweepPlan
    OUT/trace.jsonl           a copy of the trace
    OUT/runs/NAME             one run folder for each arm, level and repeat
    OUT/results.json ...      what was found (written by the command)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvload.errors import KvloadError, MachineError
from kvload.experiment.forecast import Forecast
from kvload.experiment.lanes import Lanes
from kvload.experiment.options import ReplayOptions
from kvload.experiment.placement import INTERRUPTED, PlacementLog, is_gone
from kvload.experiment.plan import Arm, set_aside
from kvload.experiment.replay import Listener
from kvload.experiment.run import check_answers, replay_to_its_end, senders, serving
from kvload.experiment.slots import Slot, may_move, spread
from kvload.private import make_folder
from kvload.rundir import RunDir
from kvload.servers.engines.base import LaunchRequest
from kvload.workloads.run.plan import Swarm

if TYPE_CHECKING:
    from kvload.analysis.sweep.model import Point
    from kvload.servers.launcher import LaunchEvent
    from kvload.servers.lifecycle.places import Place, Room, Server

from kvload.experiment.sweep_plan import AUTO_LEVELS, SweepPlan, next_level, run_path, trace_copy
from kvload.experiment.sweep_results import measured, points_of


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


class SweepRunner:
    """Makes the runs of a plan that are not there yet.

    Args:
        plan: the sweep.
        out: its folder.
        watcher: who is told.
        headers: sent with every request; not part of the plan, since they may hold keys.
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
        slots: Sequence[Slot] = (),
        place: "Place | None" = None,
    ) -> None:
        self.plan = plan
        self.out = out
        self.watcher = watcher
        self.headers = headers or {}
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
        slot = Slot(0, self.plan.launch.gpus)
        log = PlacementLog(self.out, (slot,))
        for number, (arm, repeat) in enumerate(walks):
            if arm.name in self.failed or self._next(arm, repeat) is None:
                continue
            placed, began = log.begin(arm.name, repeat, slot), time.monotonic()
            try:
                self._walk(arm, repeat, walks[number + 1 :], lane)
            except KeyboardInterrupt:
                log.add_cut(placed.with_parts(None, time.monotonic() - began, None), INTERRUPTED)
                raise
            except MachineError:
                raise
            except KvloadError as error:
                log.add_cut(placed.with_parts(None, time.monotonic() - began, None), error.message)
                self.failed[arm.name] = error.message
                self.watcher.on_failed(arm, error)
            else:
                log.add(placed.with_parts(None, time.monotonic() - began, None), slot)
        return self.failed

    def queues(self) -> list[list[tuple[Arm, int]]]:
        """Walks that are not complete, by the slot that makes them; none where one follows the other."""
        walks = self._unfinished() if self.slots else []
        return spread(walks, len(self.slots), arm_of={walk: walk[0].name for walk in walks})

    def _unfinished(self) -> list[tuple[Arm, int]]:
        return [(arm, repeat) for arm, repeat in self.plan.walks() if self._next(arm, repeat) is not None]

    def _run_beside(self) -> None:
        walks, queues = self._unfinished(), self.queues()
        log = PlacementLog(self.out, self.slots)
        done: set[tuple[Arm, int]] = set()
        heard = [self.watcher.for_slot(slot) if self.watcher.for_slot else self.watcher for slot in self.slots]

        def ready(walk: tuple[Arm, int]) -> bool:
            """Later walks of a search repeat the levels of the arm's first."""
            arm, repeat = walk
            return repeat == 0 or bool(self.plan.levels) or (arm, 0) not in walks or (arm, 0) in done

        def work(number: int, walk: tuple[Arm, int]) -> bool:
            arm, repeat = walk
            at[walk] = number
            slot, watcher = self.slots[number], self._interruptible(heard[number], lanes)
            left = queues[number][queues[number].index(walk) + 1 :] if walk in queues[number] else []
            launch = replace(self.plan.launch, gpus=slot.gpus, cpus=slot.server_cpus)
            lane = _Lane(watcher, Forecast([]), launch, Swarm(cpus=slot.client_cpus), slot.room)
            placed = log.begin(arm.name, repeat, slot)
            began = time.monotonic()
            try:
                self._walk(arm, repeat, left, lane)
            except KeyboardInterrupt:
                lanes.end()
                log.add_cut(placed.with_parts(None, time.monotonic() - began, None), INTERRUPTED)
                return True
            except MachineError:
                raise
            except KvloadError as error:
                if is_gone(error):
                    lanes.give_back(walk)
                    return False
                self.failed[arm.name] = error.message
                watcher.on_failed(arm, error)
                log.add_cut(placed.with_parts(None, time.monotonic() - began, None), error.message)
                return log.useless(slot, error) is None
            log.add(placed.with_parts(None, time.monotonic() - began, None), slot)
            done.add(walk)
            return True

        at = {walk: number for number, queue in enumerate(queues) for walk in queue}
        arm_of = {walk: walk[0].name for walk in at}

        def movable(walk: tuple[Arm, int], source: int, target: int) -> bool:
            return may_move(walk, source, target, at=at, arm_of=arm_of)

        lanes = Lanes(queues, work, wanted=lambda walk: walk[0].name not in self.failed, ready=ready, may_move=movable)
        try:
            lanes.run()
        finally:
            log.save()
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
        with serving(arm, lane.launch, watcher.on_launch, place=self.place, room=lane.room) as server:
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
            options = replace(options, run=run_options, swarm=swarm)
            manifest = replay_to_its_end(options, server, lane.watcher.listener)
        if not any(point.met for point in self._points if point.arm == arm.name):
            # At a load that is too high answers may all be late; where none came before, something else is wrong.
            check_answers(arm, manifest, folder)
        return measured(plan, RunDir.open(folder), level)

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
