"""The runs of a comparison side by side: each on GPUs and processors of its own, launches beside what is measured."""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvload.errors import KvloadError, MachineError, ServerError
from kvload.experiment.lanes import Lanes
from kvload.experiment.placement import INTERRUPTED, PlacementLog, is_cards, is_gone
from kvload.experiment.plan import Arm, ExperimentPlan, PlannedRun, is_complete
from kvload.experiment.run import Sent, Took, Watcher, make_run, pending, run_path
from kvload.experiment.slots import Slot, key_of, may_move, spread
from kvload.rundir import RunDir
from kvload.servers.launcher import LaunchEvent
from kvload.servers.lifecycle.starting import ServerDiedError

if TYPE_CHECKING:
    pass

HEAD_START_S = 60.0
"""How long the other lanes wait at most until the first server has begun to start."""


@dataclass(frozen=True)
class BesideWatcher:
    """Who is told how runs go on that are made side by side.

    Attributes:
        on_run: a run begins in a slot, with its number (from 1) among all, how many these are, and how many are still
            to be made, itself among them.
        for_run: who is told of that run alone: what its server does until it is ready, what its replay does.
        on_notice: a sentence about all of it.
    """

    on_run: Callable[[PlannedRun, Slot, int, int, int], None] = lambda _run, _slot, _number, _of, _left: None
    for_run: Callable[[PlannedRun, Slot], Watcher] = lambda _run, _slot: Watcher()
    on_notice: Callable[[str], None] = lambda _text: None


def queues_of(plan: ExperimentPlan, out: Path, slots: Sequence[Slot]) -> list[list[PlannedRun]]:
    """Which of the runs that are not complete each slot makes, in their order; see :func:`.slots.spread`."""
    before: Counter[tuple[Hashable, int]] = Counter(
        (run.arm, number) for run, number in _made_at(plan, out, slots).items()
    )
    arm_of = {run: run.arm for run in plan.runs()}
    return spread(pending(plan, out), len(slots), arm_of=arm_of, apart=_apart(plan), before=before)


def _apart(plan: ExperimentPlan) -> dict[PlannedRun, PlannedRun]:
    """The other run of each A/A pair."""
    pair = {arm.name for arm in plan.arms if arm.baseline or arm.floor}
    of_pair = [run for run in plan.runs() if run.arm in pair]
    return {run: other for run in of_pair for other in of_pair if other.arm != run.arm and other.repeat == run.repeat}


def _made_at(plan: ExperimentPlan, out: Path, slots: Sequence[Slot]) -> dict[PlannedRun, int]:
    """The slot of each complete run, where it is one of these."""
    numbers = {slot.key: slot.number for slot in slots}
    done = [run for run in plan.runs() if is_complete(run_path(out, run))]
    places = {run: numbers.get(key_of(RunDir.open(run_path(out, run)).manifest().server)) for run in done}
    return {run: number for run, number in places.items() if number is not None}


def run_beside(
    plan: ExperimentPlan, out: Path, slots: Sequence[Slot], watcher: BesideWatcher, sent: Sent | None = None
) -> dict[str, KvloadError]:
    """Make every run that is not complete, as many at a time as there are slots.

    An arm that fails is not tried again, and the others go on; so they do where the baseline's server dies after it
    once served. A slot whose GPU is at fault, or in which two arms failed one after the other, is left to itself, and
    the others take over its runs; so they do with one that a lost node never began.

    Args:
        slots: see :func:`.slots.make_slots`.

    Returns:
        what went wrong, by the arm's name.

    Raises:
        KeyboardInterrupt: the user interrupted; what was measured is kept.
        ServerError: the baseline's server did not start or failed its verification.
        MachineError: this machine has no room for the runs.
    """
    return _Beside(plan, out, slots, watcher, sent or Sent()).run()


class _Beside:
    def __init__(
        self, plan: ExperimentPlan, out: Path, slots: Sequence[Slot], watcher: BesideWatcher, sent: Sent
    ) -> None:
        self.plan, self.out, self.slots, self.watcher, self.sent = plan, out, slots, watcher, sent
        self.failed: dict[str, KvloadError] = {}
        self.baseline_error: KvloadError | None = None
        self._all = plan.runs()
        self._left = pending(plan, out)
        self._begun: set[PlannedRun] = set()
        self._head_start = threading.Event()
        self._log = PlacementLog(out, slots)
        queues = queues_of(plan, out, slots)
        self._at = _made_at(plan, out, slots) | {run: lane for lane, queue in enumerate(queues) for run in queue}
        self._apart = _apart(plan)
        self.lanes: Lanes[PlannedRun] = Lanes(
            queues, self._work, wanted=lambda run: run.arm not in self.failed, may_move=self._may_move
        )

    def run(self) -> dict[str, KvloadError]:
        try:
            self.lanes.run()
            if self.baseline_error is None:
                self._run_alone()
        finally:
            self._log.save()
        if self.baseline_error is not None:
            self.baseline_error.hint = self.baseline_error.hint or f"go on with kvload compare --resume {self.out}"
            raise self.baseline_error
        for run in pending(self.plan, self.out):
            self.failed.setdefault(run.arm, ServerError("no GPU was left to run it on"))
        return self.failed

    def _may_move(self, run: PlannedRun, source: int, target: int) -> bool:
        other = self._apart.get(run)
        if other is not None and self._at.get(other) == target:
            return False
        return may_move(run, source, target, at=self._at, arm_of={each: each.arm for each in self._at})

    def _work(self, lane: int, run: PlannedRun) -> bool:
        self._at[run] = lane
        if run != self._all[0] and self._is_pending(self._all[0]):
            # The baseline's figures are measured once, by its own server and not by another beside it.
            self._head_start.wait(HEAD_START_S)
        try:
            return self._make(self.slots[lane], run)
        finally:
            self._head_start.set()

    def _is_pending(self, run: PlannedRun) -> bool:
        return not is_complete(run_path(self.out, run))

    def _make(self, slot: Slot, run: PlannedRun) -> bool:
        """Make one run; False where the slot is of no more use."""
        number = self._all.index(run) if run in self._all else len(self._all)
        left = sum(one == run or one.arm not in self.failed for one in self._left if one not in self._begun)
        self._begun.add(run)
        self.watcher.on_run(run, slot, number + 1, len(self._all) + self.plan.alone, left)
        placed = self._log.begin(run.arm, run.repeat, slot, alone=run == self.plan.alone_run())
        try:
            took = self._make_in(slot, run, self.watcher.for_run(run, slot))
        except KeyboardInterrupt:
            self.lanes.end()
            self._log.add_lost(placed, INTERRUPTED)
            return True
        except MachineError:
            raise
        except KvloadError as error:
            if is_gone(error):
                self.lanes.give_back(run)
                self.watcher.on_notice(f"nothing more is run on {slot.name}: {error.message}")
                return False
            self._log.add_lost(placed, error.message)
            return self._failed(slot, run, error)
        self._log.add(placed.with_parts(took.launch_s, took.replay_s, took.stop_s), slot)
        return True

    def _make_in(self, slot: Slot, run: PlannedRun, heard: Watcher) -> Took:
        def on_launch(event: LaunchEvent) -> None:
            if self.lanes.interrupts:
                raise KeyboardInterrupt
            if event.kind != "note":
                self._head_start.set()
            heard.on_launch(event)

        listener = replace(heard.listener, interrupts=lambda: self.lanes.interrupts)
        launch = replace(self.plan.launch, gpus=slot.gpus, cpus=slot.server_cpus)
        sent = replace(self.sent, swarm=replace(self.sent.swarm, cpus=slot.client_cpus))
        return make_run(
            self.plan, self.out, run, launch, replace(heard, on_launch=on_launch, listener=listener), sent, slot.room
        )

    def _failed(self, slot: Slot, run: PlannedRun, error: KvloadError) -> bool:
        arm = self.plan.arm(run.arm)
        why = self._log.useless(slot, error)
        self.failed[arm.name] = error
        if (
            arm.baseline
            and not is_cards(error)
            and not isinstance(error, ServerDiedError)
            and not self._has_run(arm, but=run)
        ):
            self.baseline_error = error
            self.lanes.end()
        self.watcher.on_notice(f"the arm '{arm.name}' failed on {slot.name}, the others go on: {error}")
        if why is not None:
            self.watcher.on_notice(f"nothing more is run on {slot.name}: {why}")
        return why is None

    def _has_run(self, arm: Arm, but: PlannedRun | None = None) -> bool:
        return any(is_complete(run_path(self.out, run)) for run in self._all if run.arm == arm.name and run != but)

    def _run_alone(self) -> None:
        """The baseline once more with nothing beside it, where that can show something."""
        run = self.plan.alone_run()
        if not self.plan.alone or self.failed or not self._is_pending(run) or not self._has_run(self.plan.arm(run.arm)):
            return
        self.lanes = Lanes([[run]], lambda _lane, job: self._make(self.slots[0], job))
        self.lanes.run()
