"""Negative samples: requests on which a method does clearly worse than the baseline did.

A request is negative where the baseline passes the gate and the method's score falls by ``theta`` or more below the
baseline's, relative to it. A baseline of 0 has nothing to lose and is never negative. Scores also fall by chance, so
every count stands beside its mirror (the same rule with the roles exchanged: the baseline falls below the method) and,
where the baseline was run twice, beside the count of the second run. What counts is the net: negative less mirror. One
theta is primary, the least; its p-values are adjusted for the number of methods (Holm 1979).
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.analysis.statistics.estimates import LEVEL, Estimate
from kvload.analysis.statistics.layout import holm
from kvload.analysis.statistics.planning import t_quantile
from kvload.analysis.statistics.run_figures import mean_change
from kvload.analysis.statistics.significance import TestResult, mcnemar
from kvload.errors import UsageError

DEFAULT_THETAS = (0.1, 0.2, 0.5)
ALL_TASKS = None
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Gate:
    """Which baseline scores are good enough to lose something: at least the task's median or mean, or a given score."""

    kind: Literal["median", "mean", "value"] = "median"
    value: float | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.value:g}"

    def passed(self, scores: Floats) -> Bools:
        """Which scores of one task pass: above 0 and at least the gate; NaN never does."""
        known = scores[~np.isnan(scores)]
        if not len(known):
            return np.zeros(len(scores), bool)
        if self.value is not None:
            limit = self.value
        else:
            limit = float(np.median(known) if self.kind == "median" else np.mean(known))
        found: Bools = (scores > 0) & (scores >= limit)
        return found


def parse_gate(text: str) -> Gate:
    """A gate from ``median``, ``mean`` or a score.

    Raises:
        UsageError: it is none of these.
    """
    if text == "median":
        return Gate("median")
    if text == "mean":
        return Gate("mean")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UsageError(f"'{text}' is not a gate", where="--gate", hint="median, mean, or a score of 0 or more")
    return Gate("value", value)


def parse_thetas(text: str) -> list[float]:
    """Relative falls from ``0.1,0.2`` or ``10%,20%``.

    Raises:
        UsageError: one of them is not a number of at least 0 and below 1.
    """
    thetas = []
    for part in text.split(","):
        shown = part.strip()
        try:
            theta = float(shown.removesuffix("%")) / (100 if shown.endswith("%") else 1)
        except ValueError:
            theta = float("nan")
        if not 0 <= theta < 1:
            raise UsageError(f"'{shown}' is not a relative fall", where="--theta", hint="write 0.1 or 10%")
        thetas.append(theta)
    return thetas


@dataclass(frozen=True, kw_only=True)
class NegativeCount:
    """Negative samples of one method, or of several at once, on one task (None: on all).

    Attributes:
        methods: a sample counts where it is negative under all of them.
        pairs: rows with a score of the baseline and of every method.
        eligible: those whose baseline passes the gate.
        negative, mirror: counts by the rule and by the rule with exchanged roles.
        floor_pairs: those rows of ``pairs`` that the baseline's second run has a score of; None without a second run.
        floor_negative, floor_mirror: the counts of that second run over these rows.
        net: negative less mirror with its interval over requests, in samples.
        against_mirror: McNemar's test of negative against mirror.
        adjusted_p: its p-value after Holm's correction over all methods at the primary theta: over all tasks together,
            or over all methods and tasks; None at other thetas and for sets of methods.
        against_floor: McNemar's test of negative against the second run's negative over the same rows.
        rows: which rows are negative.
    """

    methods: tuple[str, ...]
    task: str | None
    theta: float
    pairs: int
    eligible: int
    negative: int
    mirror: int
    floor_pairs: int | None
    floor_negative: int | None
    floor_mirror: int | None
    net: Estimate
    against_mirror: TestResult
    against_floor: TestResult | None
    adjusted_p: float | None = None
    rows: tuple[int, ...] = field(repr=False)


def fallen(before: Floats, after: Floats, theta: float) -> Bools:
    """Where ``after`` lies ``theta`` or more below ``before``, relative to it; never where ``before`` is 0.

    Scores are rounded: what misses ``theta`` by the rest of a binary fraction has reached it.
    """
    with np.errstate(invalid="ignore"):
        found: Bools = (before > 0) & (after < before) & (before - after >= (theta - _ROUNDING) * before)
    return found


def negative_samples(
    base: Floats,
    methods: Mapping[str, Floats],
    *,
    tasks: Sequence[str],
    thetas: Iterable[float] = DEFAULT_THETAS,
    gate: Gate | None = None,
    floor: Floats | None = None,
    clusters: Ints | None = None,
    sets: Iterable[Sequence[str]] = (),
) -> list[NegativeCount]:
    """Count negative samples per method and set of methods, theta and task.

    Args:
        base: the baseline's scores, 0 or more, shape (n,); NaN where there is none.
        methods: scores of each method for the same rows.
        tasks: the task of each row; gates are taken within a task, since scales differ between tasks.
        thetas: relative falls, at least 0 and below 1.
        gate: what the baseline must reach; the task's median where None.
        floor: scores of the baseline's second run.
        clusters: the request of each row, where rows repeat requests.
        sets: sets of methods, beside each method alone.

    Raises:
        UsageError: a theta is out of range, or a set names a method that is not there.
    """
    rule = gate or Gate()
    every_theta = sorted(set(thetas))
    for theta in every_theta:
        if not 0 <= theta < 1:
            raise UsageError(f"theta {theta:g} is not a relative fall of 0 up to 1", where="--theta")
    groups: list[tuple[str, ...]] = [(name,) for name in methods]
    for wanted in sets:
        group = tuple(dict.fromkeys(wanted))
        unknown = [name for name in group if name not in methods]
        if unknown:
            raise UsageError(f"no such method: '{unknown[0]}'", hint=f"there are: {', '.join(methods)}")
        if len(group) > 1 and group not in groups:
            groups.append(group)
    if any(np.any(scores < 0) for scores in (base, *methods.values(), *([] if floor is None else [floor]))):
        raise UsageError("scores below 0: a relative fall has no meaning there")
    where = _rows_by_task(tasks)
    names = list(where) if len(where) > 1 else []
    gates = {name: _gated(scores, where, rule) for name, scores in methods.items()}
    base_gate = _gated(base, where, rule)
    floor_gate = None if floor is None else _gated(floor, where, rule)
    counts = []
    for group in groups:
        present = ~np.isnan(base) & np.all([~np.isnan(methods[name]) for name in group], axis=0)
        for theta in every_theta:
            negative = present & base_gate & np.all([fallen(base, methods[name], theta) for name in group], axis=0)
            mirror = present & np.all([gates[name] & fallen(methods[name], base, theta) for name in group], axis=0)
            second = None
            if floor is not None and floor_gate is not None:
                second = (
                    present & base_gate & fallen(base, floor, theta),
                    present & floor_gate & fallen(floor, base, theta),
                    ~np.isnan(floor),
                )
            for task in (ALL_TASKS, *names):
                rows = np.arange(len(base)) if task is None else where[task]
                counts.append(
                    _count(group, task, theta, rows, present, present & base_gate, negative, mirror, second, clusters)
                )
    return _adjusted(counts, every_theta)


def _adjusted(counts: list[NegativeCount], thetas: Sequence[float]) -> list[NegativeCount]:
    primary = thetas[0] if thetas else None
    found = list(counts)
    for by_task in (False, True):
        family = [
            place
            for place, count in enumerate(counts)
            if count.theta == primary and len(count.methods) == 1 and (count.task is not None) is by_task
        ]
        adjusted = holm([counts[place].against_mirror.p_value for place in family])
        for place, p_value in zip(family, adjusted, strict=True):
            found[place] = replace(counts[place], adjusted_p=p_value)
    return found


def _net(lost: Bools, won: Bools, units: Ints | None) -> Estimate:
    """Negative less mirror over all rows, its error by request; no change of n does not exclude that 3 of them do."""
    change = lost.astype(np.float64) - won
    number = np.arange(len(change)) if units is None else units
    found = mean_change(change, np.zeros(len(change), np.int64), number, bounded=True)
    method, total = "t, by request", float(change.sum())
    if found.request_se is None:
        return Estimate(estimate=total, method=method, n=found.requests)
    half = max(t_quantile((1 + LEVEL) / 2, found.requests - 1) * found.request_se, found.least_half) * len(change)
    return Estimate(estimate=total, low=total - half, high=total + half, method=method, n=found.requests)


def first_of_each(keys: Iterable[Hashable]) -> tuple[list[int], int]:
    """Rows to keep so that every key comes once, and how many rows that leaves out."""
    seen: set[Hashable] = set()
    kept = []
    total = 0
    for row, key in enumerate(keys):
        total += 1
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept, total - len(kept)


def _rows_by_task(tasks: Sequence[str]) -> dict[str, Ints]:
    names, place = np.unique(np.array(list(tasks), dtype=str), return_inverse=True)
    return {str(name): np.flatnonzero(place == number) for number, name in enumerate(names)}


def _gated(scores: Floats, where: Mapping[str, Ints], gate: Gate) -> Bools:
    passed = np.zeros(len(scores), bool)
    for rows in where.values():
        passed[rows] = gate.passed(scores[rows])
    return passed


def _count(
    group: tuple[str, ...],
    task: str | None,
    theta: float,
    rows: Ints,
    present: Bools,
    eligible: Bools,
    negative: Bools,
    mirror: Bools,
    second: tuple[Bools, Bools, Bools] | None,
    clusters: Ints | None,
) -> NegativeCount:
    used = rows[present[rows]]
    units = None if clusters is None else clusters[used]
    lost, won = negative[used], mirror[used]
    floor: tuple[Bools, Bools] | None = None
    against_floor = None
    floor_pairs = None
    if second is not None:
        known = used[second[2][used]]
        floor, floor_pairs = (second[0][known], second[1][known]), len(known)
        against_floor = mcnemar(~floor[0], ~negative[known], None if clusters is None else clusters[known])
    return NegativeCount(
        methods=group,
        task=task,
        theta=theta,
        pairs=len(used),
        eligible=int(eligible[used].sum()),
        negative=int(lost.sum()),
        mirror=int(won.sum()),
        floor_pairs=floor_pairs,
        floor_negative=None if floor is None else int(floor[0].sum()),
        floor_mirror=None if floor is None else int(floor[1].sum()),
        net=_net(lost, won, units),
        # a row counts as lost where it is negative, as won where it is its mirror; it is never both
        against_mirror=mcnemar(~won, ~lost, units),
        against_floor=against_floor,
        rows=tuple(used[lost].tolist()),
    )
