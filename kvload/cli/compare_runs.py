"""What ``kvload compare`` does with a plan or with run folders: make the runs, show the comparison, judge the gates."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvload.errors import UsageError

if TYPE_CHECKING:
    from kvload.analysis.gates import Gate
    from kvload.analysis.records.pairs import ArmRuns
    from kvload.experiment.plan import ExperimentPlan, PlannedRun


@dataclass(frozen=True)
class Outcome:
    """What is wanted of a comparison once its runs are there."""

    conditions: "tuple[Gate, ...]" = ()
    as_json: bool = False
    limits: Mapping[str, float] | None = None


def make_runs(
    plan: "ExperimentPlan | None",
    out: Path | None,
    headers: Mapping[str, str],
    outcome: Outcome,
    *,
    verify: bool,
    dry_run: bool,
) -> None:
    """Make a new experiment (``plan``) or go on with the one in ``out``, then show it.

    Raises:
        KeyboardInterrupt: the user stopped it; the folder can be resumed.
    """
    from kvload.cli.replay_display import Display
    from kvload.experiment import plan as plans
    from kvload.experiment.replay import Listener
    from kvload.experiment.run import Watcher, pending, run_all, trace_copy

    folder = out or Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-compare"
    is_new = plan is not None
    wanted = plan or plans.load(folder)
    trace = Path(wanted.trace) if is_new else trace_copy(wanted, folder)
    for condition in outcome.conditions:
        print(condition, file=sys.stderr)
    _show_plan(wanted, trace, wanted.runs() if is_new else pending(wanted, folder))
    if dry_run:
        return
    if is_new:
        plans.save(wanted, folder)
        shutil.copyfile(wanted.trace, trace_copy(wanted, folder))
    with Display() as display:

        def told(run: "PlannedRun", number: int, of: int) -> None:
            display.notice(f"[{number}/{of}] {run.arm}, repeat {run.repeat + 1}")

        def launching(event: Any) -> None:
            if event.kind in {"note", "ready"}:
                display.notice(f"  {event.text}")

        watcher = Watcher(told, launching, Listener(display.progress, lambda text: display.notice(f"  {text}")))
        try:
            run_all(wanted, folder, watcher, headers=headers, verify=verify)
        except KeyboardInterrupt:
            display.notice(f"interrupted: go on with kvload compare --resume {folder}")
            raise
    show_experiment(wanted, folder, outcome)


def show_experiment(plan: "ExperimentPlan", folder: Path, outcome: Outcome) -> None:
    """Show the comparison of an experiment's complete runs and write its files into its folder.

    Raises:
        GateFailedError: a ``--fail-if`` condition holds.
    """
    from kvload.experiment.run import trace_copy

    show(
        experiment_arms(plan, folder),
        folder,
        outcome,
        trace=trace_copy(plan, folder),
        trace_format=plan.replay["format"],
    )


def experiment_arms(plan: "ExperimentPlan", folder: Path) -> "list[ArmRuns]":
    """The arms of a finished experiment."""
    from kvload.analysis.records.pairs import ArmRuns
    from kvload.experiment.run import completed

    runs = completed(plan, folder)
    return [ArmRuns(arm.name, runs[arm.name], baseline=arm.baseline, floor=arm.floor) for arm in plan.arms]


def existing_arms(folders: Sequence[Path], baseline: str | None, floor: Path | None) -> "list[ArmRuns]":
    """Run folders as arms of one run each.

    Raises:
        UsageError: fewer than two runs, or a baseline that is not among them.
        RunDirError: a folder holds no run.
    """
    from kvload.analysis.records.pairs import ArmRuns
    from kvload.rundir import RunDir

    runs = {path: RunDir.open(path) for path in folders}
    if len(runs) < 2:
        raise UsageError("a comparison needs two run folders", hint="kvload compare RUN_A RUN_B")
    names = _names(runs)
    base = baseline or next(iter(names.values()))
    if base not in names.values():
        raise UsageError(f"the baseline '{base}' is not among: {', '.join(names.values())}", where="--baseline")
    arms = [ArmRuns(names[path], (run,), baseline=names[path] == base) for path, run in runs.items()]
    if floor is not None:
        arms.append(ArmRuns(f"{base} (again)", (RunDir.open(floor),), floor=True))
    return arms


def show(
    arms: "Sequence[ArmRuns]",
    out: Path | None,
    outcome: Outcome,
    *,
    trace: Path | None = None,
    trace_format: str | None = None,
) -> None:
    """Compare, print, write the files (where there is a folder), and judge the gates.

    Args:
        trace, trace_format: what the runs replayed, where it is at hand: the answers that got worse are then written
            as a trace of their own.

    Raises:
        GateFailedError: a ``--fail-if`` condition holds.
    """

    from kvload.analysis import gates
    from kvload.analysis.comparison.compare import compare
    from kvload.analysis.report import compare_json, compare_terminal, html_compare
    from kvload.experiment.negatives import NEGATIVES_NAME, write_negatives
    from kvload.terminal import console

    comparison = compare(arms, slo_limits=outcome.limits or None)
    as_dict = compare_json.as_dict(comparison)
    if outcome.as_json:
        json.dump(as_dict, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        compare_terminal.render(comparison, console())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        page = out / "comparison.html"
        page.write_text(html_compare.render(comparison), encoding="utf-8")
        text = json.dumps(as_dict, indent=2, ensure_ascii=False)
        (out / "comparison.json").write_text(text + "\n", encoding="utf-8")
        compare_json.write_csv(comparison, out)
        print(f"wrote {page}, comparison.json, pairs.csv and arms.csv", file=sys.stderr)
        if trace is not None:
            written = write_negatives(comparison, list(arms), trace, trace_format, out / NEGATIVES_NAME)
            if written:
                print(f"wrote {written} requests with worse answers to {out / NEGATIVES_NAME}", file=sys.stderr)
    gates.check(outcome.conditions, gates.comparison_values(comparison))


def _names(runs: Mapping[Path, Any]) -> dict[Path, str]:
    """What to call each run: its arm, else its method, else its folder; the folder where that is not unique."""
    names = {}
    for path, run in runs.items():
        manifest = run.manifest()
        names[path] = manifest.arm or manifest.server.method or path.name
    if len(set(names.values())) < len(names):
        names = {path: path.name for path in runs}
    if len(set(names.values())) < len(names):
        names = {path: str(path) for path in runs}
    return names


def _show_plan(plan: "ExperimentPlan", trace: Path, runs: "Sequence[PlannedRun]") -> None:
    import msgspec

    from kvload.workloads.schedule.arrivals import ArrivalSpec
    from kvload.workloads.schedule.build import load_schedule

    schedule = load_schedule(
        trace,
        format=plan.replay.get("format"),
        time_unit=plan.replay.get("time_unit"),
        block_tokens=plan.replay.get("block_tokens"),
        model="",
        mode=plan.replay.get("mode", "free"),
        arrivals=msgspec.convert(plan.replay.get("arrivals", {}), ArrivalSpec),
        limit=plan.replay.get("limit"),
        scale_input=plan.replay.get("scale_input", 1.0),
    )
    total_s = plan.estimate_s(schedule.span_s, plan.launch.get("engine") or "auto") * len(runs) / len(plan.runs())
    lines = [
        schedule.mode_reason,
        f"{len(schedule.planned)} requests over {schedule.span_s:.0f} s, {len(plan.arms)} arms, {len(runs)} runs:",
    ]
    lines += [f"  {number:3d}. {run.arm} (repeat {run.repeat + 1})" for number, run in enumerate(runs, 1)]
    lines.append(f"about {total_s / 60:.1f} min, and the time the last answers of each run take")
    print("\n".join(lines), file=sys.stderr, flush=True)
