"""The quality of the arms' answers inside a comparison: scored run by run, held against the noise floor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from kvload.analysis.comparison.samples import MOST, Sample, sample_of
from kvload.analysis.quality.assess import ArmScorer, Quality, ScoreTable, TaskChange, assess, stack
from kvload.analysis.quality.negatives import DEFAULT_THETAS, Gate, NegativeCount
from kvload.analysis.quality.texts import TextChange, TextPairs, compare_texts, text_change
from kvload.analysis.records.loading import texts
from kvload.analysis.records.pairs import LoadedArm, LoadedRun, Pairs
from kvload.analysis.records.table import Floats
from kvload.analysis.statistics import estimates, run_figures
from kvload.analysis.statistics.run_figures import RunFigures
from kvload.records import RequestRecord
from kvload.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class ArmQuality:
    """The quality of one arm's answers.

    Attributes:
        overall: the change of the mean score over all requests.
        tasks: the same for each task, where there are several.
        negatives: negative samples of this arm alone, over all tasks, by theta.
        figures: each run's mean score less the baseline's, for the layout.
        texts: how far the answers are the baseline's, to the letter; None where no pair has both texts.
        worst: negative samples of the smallest theta with both answers, those that fell most first.
    """

    overall: TaskChange
    tasks: list[TaskChange]
    negatives: list[NegativeCount]
    figures: RunFigures
    texts: TextChange | None
    worst: list[Sample] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Quality over all arms, the scores it rests on with the repeat of every row, and each arm's part.

    ``other_texts`` are each arm's differing answers less those of the baseline in another dtype, or of the A/A arm, run
    by run; empty without either.
    """

    quality: Quality
    scores: ScoreTable = field(repr=False)
    repeat: tuple[int, ...] = field(repr=False)
    arms: dict[str, ArmQuality]
    other_texts: dict[str, RunFigures] = field(repr=False)


class AnswerScorer:
    """Scores arms as they are loaded, so that only the baseline's answers stay in memory.

    Where the baseline kept no texts, or lengths were forced, there is nothing to score.
    """

    def __init__(self, base: LoadedArm) -> None:
        self._base = base
        self._arms: list[LoadedArm] = []
        self._scores: dict[str, dict[int, Floats]] = {}
        self._texts: dict[str, dict[int, TextPairs]] = {}
        self._scorers: dict[int, ArmScorer] = {}
        self._perturbed: str | None = None
        self._base_records: dict[int, list[RequestRecord]] = {}
        if base.first.manifest.mode == "free":
            for repeat, run in base.runs.items():
                kept = [record for record in _records(run) if record.text is not None or record.status != "ok"]
                if any(record.text is not None for record in kept):
                    self._scorers[repeat] = ArmScorer(kept, base.name)
                    self._base_records[repeat] = kept

    def add(self, arm: LoadedArm, pairs: Pairs) -> None:
        """Score one arm in every repeat that it shares with the baseline, over the requests that are paired."""
        if not self._scorers:
            return
        self._arms.append(arm)
        self._perturbed = arm.name if arm.perturbed else self._perturbed
        scores, texts_found = self._scores.setdefault(arm.name, {}), self._texts.setdefault(arm.name, {})
        for repeat, scorer in self._scorers.items():
            if repeat in arm.runs:
                paired = set(pairs.request[pairs.repeat == repeat].tolist())
                kept = [record for record in _records(arm.runs[repeat]) if record.index in paired]
                scores[repeat] = scorer.score(kept)
                texts_found[repeat] = compare_texts(
                    _answered(self._base_records[repeat], self._base.runs[repeat]), _answered(kept, arm.runs[repeat])
                )

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
        apart = () if self._perturbed is None else (self._perturbed,)
        quality = assess(table, floor=floor, apart=apart, thetas=thetas, gate=gate, rng=rng, level=level)
        repeats = tuple(repeat for repeat, part in zip(common, tables, strict=True) for _ in range(len(part.ids)))
        arms = {arm.name: self._arm_quality(arm, table, repeats, quality, level) for arm in self._arms}
        against = self._perturbed or floor
        other_texts = {} if against is None else _beyond_floor(self._texts, against, {floor, against})
        return Answers(quality=quality, scores=table, repeat=repeats, arms=arms, other_texts=other_texts)

    def _arm_quality(
        self, arm: LoadedArm, table: ScoreTable, repeats: tuple[int, ...], quality: Quality, level: float
    ) -> ArmQuality:
        changes = [change for change in quality.changes if change.arm == arm.name]
        overall = next(change for change in changes if change.task is None)
        negatives = [count for count in quality.negatives if count.methods == (arm.name,) and count.task is None]
        change = table.arms[arm.name] - table.base
        rows = np.flatnonzero(~np.isnan(change) & table.scored)
        found = [pairs for pairs in self._texts[arm.name].values() if len(pairs.request)]
        return ArmQuality(
            overall=overall,
            tasks=[change for change in changes if change.task is not None],
            negatives=negatives,
            figures=run_figures.mean_change(change[rows], np.array(repeats)[rows], table.unit[rows], bounded=True),
            texts=text_change(found, level=level) if found else None,
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


def _beyond_floor(
    found: dict[str, dict[int, TextPairs]], floor: str, left_out: set[str | None]
) -> dict[str, RunFigures]:
    """How many more answers differ from the baseline's than those of the floor do, by request."""
    figures = {}
    for name, runs in found.items():
        change, repeat, request = [], [], []
        for number, pairs in runs.items():
            again = found[floor].get(number)
            if name in left_out or again is None:
                continue
            _, mine, theirs = np.intersect1d(pairs.request, again.request, assume_unique=True, return_indices=True)
            change.append(again.identical[theirs].astype(np.float64) - pairs.identical[mine])
            repeat.append(np.full(len(mine), number, np.int64))
            request.append(pairs.request[mine])
        if change:
            figures[name] = run_figures.mean_change(
                np.concatenate(change), np.concatenate(repeat), np.concatenate(request), bounded=True
            )
    return figures


def _answered(records: Iterable[RequestRecord], run: LoadedRun) -> Iterator[RequestRecord]:
    """Those that a comparison takes for answers: nothing is said about the texts of the others."""
    proven = set(run.table.index[run.table.ok].tolist())
    return (record for record in records if record.index in proven)


def _records(run: LoadedRun) -> Iterator[RequestRecord]:
    return (record for record, _ in RunDir(run.path).records()) if run.path else iter(())
