"""What ``kvload compare`` shows: the plan, the runs as they are made, the comparison, the gates."""

import dataclasses
import json
import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvload.errors import KvloadError, UsageError
from kvload.terminal import plain

if TYPE_CHECKING:
    from kvload.analysis.gates import Gate
    from kvload.analysis.records.pairs import ArmRuns
    from kvload.cli.options import BesideFlags
    from kvload.cli.replay_display import Display
    from kvload.experiment.comparison import Outlook
    from kvload.experiment.plan import ExperimentPlan, PlannedRun
    from kvload.experiment.run import Sent
    from kvload.experiment.slots import Slot
    from kvload.servers.launcher import LaunchEvent
    from kvload.workloads.run.live import Progress
    from kvload.workloads.run.plan import Swarm


@dataclass(frozen=True)
class Outcome:
    """What is wanted of a comparison once its runs are there."""

    conditions: "tuple[Gate, ...]" = ()
    as_json: bool = False
    limits: Mapping[str, float] | None = None
    details: bool = False


def make_runs(
    plan: "ExperimentPlan",
    folder: Path,
    outcome: Outcome,
    *,
    is_new: bool,
    headers: Mapping[str, str],
    arm_headers: Mapping[str, Mapping[str, str]],
    swarm: "Swarm",
    dry_run: bool,
    quiet: bool,
) -> None:
    """Make an experiment's runs, or those that are missing, then show it.

    Raises:
        KeyboardInterrupt: the user stopped it; the folder can be resumed.
    """
    from kvload.cli.replay_display import Display
    from kvload.cli.server_readings import gpus_of_its_own, slots_for
    from kvload.errors import PairingError
    from kvload.experiment import comparison, preflight
    from kvload.experiment.run import Sent, trace_copy
    from kvload.experiment.slots import remarks
    from kvload.servers.launcher import place_of

    place = None if plan.place == "local" else place_of(plan.place, plan.place_address)
    sent = Sent(headers, arm_headers, swarm, place)
    slots = slots_for(plan.gpus, plan.per_arm, plan.run.sending.workers, place)
    if slots and swarm.web_port is not None:
        raise UsageError("runs side by side have no page", where="--web, --gpus", hint="--serial has one")
    for condition in outcome.conditions:
        print(condition, file=sys.stderr)
    found = comparison.outlook(plan, folder, is_new=is_new, lanes=max(len(slots), 1))
    _show_outlook(found, plan, _places(plan, folder, slots))
    for remark in remarks(slots, plan.gpus, plan.per_arm):
        print(remark, file=sys.stderr)
    trace = Path(plan.trace) if is_new else trace_copy(plan, folder)
    wanted = len(found.runs)
    for note in preflight.check(plan, folder, trace, runs=wanted, headers=headers, arm_headers=arm_headers):
        print(note, file=sys.stderr)
    if dry_run:
        return
    launches = place is None and any(arm.method is not None for arm in plan.arms)
    with gpus_of_its_own(launches, slots, plan.launch, plan.per_arm, folder), Display(quiet=quiet) as display:
        if is_new:
            comparison.keep(plan, folder)
        try:
            failed = (_beside if slots else _serial)(plan, folder, found, sent, display, slots)
        except KeyboardInterrupt:
            left = comparison.outlook(plan, folder, is_new=False)
            kept = len(plan.runs()) - len(left.runs)
            display.notice(
                f"interrupted: {kept} of {len(plan.runs())} runs are kept in {folder};"
                f" go on with kvload compare --resume {folder}"
            )
            raise
    if failed and not _baseline_ran(plan, folder):
        name, error = next(iter(failed.items()))
        error.hint = error.hint or f"go on with kvload compare --resume {folder}"
        error.message = f"the arm '{name}' failed: {error.message}"
        raise error
    try:
        show_experiment(plan, folder, outcome)
    except PairingError:
        # what an arm failed of says more than that nothing could be judged
        if not failed:
            raise
    if failed:
        first, *others = failed.items()
        for name, error in others:
            print(plain(f"the arm '{name}' failed: {error}"), file=sys.stderr)
        first[1].message = f"the arm '{first[0]}' failed: {first[1].message}"
        first[1].hint = first[1].hint or f"go on with kvload compare --resume {folder}"
        raise first[1]


def replaced(plan: "ExperimentPlan", flags: "BesideFlags", gpus: str | None) -> "ExperimentPlan":
    """The plan of a folder, gone on with as it began or, where asked, on other GPUs, or one run after the other.

    Raises:
        UsageError: these GPUs cannot be used, or those of the folder cannot any more.
    """
    import msgspec

    from kvload.cli.server_readings import resumed

    place = (plan.place, plan.place_address)
    was = resumed(plan.launch, plan.gpus, plan.per_arm, place, flags, gpus, plan.arms)
    return msgspec.structs.replace(
        plan,
        launch=was.launch,
        gpus=was.gpus,
        per_arm=was.per_arm,
        alone=plan.alone and (was.place != "local" or len(was.gpus) // was.per_arm > 1),
        place=was.place,
        place_address=was.address,
    )


def _baseline_ran(plan: "ExperimentPlan", folder: Path) -> bool:
    from kvload.experiment.run import completed

    done = completed(plan, folder)
    return any(done[arm.name] for arm in plan.arms if arm.baseline)


def _serial(
    plan: "ExperimentPlan",
    folder: Path,
    found: "Outlook",
    sent: "Sent",
    display: "Display",
    _slots: "Sequence[Slot]",
) -> "dict[str, KvloadError]":
    from kvload.experiment.forecast import Forecast, left_text
    from kvload.experiment.replay import Listener
    from kvload.experiment.run import Watcher, run_all

    forecast = Forecast([found.total_s / max(len(found.runs), 1)] * len(found.runs))

    def on_run(run: "PlannedRun", number: int, of: int) -> None:
        forecast.end()
        forecast.begin()
        display.within(lambda: f"run {number}/{of}, {left_text(forecast)}")
        display.notice(f"run {number}/{of}, {left_text(forecast)}: {run.arm}, repeat {run.repeat + 1}")

    def on_launch(event: "LaunchEvent") -> None:
        if event.kind in {"note", "ready"}:
            display.notice(f"  {event.text}")

    if sent.swarm.web_port is not None:
        display.notice(f"the page of each run is at http://{sent.swarm.web_host}:{sent.swarm.web_port}/kvload/")

    def on_notice(text: str) -> None:
        # what holds for all runs was said before the first
        if text != found.mode_reason:
            display.notice(f"  {text}")

    watcher = Watcher(on_run, on_launch, Listener(display.progress, on_notice))
    return run_all(plan, folder, watcher, sent)


def _beside(
    plan: "ExperimentPlan",
    folder: Path,
    found: "Outlook",
    sent: "Sent",
    display: "Display",
    slots: "Sequence[Slot]",
) -> "dict[str, KvloadError]":
    from kvload.experiment.beside import BesideWatcher, run_beside
    from kvload.experiment.forecast import time_text
    from kvload.experiment.replay import Listener
    from kvload.experiment.run import Watcher

    lock = threading.RLock()
    began = time.monotonic()
    since: dict[Slot, float] = {}
    took_s: list[float] = []
    one_s = found.total_s * len(slots) / max(len(found.runs), 1)

    def notice(text: str) -> None:
        with lock:
            display.notice(text)

    def on_run(run: "PlannedRun", slot: "Slot", number: int, of: int, left: int) -> None:
        with lock:
            now = time.monotonic()
            if slot in since:
                took_s.append(now - since[slot])
            since[slot] = now
            each_s = sum(took_s) / len(took_s) if took_s else one_s
            left_s = each_s * (math.ceil(left / len(slots)) + plan.alone)
            which = "alone" if run.folder.startswith("alone-") else f"repeat {run.repeat + 1}"
            total_s = time.monotonic() - began + left_s
            told = f", {time_text(left_s)} left of about {time_text(total_s)}" if which != "alone" else ""
            display.within(lambda: f"run {number}/{of}{told}")
            display.notice(f"run {number}/{of}{told}: {run.arm}, {which}, on {slot.name}")

    def for_run(run: "PlannedRun", slot: "Slot") -> Watcher:
        name = f"{slot.name}, {run.arm}"

        def on_launch(event: "LaunchEvent") -> None:
            if event.kind in {"note", "ready"}:
                notice(f"  {name}: {event.text}")

        def on_progress(progress: "Progress") -> None:
            with lock:
                display.progress(progress, slot.name)

        return Watcher(on_launch=on_launch, listener=Listener(on_progress, lambda text: notice(f"  {name}: {text}")))

    return run_beside(plan, folder, slots, BesideWatcher(on_run, for_run, notice), sent)


def show_experiment(plan: "ExperimentPlan", folder: Path, outcome: Outcome) -> None:
    """Show the comparison of an experiment's complete runs and write its files into its folder.

    Raises:
        GateFailedError: a ``--fail-if`` condition holds.
    """
    from kvload.experiment.comparison import experiment_arms

    show(experiment_arms(plan, folder), folder, outcome, plan=plan)


def show(
    arms: "Sequence[ArmRuns]", out: Path | None, outcome: Outcome, *, plan: "ExperimentPlan | None" = None
) -> None:
    """Compare, print, write the files (where there is a folder), and judge the gates.

    Args:
        plan: the experiment the runs belong to: the answers that got worse are then written as a trace of their own.

    Raises:
        GateFailedError: a ``--fail-if`` condition holds.
    """
    from kvload.analysis import gates
    from kvload.analysis.comparison.compare import compare
    from kvload.analysis.report import compare_json, compare_terminal
    from kvload.errors import PairingError
    from kvload.experiment.comparison import write_files, write_worse_answers
    from kvload.experiment.course import course_of
    from kvload.terminal import console

    comparison = compare(arms, slo_limits=outcome.limits or None)
    if plan is not None and out is not None:
        comparison = dataclasses.replace(comparison, course=course_of(plan, out))
    as_dict = compare_json.as_dict(comparison)
    if outcome.as_json:
        json.dump(as_dict, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        compare_terminal.render(comparison, console(), details=outcome.details)
        if not outcome.details:
            print("\nall that this rests on: --details" + (", or the page" if out is not None else ""))
    if out is not None:
        page, *others = write_files(comparison, as_dict, out)
        print(f"wrote {page}, {', '.join(path.name for path in others)}", file=sys.stderr)
        if plan is not None:
            written, target = write_worse_answers(comparison, arms, plan, out)
            if written:
                print(f"wrote {written} requests with worse answers to {target}", file=sys.stderr)
    gates.check(outcome.conditions, gates.comparison_values(comparison))
    if comparison.judged_nothing:
        raise PairingError(
            "nothing could be judged: neither latency nor service, lengths or quality was measured on both sides",
            hint="the notes say why requests were left out",
        )


def _places(plan: "ExperimentPlan", folder: Path, slots: "Sequence[Slot]") -> "dict[PlannedRun, str]":
    """Where each run is going to be made; empty where one follows the other."""
    from kvload.experiment.beside import queues_of

    queues = queues_of(plan, folder, slots) if slots else []
    return {run: slot.name for slot, queue in zip(slots, queues, strict=True) for run in queue}


def _show_outlook(found: "Outlook", plan: "ExperimentPlan", places: "Mapping[PlannedRun, str]") -> None:
    lines = [
        found.mode_reason,
        f"{found.requests} requests over {found.span_s:.0f} s, {len(plan.arms)} arms, {len(found.runs)} runs:",
    ]
    for number, run in enumerate(found.runs, 1):
        place = f" on {places[run]}" if run in places else ""
        lines.append(f"  {number:3d}. {run.arm} (repeat {run.repeat + 1}){place}")
    if plan.alone:
        lines.append("  and the baseline once more with nothing beside it")
    lines.append(f"about {found.total_s / 60:.1f} min, and the time the last answers of each run take")
    print("\n".join(lines), file=sys.stderr, flush=True)
