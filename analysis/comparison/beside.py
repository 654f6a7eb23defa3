"""Whether running side by side bends what is measured: the same arm alone and beside others, and on different GPUs.

Every run gives one figure for each metric: the log of its mean over the requests that all these runs answered. One new
run of the same kind falls within

.. math:: \\bar x \\pm t_{1-\\alpha/2,\\,k-1}\\, s \\sqrt{1 + 1/k}

of ``k`` former ones (the prediction interval of a normal sample; Hahn & Meeker, *Statistical Intervals*, section 4.3):
the run alone is held against that, with what GPUs differ by in ``s``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.table import Floats, RecordTable
from kvload.analysis.statistics.estimates import LEVEL

METRICS = ("ttft", "tpot")


@dataclass(frozen=True)
class Change:
    """How much longer a metric is in one group of equal runs than in another.

    Attributes:
        metric: name in :data:`kvload.analysis.records.latency.METRICS`.
        first, second: what the groups are called; ``relative`` is the second's excess over the first.
        relative: 0.02 is 2 % longer.
        floor: what equal runs would differ by at most at the level; None where too few runs tell.
        runs: of the first and of the second group.
        requests: answered in all of them.
    """

    metric: str
    first: str
    second: str
    relative: float
    floor: float | None
    runs: tuple[int, int]
    requests: int

    @property
    def is_over(self) -> bool:
        """Whether it is more than equal runs differ by."""
        return self.floor is not None and abs(self.relative) > self.floor


def interference(alone: RecordTable, beside: Sequence[RecordTable], *, level: float = LEVEL) -> list[Change]:
    """What running beside others changes.

    Args:
        alone: records of a run of an arm with nothing beside it.
        beside: of runs of the same arm, or of its equal, beside others.
        level: confidence level.
    """
    found = []
    for metric in METRICS:
        figures, requests = _figures(metric, [alone, *beside])
        if requests == 0 or len(figures) < 2:
            continue
        others = figures[1:]
        found.append(
            Change(
                metric,
                "alone",
                "beside others",
                math.expm1(float(others.mean() - figures[0])),
                _floor([others], 1.0, 1.0 / len(others), level),
                (1, len(others)),
                requests,
            )
        )
    return found


def placement(groups: Mapping[str, Sequence[RecordTable]], *, level: float = LEVEL) -> list[Change]:
    """What the place changes: each place's equal runs against the first's.

    The more places, the more often one of them stands out by chance: each is held against a floor that equal places
    pass together at the level (Bonferroni).

    Args:
        groups: records of runs of one arm, or of its equal, by where they were made.
        level: confidence level for all places of a metric together.
    """
    found = []
    names = list(groups)
    each_level = 1 - (1 - level) / max(len(names) - 1, 1)
    for metric in METRICS if len(names) > 1 else ():
        figures, requests = _figures(metric, [run for runs in groups.values() for run in runs])
        if requests == 0:
            continue
        parts = np.split(figures, np.cumsum([len(runs) for runs in groups.values()])[:-1])
        for name, part in zip(names[1:], parts[1:], strict=True):
            found.append(
                Change(
                    metric,
                    names[0],
                    name,
                    math.expm1(float(part.mean() - parts[0].mean())),
                    _floor(parts, 1.0 / len(part), 1.0 / len(parts[0]), each_level),
                    (len(parts[0]), len(part)),
                    requests,
                )
            )
    return found


def _figures(metric: str, runs: Sequence[RecordTable]) -> tuple[Floats, int]:
    """Each run's log mean over the requests that all of them answered, and how many these are."""
    by_request = [_values(metric, run) for run in runs]
    common = sorted(set.intersection(*(set(values) for values in by_request))) if by_request else []
    if not common:
        return np.zeros(0), 0
    means = [float(np.mean([values[index] for index in common])) for values in by_request]
    if min(means) <= 0:
        return np.zeros(0), 0
    return np.log(means), len(common)


def _values(metric: str, table: RecordTable) -> dict[int, float]:
    values = latency.METRICS[metric](table)
    known = table.ok & ~np.isnan(values)
    return dict(zip(table.index[known].tolist(), values[known].tolist(), strict=True))


def _floor(parts: Sequence[Floats], one: float, other: float, level: float) -> float | None:
    """Half the width of the interval of a difference of two means of equal runs, from the spread within the parts."""
    from scipy import stats

    degrees = sum(len(part) - 1 for part in parts)
    if degrees < 1:
        return None
    variance = sum(float(((part - part.mean()) ** 2).sum()) for part in parts) / degrees
    return math.expm1(float(stats.t.ppf((1 + level) / 2, degrees)) * math.sqrt(variance * (one + other)))
