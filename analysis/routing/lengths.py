"""What a method does to the length of answers: quantiles of the ratio to the baseline's, by task.

Equally many ratios as probabilities stand for the distribution: drawn from at random they give its answers, as
``kvload predict --lengths`` does. Ratios that are known from one side only are placed as
:mod:`kvload.analysis.routing.targets` does; what lies beyond anything measured counts as the most that was.
"""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.records.table import Floats
from kvload.analysis.routing.samples import Samples
from kvload.analysis.routing.targets import labels

DRAWS = 101
SHOWN = (0.1, 0.5, 0.9)
LEAST_OF_TASK = 20


@dataclass(frozen=True, kw_only=True)
class TaskLengths:
    """The ratios of one task (None: of all).

    Attributes:
        quantiles: at :data:`SHOWN`; None where the cap hides it.
        floor: the same between the baseline's two runs; None where there is no second run.
        longer: share at least half as long again.
    """

    task: str | None
    n: int
    quantiles: tuple[float | None, ...]
    floor: tuple[float | None, ...] | None
    longer: float


@dataclass(frozen=True, kw_only=True)
class LengthModel:
    """One arm: ``ratios`` ascending, as ``kvload predict --lengths`` takes them; ``censored`` and ``unknown`` rows."""

    arm: str
    ratios: list[float]
    tasks: list[TaskLengths]
    censored: int
    unknown: int


def length_model(samples: Samples, *, seed: int = 0) -> LengthModel:
    """The length ratios of one arm.

    Raises:
        UsageError: no answer has a length under both.
    """
    rng = np.random.default_rng(seed)
    found = labels(samples, "inflation", rng=rng)
    known = found.known
    value, task = found.value[known], samples.task[known]
    floor = _floor(samples, seed)
    names = sorted({str(each) for each in task.tolist() if each is not None})
    tasks = [_of_task(None, value, floor)]
    if len(names) > 1:
        for name in names:
            rows = task == name
            if np.count_nonzero(rows) >= LEAST_OF_TASK:
                both = None if floor is None else floor[known][rows]
                tasks.append(_of_task(name, value[rows], both))
    finite = np.clip(value, *_bounds(value))
    ratios = np.exp(np.quantile(finite, np.linspace(0, 1, DRAWS)))
    return LengthModel(
        arm=samples.arm,
        ratios=[round(float(ratio), 4) for ratio in ratios],
        tasks=tasks,
        censored=found.censored,
        unknown=found.unknown,
    )


def _floor(samples: Samples, seed: int) -> Floats | None:
    """Log ratios between the baseline's two runs, NaN where there is none."""
    if np.isnan(samples.again_tokens).all():
        return None
    from dataclasses import replace

    again = replace(samples, arm_tokens=samples.again_tokens, arm_cut=samples.again_cut)
    return labels(again, "inflation", rng=np.random.default_rng(seed)).value


def _of_task(name: str | None, value: Floats, floor: Floats | None) -> TaskLengths:
    there = None if floor is None else floor[~np.isnan(floor)]
    return TaskLengths(
        task=name,
        n=len(value),
        quantiles=_quantiles(value),
        floor=None if there is None or not len(there) else _quantiles(there),
        longer=float(np.mean(value >= np.log(1.5))),
    )


def _quantiles(value: Floats) -> tuple[float | None, ...]:
    found = np.quantile(value, SHOWN, method="inverted_cdf")
    return tuple(float(np.exp(each)) if np.isfinite(each) else None for each in found)


def _bounds(value: Floats) -> tuple[float, float]:
    finite = value[np.isfinite(value)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
