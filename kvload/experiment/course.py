"""How the runs of an experiment were made, as its report tells it: how long they took, where, and what that bends."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from kvload.experiment.placement import INTERRUPTED, Placement, read_placement
from kvload.experiment.plan import ExperimentPlan, is_complete
from kvload.experiment.run import completed, run_path
from kvload.experiment.slots import key_of, name_of
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.analysis.comparison.beside import Change
    from kvload.analysis.comparison.model import Course, Stretch
    from kvload.analysis.records.table import RecordTable

MOST_PLACES = 8
"""A report tells which runs were made where for so many places at most."""


def course_of(plan: ExperimentPlan, out: Path) -> "Course | None":
    """What a report says of how an experiment's runs were made.

    How long they took; and of those side by side which were made where, whether the baseline is slower beside others
    than alone, and whether GPUs differ on it. None where the folder does not tell.
    """
    from kvload.analysis.comparison.model import Course

    kept = read_placement(out)
    if kept is None:
        return None
    time, missing = kept.time_notes(), [*_missing(plan, kept), *_unlike(plan, out)]
    if all(len(session.slots) < 2 for session in kept.sessions):
        return Course(time=time, bends=missing, notes=[], stretches=_stretches(kept))
    bends, notes = _interference(plan, out, kept)
    differing, equal = _places_differ(plan, out)
    notes = [*_where(plan, out), *notes, *equal]
    return Course(time=time, bends=[*missing, *bends, *differing], notes=notes, stretches=_stretches(kept))


def _stretches(kept: Placement) -> "list[Stretch]":
    """The parts of all runs on one clock, on which a session follows the other at once."""
    from kvload.analysis.comparison.model import Stretch

    before_s: dict[float, float] = {}
    total_s = 0.0
    for session in kept.sessions:
        before_s[session.began_at] = total_s
        total_s += session.wall_s
    found = []
    for run in kept.runs:
        session = kept.session_of(run)
        at = before_s[session.began_at] + max(run.began_at - session.began_at, 0.0)
        parts = {"launch": run.launch_s, "replay": run.replay_s, "stop": run.stop_s, "lost": run.lost_s}
        for what, part_s in parts.items():
            if part_s is not None:
                found.append(Stretch(run.slot, run.arm, run.repeat, what, at, at + part_s))
                at += part_s
    return found


def alone_run(plan: ExperimentPlan, out: Path) -> RunDir | None:
    """The complete run of the baseline with nothing beside it."""
    path = run_path(out, plan.alone_run())
    return RunDir.open(path) if is_complete(path) else None


def _missing(plan: ExperimentPlan, kept: Placement) -> list[str]:
    """Why arms have fewer runs than the plan says: how each last failed, where no later try came to its end."""
    why: dict[str, str] = {}
    for run in kept.runs:
        if run.failed and run.failed != INTERRUPTED and kept.finished(run.arm, run.repeat) is None:
            why[run.arm] = f"{run.arm} failed in repeat {run.repeat + 1} on {run.slot}: {run.failed}"
    return [f"{text}; --resume tries again" for arm, text in why.items() if any(arm == one.name for one in plan.arms)]


def _unlike(plan: ExperimentPlan, out: Path) -> list[str]:
    """That runs were made on GPUs of different kinds, and which arm had how many of each."""
    counts: dict[str, Counter[str]] = {}
    for arm, runs in completed(plan, out).items():
        counts[arm] = Counter(kind for run in runs if (kind := run.manifest().server.gpu_kind) is not None)
    kinds = sorted(set().union(*counts.values()))
    if len(kinds) < 2:
        return []
    told = "; ".join(f"{arm} {' and '.join(f'{had[kind]} on {kind}' for kind in kinds)}" for arm, had in counts.items())
    even = len({tuple(had[kind] for kind in kinds) for had in counts.values()}) == 1
    what = (
        "each arm had as many of each, and what these differ by is in the intervals"
        if even
        else "what arms differ by is partly the GPUs'"
    )
    return [f"runs were made on GPUs of different kinds ({told}): {what}"]


def _interference(plan: ExperimentPlan, out: Path, kept: Placement) -> tuple[list[str], list[str]]:
    """What running beside others changes: what is more than noise, or is not known; and the rest."""
    from kvload.analysis.comparison import beside
    from kvload.analysis.records.loading import load
    from kvload.analysis.records.table import proven

    tables, launches = [], []
    for arm, run in _equal_runs(plan, out):
        placed = kept.finished(arm, run.manifest().repeat or 0)
        next_door = kept.next_door(placed) if placed is not None else None
        if next_door is not None and next_door.anything > 0:
            tables.append(proven(load(run)))
            launches.append(next_door.launches)
    bends: list[str] = []
    notes: list[str] = []
    alone = alone_run(plan, out)
    if alone is None:
        bends.append("whether arms slow each other down was not measured: the baseline did not run alone")
    else:
        because = "arms slow each other down, --serial measures without"
        for change in beside.interference(proven(load(alone)), tables):
            (bends if change.is_over else notes).append(_words(change, because))
    if launches:
        notes.append(
            "while the baseline's runs beside others were measured, a server was being launched next door"
            f" {_percent(sum(launches) / len(launches))} of the time"
        )
    return bends, notes


def _places_differ(plan: ExperimentPlan, out: Path) -> tuple[list[str], list[str]]:
    """How the baseline differs between places: what is more than noise, and the rest."""
    from kvload.analysis.comparison import beside
    from kvload.analysis.records.loading import load
    from kvload.analysis.records.table import proven

    groups: dict[str, list[RecordTable]] = {}
    for _, run in _equal_runs(plan, out):
        groups.setdefault(name_of(*key_of(run.manifest().server)), []).append(proven(load(run)))
    changes = beside.placement(dict(sorted(groups.items())))
    because = "places differ, which is in the intervals, since every arm changes between them"
    over = [_words(change, because) for change in changes if change.is_over]
    # of those within the floor the farthest of each metric stands for all
    rest: dict[str, Change] = {}
    for change in changes:
        if not change.is_over and abs(change.relative) >= abs(rest.get(change.metric, change).relative):
            rest[change.metric] = change
    told = {change.metric for change in changes if change.is_over}
    others = " (no other place differs more)" if len(groups) > 2 else ""
    return over, [_words(change) + others * (metric not in told) for metric, change in rest.items()]


def _equal_runs(plan: ExperimentPlan, out: Path) -> list[tuple[str, RunDir]]:
    """The complete runs of the baseline and of its equal, with their arm's name."""
    equal = {arm.name for arm in plan.arms if arm.baseline or arm.floor}
    return [(arm, run) for arm, made in completed(plan, out).items() if arm in equal for run in made]


def _where(plan: ExperimentPlan, out: Path) -> list[str]:
    """Which runs were made on which GPU, in their order; nothing where the places are many."""
    by_place: dict[str, list[tuple[float, str]]] = {}
    for arm, runs in completed(plan, out).items():
        for run in runs:
            manifest = run.manifest()
            by_place.setdefault(name_of(*key_of(manifest.server)), []).append((manifest.started_at or 0.0, arm))
    if not 1 < len(by_place) <= MOST_PLACES:
        return []
    return [f"{place}: {', '.join(arm for _, arm in sorted(made))}" for place, made in sorted(by_place.items())]


def _words(change: "Change", because: str = "") -> str:
    excess = f"the baseline's {change.metric.upper()} is {_percent(abs(change.relative))}"
    way = "longer" if change.relative >= 0 else "shorter"
    compared = f"{excess} {way} {_on(change.second)} than {_on(change.first)}"
    if change.floor is None:
        return f"{compared}; too few runs to say whether that is noise"
    if change.floor > 1:
        return f"{compared}; equal runs differ by more than that can tell (over 100 %)"
    if change.is_over:
        return f"{compared}, over the {_percent(change.floor)} that equal runs differ by: {because}"
    return f"{compared}, within the {_percent(change.floor)} that equal runs differ by"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _on(place: str) -> str:
    return f"on {place}" if place.startswith(("GPU", "node")) else place
