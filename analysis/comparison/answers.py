"""The quality of the arms' answers inside a comparison: scored run by run, held against the noise floor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from kvload.analysis.comparison.samples import MOST, Sample, sample_of
from kvload.analysis.quality.assess import AGREEMENT, ArmScorer, Quality, ScoreTable, TaskChange, assess, stack
from kvload.analysis.quality.negatives import DEFAULT_THETAS, Gate, NegativeCount
from kvload.analysis.records.pairs import LoadedArm, LoadedRun
from kvload.analysis.records.table import Floats, texts
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from kvload.records import RequestRecord
from kvload.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class ArmQuality:
    """The quality of one arm's answers.

    Attributes:
        overall: the change of the mean score over all requests.
        tasks: the same for each task, where there are several.
        beyond_floor: the arm's mean score less that of the baseline's second run, request by request.
        negatives: negative samples of this arm alone, over all tasks, by theta.
        by_agreement: some or all scores are agreement with the baseline's answers, since none were expected.
        worst: negative samples of the smallest theta with both answers, those that fell most first.
    """

    overall: TaskChange
    tasks: list[TaskChange]
    beyond_floor: Estimate | None
    negatives: list[NegativeCount]
    by_agreement: bool
    worst: list[Sample] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Quality over all arms, the scores it rests on with the repeat of every row, and each arm's part."""

    quality: Quality
    scores: ScoreTable = field(repr=False)
    repeat: tuple[int, ...] = field(repr=False)
    arms: dict[str, ArmQuality]


class AnswerScorer:
    """Scores arms as they are loaded, so that only the baseline's answers stay in memory.

    Where the baseline kept no texts, or lengths were forced, there is nothing to score.
    """

    def __init__(self, base: LoadedArm) -> None:
        self._base = base
        self._arms: list[LoadedArm] = []
        self._scores: dict[str, dict[int, Floats]] = {}
        self._scorers: dict[int, ArmScorer] = {}
        if base.first.manifest.mode == "free":
            for repeat, run in base.runs.items():
                kept = [record for record in _records(run) if record.text is not None or record.status != "ok"]
                if any(record.text is not None for record in kept):
                    self._scorers[repeat] = ArmScorer(kept, base.name)

    def add(self, arm: LoadedArm) -> None:
        """Score one arm in every repeat that it shares with the baseline."""
        if self._scorers:
            self._arms.append(arm)
            self._scores[arm.name] = {
                repeat: scorer.score(_records(arm.runs[repeat]))
                for repeat, scorer in self._scorers.items()
                if repeat in arm.runs
            }

    def result(
        self,
        *,
        floor: str | None,
        rng: np.random.Generator,
        gate: Gate | None = None,
        thetas: Iterable[float] = DEFAULT_THETAS,
        level: float = estimates.LEVEL,
    ) -> Answers | None:
        """Assess all arms over the repeats that all of them have; None where there is nothing to score."""
        common = [repeat for repeat in self._scorers if all(repeat in found for found in self._scores.values())]
        if not common or not self._arms:
            return None
        tables = [
            self._scorers[repeat].table({name: found[repeat] for name, found in self._scores.items()})
            for repeat in common
        ]
        table = stack(tables)
        quality = assess(table, floor=floor, thetas=thetas, gate=gate, rng=rng, level=level)
        repeats = tuple(repeat for repeat, part in zip(common, tables, strict=True) for _ in range(len(part.ids)))
        arms = {arm.name: self._arm_quality(arm, table, repeats, quality, floor, rng, level) for arm in self._arms}
        return Answers(quality=quality, scores=table, repeat=repeats, arms=arms)

    def _arm_quality(
        self,
        arm: LoadedArm,
        table: ScoreTable,
        repeats: tuple[int, ...],
        quality: Quality,
        floor: str | None,
        rng: np.random.Generator,
        level: float,
    ) -> ArmQuality:
        changes = [change for change in quality.changes if change.arm == arm.name]
        overall = next(change for change in changes if change.task is None)
        negatives = [count for count in quality.negatives if count.methods == (arm.name,) and count.task is None]
        beyond = None
        if floor is not None and floor != arm.name:
            scores, again = table.arms[arm.name], table.arms[floor]
            both = ~np.isnan(scores) & ~np.isnan(again) & ~np.isnan(table.base)
            beyond = estimates.paired_difference(scores[both], again[both], table.unit[both], rng=rng, level=level)
        return ArmQuality(
            overall=overall,
            tasks=[change for change in changes if change.task is not None],
            beyond_floor=beyond,
            negatives=negatives,
            by_agreement=AGREEMENT in overall.scorer,
            worst=self._worst(arm, table, repeats, negatives),
        )

    def _worst(
        self, arm: LoadedArm, table: ScoreTable, repeats: tuple[int, ...], negatives: list[NegativeCount]
    ) -> list[Sample]:
        if not negatives:
            return []
        scores = table.arms[arm.name]
        rows = min(negatives, key=lambda count: count.theta).rows
        chosen = sorted(rows, key=lambda row: (scores[row] - table.base[row], row))[:MOST]
        samples = []
        for repeat in dict.fromkeys(repeats[row] for row in chosen):
            mine = [row for row in chosen if repeats[row] == repeat]
            wanted = {int(table.unit[row]) for row in mine}
            one, two = (texts(run.path, wanted) for run in (self._base.runs[repeat], arm.runs[repeat]) if run.path)
            for row in mine:
                index = int(table.unit[row])
                sample = sample_of(repeat, one[index], two[index])
                samples.append(replace(sample, base_score=float(table.base[row]), other_score=float(scores[row])))
        return samples


def _records(run: LoadedRun) -> Iterator[RequestRecord]:
    return (record for record, _ in RunDir(run.path).records()) if run.path else iter(())
