"""The cells of a check: figures, their ratios to the baseline, and what two guesses without a model say of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvload.analysis.prediction.errors import TELLING, RatioSkill, ratio_skill

FIGURES = ("ttft.p50", "ttft.p99", "tpot.mean", "e2e.mean", "attainment")

OURS = "predicted"


@dataclass(frozen=True)
class Cell:
    """One figure of one run.

    Attributes:
        run: folder.
        figure: a name of :data:`FIGURES`.
        measured, predicted: seconds, or a share for ``attainment``.
        low, high: the middle 80 % of the prediction.
        error: relative; in points (a share) for ``attainment``.
        busy: share of the time that the simulated server worked.
    """

    run: str
    method: str
    figure: str
    measured: float
    predicted: float
    low: float
    high: float
    error: float
    busy: float

    @property
    def held(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Ratio:
    """A figure's ratio to the baseline's under the same load.

    Attributes:
        true, predicted: of what was measured, and of what was predicted.
        low, high: the middle 80 % of the prediction, the two runs independent.
        by_bytes: the ratio of the bytes of a token in the caches (1 for ``attainment``); None where not known.
        baseline: what was measured of the baseline.
        error: of the figure itself as predicted, without sign: relative; in points for ``attainment``.
    """

    run: str
    method: str
    figure: str
    true: float
    predicted: float
    low: float
    high: float
    by_bytes: float | None
    baseline: float
    error: float

    @property
    def moves(self) -> bool:
        """Whether the true ratio differs from 1 by 5 % or more."""
        return bool(abs(np.log(self.true)) >= TELLING)

    @property
    def held(self) -> bool:
        """Whether the interval holds the true ratio."""
        return self.low <= self.true <= self.high


def ratio_of(cell: Cell, baseline: Cell, by_bytes: float | None) -> Ratio:
    """The ratio of two cells of one figure, all above 0."""
    predicted = cell.predicted / baseline.predicted
    spreads = [np.log(max(each.high, 1e-9) / max(each.low, 1e-9)) / 2 for each in (cell, baseline)]
    wide = float(np.exp(np.hypot(*spreads)))
    true = cell.measured / baseline.measured
    return Ratio(
        cell.run,
        cell.method,
        cell.figure,
        true,
        predicted,
        predicted / wide,
        predicted * wide,
        by_bytes,
        baseline.measured,
        abs(cell.error),
    )


@dataclass(frozen=True)
class Guess:
    """How a way to foretell ratios fares.

    Attributes:
        name: ``predicted``, ``the baseline's figures`` or ``the baseline's, by bytes``.
        skill: over the ratios that truly move.
        error: by figure, the mean relative error of the method's figure; in points for ``attainment``.
    """

    name: str
    skill: RatioSkill
    error: dict[str, float]


def guesses(ratios: Sequence[Ratio]) -> list[Guess]:
    """Predictions beside two guesses that need no model, on the same cells."""
    ways: list[tuple[str, Callable[[Ratio], float | None]]] = [
        (OURS, lambda each: each.predicted),
        ("the baseline's figures", lambda _: 1.0),
        ("the baseline's, by bytes", lambda each: each.by_bytes),
    ]
    found = []
    for name, way in ways:
        known = [(each, value) for each in ratios if (value := way(each)) is not None]
        moving = [(each, value) for each, value in known if each.moves]
        errors: dict[str, list[float]] = {}
        for each, value in known:
            # A guess takes the baseline's measured figure, so that its error is the ratio's; a prediction has its own.
            unit = each.baseline if each.figure == "attainment" else 1 / each.true
            error = each.error if name == OURS else abs(value - each.true) * unit
            errors.setdefault(each.figure, []).append(error)
        skill = ratio_skill(np.array([each.true for each, _ in moving]), np.array([value for _, value in moving]))
        found.append(Guess(name, skill, {figure: float(np.mean(values)) for figure, values in errors.items()}))
    return [each for each in found if each.error]
