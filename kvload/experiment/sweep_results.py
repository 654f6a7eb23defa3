"""What a sweep's folder shows, complete or not: its runs as points, and the curves through them."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvload.errors import RunDirError
from kvload.experiment.ending import answered
from kvload.experiment.placement import read_placement
from kvload.experiment.plan import is_complete
from kvload.records import RunManifest
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.analysis.sweep.model import Point, Sweep

from kvload.experiment.sweep_plan import SweepPlan, needed


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
    return kept.time_notes("walk") if kept else []


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
