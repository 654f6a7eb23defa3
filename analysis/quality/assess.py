"""What a method does to the answers' quality: scores per request, their change, negative samples.

Every request is scored under the baseline and under each method, against the trace's expected answer by the trace's
scorer. Where nothing is expected there is the agreement with the baseline's answer, whose own is then 1. That says how
far texts differ (:mod:`kvload.analysis.quality.texts`) and is no score: changes and negative samples leave it out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from kvload.analysis.quality import scorers
from kvload.analysis.quality.negatives import DEFAULT_THETAS, Gate, NegativeCount, first_of_each, negative_samples
from kvload.analysis.quality.texts import said
from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.analysis.statistics.estimates import FEWEST, LEVEL, Estimate, paired_difference
from kvload.errors import UsageError
from kvload.records import RequestRecord

AGREEMENT = "agreement"
DEFAULT_SCORER = "f1"
NO_TASK = ""


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of the same samples under a baseline and several arms.

    Attributes:
        ids, tasks, scorer: name, task (or dataset) and scorer of every row.
        unit: the request that a row repeats; rows with the same number are not independent.
        base: the baseline's scores, shape (rows,); NaN where it gave no answer.
        arms: the other arms' scores, in their order.
        duplicates: rows left out because the same question, or a whole dataset, came before.
        missing: by arm, rows without a score of it (its request failed, or its file lacks the id).
        notes: what else was left out.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    scorer: tuple[str, ...]
    unit: Ints
    base: Floats
    arms: Mapping[str, Floats]
    base_name: str = "baseline"
    duplicates: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def scored(self) -> Bools:
        """Rows with a right answer to be held against, shape (rows,)."""
        return np.array([name != AGREEMENT for name in self.scorer], np.bool_)


@dataclass(frozen=True, kw_only=True)
class TaskChange:
    """Scores of one arm on one task (None: on all) over the rows that both have.

    ``difference`` is the arm's mean less the baseline's, with a paired bootstrap interval.
    """

    arm: str
    task: str | None
    scorer: str
    n: int
    base_mean: float | None
    arm_mean: float | None
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The result: changes per arm and task, negative samples, and what was left out."""

    base_name: str
    floor_name: str | None
    gate: str
    changes: list[TaskChange]
    negatives: list[NegativeCount]
    duplicates: int
    missing: dict[str, int]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)

    def negative_ids(self, table: ScoreTable) -> dict[str, dict[str, Any]]:
        """The negative samples of the smallest theta by id, with the methods and the largest theta of each.

        What is found goes into an exported benchmark: ``{"theta": {METHOD: THETA}, "baseline": SCORE}``.
        """
        found: dict[str, dict[str, Any]] = {}
        for count in sorted(self.negatives, key=lambda each: each.theta):
            if count.task is None and len(count.methods) == 1:
                for row in count.rows:
                    entry = found.setdefault(table.ids[row], {"theta": {}, "baseline": float(table.base[row])})
                    entry["theta"][count.methods[0]] = count.theta
        return found


class ArmScorer:
    """Scores arms one after another against one repeat of the baseline, matching requests by ``index``.

    A request whose prompt and expected answer came before in the baseline's records is a duplicate and left out.

    Args:
        base: the baseline's records.
        base_name: what the baseline is called.

    Raises:
        UsageError: the trace names a scorer that there is not, or expects what that scorer cannot score against.
    """

    def __init__(self, base: Iterable[RequestRecord], base_name: str = "baseline") -> None:
        listed = sorted(base, key=lambda record: record.index)
        kept, self._duplicates = first_of_each(
            (record.prompt_digest, record.expected, record.scorer) for record in listed
        )
        self._rows = [listed[row] for row in kept]
        self._base_name = base_name
        self._base = np.array([_score(record, record) for record in self._rows], dtype=np.float64)

    def score(self, records: Iterable[RequestRecord]) -> Floats:
        """An arm's scores, one for each of the baseline's rows; NaN where it gave no answer."""
        found = {record.index: record for record in records}
        scores = [_score(found.get(record.index), record) for record in self._rows]
        return np.array(scores, dtype=np.float64)

    def table(self, arms: Mapping[str, Floats]) -> ScoreTable:
        """The table of arms whose scores :meth:`score` gave."""
        return ScoreTable(
            ids=tuple(record.request_id for record in self._rows),
            tasks=tuple(record.task or NO_TASK for record in self._rows),
            scorer=tuple(_scorer(record) for record in self._rows),
            unit=np.array([record.index for record in self._rows], dtype=np.int64),
            base=self._base,
            arms=dict(arms),
            base_name=self._base_name,
            duplicates=self._duplicates,
            missing=_missing(self._base_name, self._base, arms),
        )


def score_arms(
    base: Iterable[RequestRecord], arms: Mapping[str, Iterable[RequestRecord]], *, base_name: str = "baseline"
) -> ScoreTable:
    """Score one repeat of all arms; see :class:`ArmScorer`."""
    scorer = ArmScorer(base, base_name)
    return scorer.table({name: scorer.score(records) for name, records in arms.items()})


def stack(tables: Sequence[ScoreTable]) -> ScoreTable:
    """The rows of several repeats of the same arms in one table.

    Raises:
        ValueError: there is none, or their arms differ.
    """
    first = tables[0]
    if any(list(table.arms) != list(first.arms) for table in tables):
        raise ValueError("the repeats have different arms")
    base = np.concatenate([table.base for table in tables])
    arms = {name: np.concatenate([table.arms[name] for table in tables]) for name in first.arms}
    return ScoreTable(
        ids=tuple(name for table in tables for name in table.ids),
        tasks=tuple(task for table in tables for task in table.tasks),
        scorer=tuple(name for table in tables for name in table.scorer),
        unit=np.concatenate([table.unit for table in tables]),
        base=base,
        arms=arms,
        base_name=first.base_name,
        duplicates=sum(table.duplicates for table in tables),
        missing=_missing(first.base_name, base, arms),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
    )


def assess(
    table: ScoreTable,
    *,
    floor: str | None = None,
    apart: Collection[str] = (),
    thetas: Iterable[float] = DEFAULT_THETAS,
    gate: Gate | None = None,
    sets: Iterable[Sequence[str]] | None = None,
    rng: np.random.Generator,
    level: float = LEVEL,
) -> Quality:
    """Changes of the mean scores, and negative samples.

    Args:
        table: the scores.
        floor: the arm that is the baseline's second run (A/A).
        apart: arms that are no methods either, whose negative samples are not counted.
        thetas, gate: see :func:`kvload.analysis.quality.negatives.negative_samples`.
        sets: sets of methods; all together where None.
        rng: of the bootstrap.
        level: confidence level.

    Raises:
        UsageError: ``floor`` or a set names an arm that is not there.
    """
    if floor is not None and floor not in table.arms:
        raise UsageError(f"no such arm: '{floor}'", where="--floor", hint=f"there are: {', '.join(table.arms)}")
    methods = {name: scores for name, scores in table.arms.items() if name != floor and name not in apart}
    table = replace(table, base=np.where(table.scored, table.base, np.nan))
    tasks = np.asarray(table.tasks, dtype=object)
    named = sorted({task for task, scored in zip(table.tasks, table.scored, strict=True) if scored})
    changes = []
    for arm, scores in table.arms.items():
        for task in (None, *(named if len(named) > 1 else [])):
            rows = np.arange(len(tasks)) if task is None else np.flatnonzero(tasks == task)
            changes.append(_change(table, arm, scores, task, rows, rng=rng, level=level))
    used = gate or Gate()
    negatives = negative_samples(
        table.base,
        methods,
        tasks=table.tasks,
        thetas=thetas,
        gate=used,
        floor=None if floor is None else table.arms[floor],
        clusters=table.unit,
        sets=[tuple(methods)] if sets is None else sets,
    )
    notes = list(table.notes)
    if table.duplicates:
        notes.append(f"{table.duplicates:,} duplicates left out")
    notes += [f"{count:,} rows have no score under {name}" for name, count in table.missing.items() if count]
    notes += _twins(methods)
    if floor is None:
        notes.append("no noise floor was measured: the baseline was run once")
    return Quality(
        base_name=table.base_name,
        floor_name=floor,
        gate=str(used),
        changes=changes,
        negatives=negatives,
        duplicates=table.duplicates,
        missing=dict(table.missing),
        notes=notes,
    )


def _twins(methods: Mapping[str, Floats]) -> list[str]:
    """Methods that are one and the same by their scores."""
    first: dict[bytes, str] = {}
    notes = []
    for name, scores in methods.items():
        # Few scores, or all the same one, may be equal by chance.
        known = scores[~np.isnan(scores)]
        if len(known) < FEWEST or len(np.unique(known)) < 2:
            continue
        other = first.setdefault(np.nan_to_num(scores, nan=-1.0).tobytes(), name)
        if other != name:
            notes.append(f"{name} has the very scores of {other} in all {len(known):,} rows: are they one method?")
    return notes


def _change(
    table: ScoreTable,
    arm: str,
    scores: Floats,
    task: str | None,
    rows: Ints,
    *,
    rng: np.random.Generator,
    level: float,
) -> TaskChange:
    both = rows[~np.isnan(table.base[rows]) & ~np.isnan(scores[rows])]
    before, after = table.base[both], scores[both]
    return TaskChange(
        arm=arm,
        task=task,
        scorer=", ".join(sorted({table.scorer[row] for row in both})),
        n=len(both),
        base_mean=float(before.mean()) if len(both) else None,
        arm_mean=float(after.mean()) if len(both) else None,
        difference=paired_difference(after, before, table.unit[both], rng=rng, level=level),
    )


def _scorer(base: RequestRecord) -> str:
    return AGREEMENT if base.expected is None else base.scorer or DEFAULT_SCORER


def _score(record: RequestRecord | None, base: RequestRecord) -> float:
    """The score of one answer; NaN where there is no answer, or none to compare it with, which is never "the same"."""
    if record is None or record.status != "ok":
        return float("nan")
    if base.expected is None:
        one, two = said(record), said(base)
        if base.status != "ok" or not any(one) or not any(two):
            return float("nan")
        return 1.0 if record is base else scorers.agreement(one[0], two[0], beside=one[1:], baseline_beside=two[1:])
    if record.text is None:
        return float("nan")
    try:
        return scorers.score(_scorer(base), record.text, base.expected, is_cut=record.finish_reason == "length")
    except UsageError as error:
        raise UsageError(error.message, where=f"request '{base.request_id}'", hint=error.hint) from error


def _missing(base_name: str, base: Floats, arms: Mapping[str, Floats]) -> dict[str, int]:
    return {name: int(np.isnan(scores).sum()) for name, scores in {base_name: base, **arms}.items()}
