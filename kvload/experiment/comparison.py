"""A comparison from its plan or from run folders to the files that show it; nothing here is printed."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvload.errors import UsageError
from kvload.experiment import plan as plans
from kvload.experiment.negatives import NEGATIVES_NAME, write_negatives
from kvload.experiment.plan import (
    FLOOR_SUFFIX,
    PERTURBED_SUFFIX,
    ExperimentPlan,
    Floor,
    PlannedRun,
    make_arms,
    perturbing_args,
    trace_digest,
)
from kvload.experiment.run import completed, pending, trace_copy
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.analysis.comparison.model import Comparison
    from kvload.analysis.records.pairs import ArmRuns
    from kvload.experiment.options import RunOptions
    from kvload.servers.engines.base import LaunchRequest


@dataclass(frozen=True)
class Outlook:
    """What an experiment is about to do.

    Attributes:
        mode_reason: why answers are free or forced.
        requests, span_s: of one run.
        runs: those that are still to be made, in their order.
        total_s: about how long they take, without the time of the last answers.
    """

    mode_reason: str
    requests: int
    span_s: float
    runs: tuple[PlannedRun, ...]
    total_s: float


def new_plan(
    trace: Path,
    *,
    methods: Sequence[str],
    urls: Mapping[str, str],
    baseline: str | None,
    floor: Floor,
    repeats: int,
    launch: "LaunchRequest",
    run: "RunOptions",
    gpus: tuple[str, ...] = (),
    per_arm: int = 1,
    alone: bool = True,
    place: str = "local",
    place_address: str = "auto",
) -> ExperimentPlan:
    """The plan of a comparison.

    Args:
        trace: the file that every arm replays.
        methods: those to launch a server with.
        urls: addresses of servers that run already, by the arms' names.
        baseline: the arm to compare with; see :func:`kvload.experiment.plan.make_arms`.
        floor: how the baseline is run beside the first time.
        repeats: how often each arm is run.
        launch: the servers, but for their method.
        run: what all runs share.
        gpus: those that arms are spread over, side by side; none for one run after the other.
        per_arm: GPUs of one server.
        alone: run the baseline once more with nothing beside it, where others run beside it.
        place, place_address: where servers are started.

    Raises:
        UsageError: the arms cannot be compared, or one that runs already is to be put on a GPU.
        TraceError: the trace cannot be read.
    """
    if urls and (gpus or place != "local"):
        raise UsageError(
            f"the server of the arm '{next(iter(urls))}' runs already: it cannot be given a GPU",
            where="--gpus, --place, --arm",
            hint="leave them out, or launch all arms by --method",
        )
    perturbation = perturbing_args(launch.engine_args) if floor == "perturb" else ()
    return ExperimentPlan(
        trace=str(trace),
        trace_sha256=trace_digest(trace),
        # one server alone, run twice, shows what noise there is
        arms=make_arms(
            methods,
            urls,
            baseline=baseline,
            floor=floor,
            perturbation=perturbation,
            least=2 if floor == "none" else 1,
        ),
        repeats=repeats,
        launch=launch,
        run=run,
        gpus=gpus,
        per_arm=per_arm,
        alone=alone and (place != "local" or len(gpus) // per_arm > 1),
        place=place,
        place_address=place_address,
    )


def default_folder() -> Path:
    """``runs/TIME-compare``."""
    return Path("runs") / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-compare"


def outlook(plan: ExperimentPlan, folder: Path, *, is_new: bool, lanes: int = 1) -> Outlook:
    """What is still to be done, and about how long it takes.

    Args:
        lanes: runs that are made at a time.

    Raises:
        TraceError: the trace does not make a schedule.
    """
    from kvload.workloads.schedule.build import load_schedule

    schedule = load_schedule(Path(plan.trace) if is_new else trace_copy(plan, folder), plan.run.schedule, model="")
    runs = plan.runs() if is_new else pending(plan, folder)
    one_s = plan.estimate_s(schedule.span_s, plan.launch.engine) / len(plan.runs())
    total_s = one_s * (math.ceil(len(runs) / lanes) + (plan.alone and bool(runs)))
    return Outlook(schedule.mode_reason, len(schedule.planned), schedule.span_s, tuple(runs), total_s)


def keep(plan: ExperimentPlan, folder: Path) -> None:
    """Make the experiment's folder: its plan, and a copy of its trace.

    Raises:
        UsageError: the folder holds something else already.
    """
    plans.save(plan, folder)
    shutil.copyfile(plan.trace, trace_copy(plan, folder))


def experiment_arms(plan: ExperimentPlan, folder: Path) -> "list[ArmRuns]":
    """The arms of an experiment that have complete runs, with these."""
    from kvload.analysis.records.pairs import ArmRuns

    runs = completed(plan, folder)
    return [
        ArmRuns(arm.name, runs[arm.name], baseline=arm.baseline, floor=arm.floor, perturbed=arm.perturbed)
        for arm in plan.arms
        if runs[arm.name]
    ]


def existing_arms(folders: Sequence[Path], baseline: str | None, floor: Path | None) -> "list[ArmRuns]":
    """Run folders as arms: those of one arm's repeats together, where all of them say which they are.

    Args:
        folders: the runs.
        baseline: the arm to compare with; the first where None.
        floor: the baseline's second run.

    Raises:
        UsageError: fewer than two runs, or a baseline that is not among them.
        RunDirError: a folder holds no run.
    """
    from kvload.analysis.records.pairs import ArmRuns

    runs = {path: RunDir.open(path) for path in folders}
    if len(runs) < 2:
        raise UsageError("a comparison needs two run folders", hint="kvload compare RUN_A RUN_B")
    if floor is None and (grouped := _by_arm(list(runs.values()), baseline)):
        return grouped
    names = _names(runs)
    base = baseline or next(iter(names.values()))
    if base not in names.values():
        raise UsageError(f"the baseline '{base}' is not among: {', '.join(names.values())}", where="--baseline")
    arms = [ArmRuns(names[path], (run,), baseline=names[path] == base) for path, run in runs.items()]
    if floor is not None:
        arms.append(ArmRuns(base + FLOOR_SUFFIX, (RunDir.open(floor),), floor=True))
    return arms


def _by_arm(runs: Sequence[RunDir], baseline: str | None) -> "list[ArmRuns]":
    """The runs of an experiment by their arms; none where they are not of several repeats of named arms."""
    from kvload.analysis.records.pairs import ArmRuns

    manifests = [run.manifest() for run in runs]
    arms = list(dict.fromkeys(manifest.arm for manifest in manifests))
    keys = {(manifest.arm, manifest.repeat) for manifest in manifests}
    if None in arms or len(keys) < len(runs) or not 1 < len(arms) < len(runs):
        return []
    base = baseline or next(arm for arm in arms if arm and not arm.endswith((FLOOR_SUFFIX, PERTURBED_SUFFIX)))
    if base not in arms:
        raise UsageError(f"the baseline '{base}' is not among: {', '.join(map(str, arms))}", where="--baseline")
    return [
        ArmRuns(
            str(arm),
            tuple(run for run, manifest in zip(runs, manifests, strict=True) if manifest.arm == arm),
            baseline=arm == base,
            floor=arm == base + FLOOR_SUFFIX,
            perturbed=arm == base + PERTURBED_SUFFIX,
        )
        for arm in arms
    ]


def write_files(comparison: "Comparison", as_dict: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``comparison.html``, ``comparison.json``, ``pairs.csv`` and ``arms.csv``.

    Args:
        comparison: what was found.
        as_dict: the same as JSON has it.
        folder: where the files go; made where it is missing.

    Returns:
        the files, the page first.
    """
    from kvload.analysis.report import compare_json, html_compare

    folder.mkdir(parents=True, exist_ok=True)
    page, text = folder / "comparison.html", folder / "comparison.json"
    page.write_text(html_compare.render(comparison), encoding="utf-8")
    text.write_text(json.dumps(as_dict, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    compare_json.write_csv(comparison, folder)
    return [page, text, folder / "pairs.csv", folder / "arms.csv"]


def write_worse_answers(
    comparison: "Comparison", arms: "Sequence[ArmRuns]", plan: ExperimentPlan, folder: Path
) -> tuple[int, Path]:
    """Write the requests whose answers got worse as a trace of their own; how many, and the file."""
    target = folder / NEGATIVES_NAME
    trace = trace_copy(plan, folder)
    return write_negatives(comparison, list(arms), trace, plan.run.schedule.format, target), target


def _names(runs: Mapping[Path, RunDir]) -> dict[Path, str]:
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
