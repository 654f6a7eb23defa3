"""Request i of one run beside request i of another, after checking that they are the same request."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kvload.analysis.records.loading import load
from kvload.analysis.records.table import Bools, Ints, RecordTable, concatenate, count_true, proven
from kvload.errors import PairingError
from kvload.records import RunManifest, ServerSample
from kvload.rundir import RunDir

_SAME = ("max_tokens", "min_tokens", "ignore_eos", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class ArmRuns:
    """The run folders of one arm, one per repeat.

    ``baseline`` marks the arm that others are compared with, ``floor`` the baseline's second measurement (A/A),
    ``perturbed`` the baseline in another dtype, which only says how many answers that alone changes.
    """

    name: str
    runs: tuple[RunDir, ...]
    baseline: bool = False
    floor: bool = False
    perturbed: bool = False


@dataclass(frozen=True)
class LoadedRun:
    """One run in memory; ``path`` is its folder, where its texts are, or None if it has none."""

    path: Path | None
    manifest: RunManifest
    table: RecordTable
    samples: list[ServerSample]


@dataclass(frozen=True)
class LoadedArm:
    """An arm in memory; ``runs`` by repeat number."""

    name: str
    runs: dict[int, LoadedRun]
    baseline: bool
    floor: bool
    perturbed: bool = False

    @property
    def first(self) -> LoadedRun:
        """The run of the first repeat."""
        return next(iter(self.runs.values()))

    @cached_property
    def table(self) -> RecordTable:
        """The records of all repeats."""
        return concatenate([run.table for run in self.runs.values()])


def load_arm(arm: ArmRuns) -> LoadedArm:
    """Read an arm's runs; the repeat number is the manifest's, or the position where it has none.

    Raises:
        PairingError: the arm has no runs, or two of the same repeat.
        RunDirError: a folder cannot be read.
    """
    if not arm.runs:
        raise PairingError(f"the arm '{arm.name}' has no runs")
    runs: dict[int, LoadedRun] = {}
    for position, run in enumerate(arm.runs):
        manifest = run.manifest()
        repeat = position if manifest.repeat is None else manifest.repeat
        if repeat in runs:
            raise PairingError(f"two runs of the arm '{arm.name}' are repeat {repeat}", where=str(run.path))
        runs[repeat] = LoadedRun(run.path, manifest, proven(load(run)), run.scrapes())
    return LoadedArm(arm.name, dict(sorted(runs.items())), arm.baseline, arm.floor, arm.perturbed)


@dataclass(frozen=True, kw_only=True)
class Population:
    """Which requests could be paired, over all repeats.

    Attributes:
        paired: pairs of records.
        answered: pairs in which both requests were answered.
        only_base, only_other: records without a partner.
        follow_ups: later turns of conversations whose prompts differ because previous answers did; left out.
        repeats: repeats that both arms have.
        unpaired_repeats: repeats that one of them has alone.
    """

    paired: int
    answered: int
    only_base: int
    only_other: int
    follow_ups: int
    repeats: tuple[int, ...]
    unpaired_repeats: tuple[int, ...]

    def notes(self) -> list[str]:
        """What the intersection left out, in words."""
        parts = [
            (self.only_base + self.only_other, "requests have a record in one arm only and are left out"),
            (self.follow_ups, "later turns had other prompts, since previous answers differed, and are left out"),
            (
                self.paired - self.answered,
                "pairs have a request that was not answered: no length or latency to compare",
            ),
            (len(self.unpaired_repeats), "repeats exist in one arm only and are left out"),
        ]
        return [f"{number:,} {text}" for number, text in parts if number]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Paired requests of two arms over all common repeats.

    ``base`` and ``other`` have the same rows: the same request of the same repeat. ``request`` numbers the request
    (its ``index``), the unit that is resampled; ``repeat`` is the repeat of each row; ``mode`` is the runs' mode.
    """

    base_name: str
    other_name: str
    mode: str
    base: RecordTable
    other: RecordTable
    repeat: Ints
    population: Population
    notes: list[str]

    @property
    def request(self) -> Ints:
        """The request of each pair."""
        return self.base.index

    @property
    def answered(self) -> Bools:
        """Pairs in which both requests were answered."""
        return self.base.ok & self.other.ok

    @cached_property
    def key(self) -> Ints:
        """One number per request and repeat, to find the same pair in another set of pairs."""
        return self.repeat * (1 << 40) + self.base.index


def pair(base: LoadedArm, other: LoadedArm, *, allow_sampling: bool = False) -> Pairs:
    """Pair two arms.

    Args:
        base: the baseline.
        other: the arm compared with it.
        allow_sampling: accept a temperature above 0 without a pinned seed.

    Raises:
        PairingError: the runs did not ask for the same thing; names the first request that differs, and in what.
    """
    common = tuple(repeat for repeat in base.runs if repeat in other.runs)
    if not common:
        raise PairingError(f"'{base.name}' and '{other.name}' have no repeat in common")
    left, right, repeats, counts, notes = [], [], [], np.zeros(3, np.int64), []
    for repeat in common:
        one, two = base.runs[repeat], other.runs[repeat]
        if one.manifest.mode != two.manifest.mode:
            raise PairingError(
                f"{one.path} is a {one.manifest.mode} run and {two.path} a {two.manifest.mode} one",
                hint="compare runs of the same --mode",
            )
        rows_one, rows_two, left_out = _match(one, two, allow_sampling)
        counts += left_out
        left.append(one.table.take(rows_one))
        right.append(two.table.take(rows_two))
        repeats.append(np.full(len(rows_one), repeat, np.int64))
        notes += _schedule_notes(left[-1], right[-1], one, two)
    tables = concatenate(left), concatenate(right)
    population = Population(
        paired=len(tables[0]),
        answered=count_true(tables[0].ok & tables[1].ok),
        only_base=int(counts[0]),
        only_other=int(counts[1]),
        follow_ups=int(counts[2]),
        repeats=common,
        unpaired_repeats=tuple(sorted(set(base.runs) ^ set(other.runs))),
    )
    return Pairs(
        base_name=base.name,
        other_name=other.name,
        mode=base.first.manifest.mode,
        base=tables[0],
        other=tables[1],
        repeat=np.concatenate(repeats),
        population=population,
        notes=[*population.notes(), *dict.fromkeys(notes)],
    )


def _match(one: LoadedRun, two: LoadedRun, allow_sampling: bool) -> tuple[Ints, Ints, Ints]:
    _, rows_one, rows_two = np.intersect1d(one.table.index, two.table.index, assume_unique=True, return_indices=True)
    left_out = np.array([len(one.table) - len(rows_one), len(two.table) - len(rows_two), 0], np.int64)
    a, b = one.table, two.table
    _refuse(a.request_id[rows_one] != b.request_id[rows_two], "id", rows_one, rows_two, one, two)
    for name in _SAME:
        x, y = getattr(a, name)[rows_one], getattr(b, name)[rows_two]
        different: Bools = x != y
        if x.dtype == np.float64:
            different &= ~(np.isnan(x) & np.isnan(y))
        _refuse(different, name, rows_one, rows_two, one, two)
    if not allow_sampling:
        _refuse_sampling(a, rows_one, one)
    other_prompt = a.prompt_digest[rows_one] != b.prompt_digest[rows_two]
    follow_up = other_prompt & (np.nan_to_num(a.turn[rows_one]) > 0)
    _refuse(other_prompt & ~follow_up, "prompt_digest", rows_one, rows_two, one, two)
    left_out[2] = count_true(follow_up)
    return rows_one[~follow_up], rows_two[~follow_up], left_out


def _refuse(different: Bools, name: str, rows_one: Ints, rows_two: Ints, one: LoadedRun, two: LoadedRun) -> None:
    places = np.flatnonzero(different)
    if not len(places):
        return
    first = places[0]
    column = "request_id" if name == "id" else name
    values = [getattr(one.table, column)[rows_one[first]], getattr(two.table, column)[rows_two[first]]]
    shown = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    row = rows_one[first]
    raise PairingError(
        f"request {one.table.index[row]} ({one.table.request_id[row]}) differs in {column}: {shown[0]} and {shown[1]};"
        f" {len(places)} of {len(different)} requests do",
        where=f"{one.path} and {two.path}",
        hint="only runs of the same trace with the same seed and sampling can be compared request by request",
    )


def _refuse_sampling(table: RecordTable, rows: Ints, run: LoadedRun) -> None:
    loose = np.flatnonzero((table.temperature[rows] > 0) & np.isnan(table.seed[rows]))
    if len(loose):
        row = rows[loose[0]]
        raise PairingError(
            f"request {table.index[row]} ({table.request_id[row]}) was sampled at temperature"
            f" {table.temperature[row]:g} without a seed: its answer is random",
            where=str(run.path),
            hint="replay with --temperature 0 or a pinned seed, or allow sampling if you mean it",
        )


def _schedule_notes(a: RecordTable, b: RecordTable, one: LoadedRun, two: LoadedRun) -> list[str]:
    # Follow-up turns and capped concurrency start when something else ends; only first turns have planned times.
    if one.manifest.max_concurrency or two.manifest.max_concurrency:
        return []
    first = ~(np.nan_to_num(a.turn) > 0)
    if np.allclose(a.t_sched_s[first], b.t_sched_s[first], atol=1e-6):
        return []
    return ["the two schedules differ: differences in latency are partly due to that"]


def align(pairs: Pairs, to: Pairs) -> tuple[Ints, Ints]:
    """Rows of two sets of pairs that are the same request of the same repeat."""
    _, rows, rows_to = np.intersect1d(pairs.key, to.key, assume_unique=True, return_indices=True)
    return rows, rows_to


def check_arms(arms: Sequence[ArmRuns]) -> None:
    """Raise unless there is exactly one baseline and something to compare with it.

    Raises:
        PairingError: otherwise, or where two arms have the same name.
    """
    baselines = [arm.name for arm in arms if arm.baseline]
    if len(baselines) != 1:
        raise PairingError(f"a comparison needs one baseline, not {len(baselines)}")
    if len(arms) < 2:
        raise PairingError("a comparison needs an arm beside the baseline")
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise PairingError(f"two arms are called '{name}'")
