"""What ``kvload compare`` shows: the plan, the runs as they are made, the comparison, the gates."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvload.terminal import plain

if TYPE_CHECKING:
    from kvload.analysis.gates import Gate
    from kvload.analysis.records.pairs import ArmRuns
    from kvload.experiment.comparison import Outlook
    from kvload.experiment.plan import ExperimentPlan, PlannedRun
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
    verify: bool,
    swarm: "Swarm",
    dry_run: bool,
    quiet: bool,
) -> None:
    """Make an experiment's runs, or those that are missing, then show it.

    Raises:
        KeyboardInterrupt: the user stopped it; the folder can be resumed.
    """
    from kvload.cli.replay_display import Display
    from kvload.errors import PairingError
    from kvload.experiment import comparison, preflight
    from kvload.experiment.forecast import Forecast, time_text
    from kvload.experiment.replay import Listener
    from kvload.experiment.run import Watcher, run_all, trace_copy

    for condition in outcome.conditions:
        print(condition, file=sys.stderr)
    found = comparison.outlook(plan, folder, is_new=is_new)
    _show_outlook(found, plan)
    forecast = Forecast([found.total_s / max(len(found.runs), 1)] * len(found.runs))
    trace = Path(plan.trace) if is_new else trace_copy(plan, folder)
    wanted = len(found.runs)
    for note in preflight.check(plan, folder, trace, runs=wanted, headers=headers, arm_headers=arm_headers):
        print(note, file=sys.stderr)
    if dry_run:
        return
    if is_new:
        comparison.keep(plan, folder)
    with Display(quiet=quiet) as display:

        def on_run(run: "PlannedRun", number: int, of: int) -> None:
            forecast.end()
            forecast.begin()
            left = f"about {time_text(forecast.left_s)} left"
            display.notice(f"run {number}/{of}: {run.arm}, repeat {run.repeat + 1}; {left}")

        def on_launch(event: Any) -> None:
            if event.kind in {"note", "ready"}:
                display.notice(f"  {event.text}")

        if swarm.web_port is not None:
            display.notice(f"the page of each run is at http://{swarm.web_host}:{swarm.web_port}/kvload/")
        watcher = Watcher(on_run, on_launch, Listener(display.progress, lambda text: display.notice(f"  {text}")))
        try:
            failed = run_all(
                plan, folder, watcher, headers=headers, arm_headers=arm_headers, verify=verify, swarm=swarm
            )
        except KeyboardInterrupt:
            display.notice(f"interrupted: finished runs are kept; go on with kvload compare --resume {folder}")
            raise
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
        raise first[1]


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
    from kvload.terminal import console

    comparison = compare(arms, slo_limits=outcome.limits or None)
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


def _show_outlook(found: "Outlook", plan: "ExperimentPlan") -> None:
    lines = [
        found.mode_reason,
        f"{found.requests} requests over {found.span_s:.0f} s, {len(plan.arms)} arms, {len(found.runs)} runs:",
    ]
    lines += [f"  {number:3d}. {run.arm} (repeat {run.repeat + 1})" for number, run in enumerate(found.runs, 1)]
    lines.append(f"about {found.total_s / 60:.1f} min, and the time the last answers of each run take")
    print("\n".join(lines), file=sys.stderr, flush=True)
