"""How a run deviates from a model that was fitted without it, and coefficients as another run may have them."""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.prediction.steps import Steps
from kvload.analysis.prediction.timing import PIECES, Host, paths, seconds
from kvload.analysis.records.table import Floats
from kvload.step_model import COEFFICIENTS, PARTS, Spread

ROUNDS = 8
"""Rounds in which parts are told apart, each on the paths that are the longest with the parts of the one before."""

LEAST_PART = 0.03
"""Share of the time that a part of the steps must have for its deviation to be told."""


@dataclass(frozen=True)
class Deviation:
    """Logarithms of measured to fitted time of a run's steps, of their parts; None for one that has no share.

    Attributes:
        noise: variance of each, by which another stretch of the same run would have shown another one; 0 where the
            logarithm is None, ``(parts,)``.
    """

    decode: float | None
    prompt: float | None
    launch: float | None
    noise: Floats

    def factors(self) -> Floats:
        """By how much each coefficient differs, ``(coefficients,)``; 1 where that is not told."""
        logs = (self.decode, self.prompt, self.launch)
        of = {name: log or 0.0 for names, log in zip(PARTS, logs, strict=True) for name in names}
        found: Floats = np.exp([of[name] for name in COEFFICIENTS])
        return found


def deviation(coefficients: Floats, host: Host, steps: Steps) -> Deviation:
    """How a run deviates from a model that was fitted without it."""
    from scipy.optimize import nnls

    belongs = np.array([[name in part for part in PARTS] for name in COEFFICIENTS], dtype=float)
    factors, used, noise = np.ones(len(PARTS)), np.zeros(len(PARTS), np.bool_), np.zeros(len(PARTS))
    for _ in range(ROUNDS if len(steps) else 0):
        now = coefficients * (belongs @ factors)
        parts = paths(steps, now, host) * coefficients @ belongs
        used = parts.sum(axis=0) > LEAST_PART * parts.sum()
        if not used.any():
            break
        row = 1 / np.maximum(parts @ factors, 1e-9)
        rest = steps.seconds - parts[:, ~used].sum(axis=1)
        design = parts[:, used] * row[:, None]
        found, _ = nnls(design, rest * row)
        factors, noise = np.ones(len(PARTS)), np.zeros(len(PARTS))
        factors[used] = np.maximum(found, 0.05)
        noise[used] = _noise(design, rest * row - design @ found) / factors[used] ** 2
    logs = [float(np.log(factor)) if told else None for factor, told in zip(factors, used, strict=True)]
    return Deviation(logs[0], logs[1], logs[2], noise)


def _noise(design: Floats, errors: Floats) -> Floats:
    """Variances of least squares coefficients, whole pieces of neighbouring rows independent, ``(columns,)``.

    The sandwich of Liang and Zeger (1986), over pieces.
    """
    pieces = min(PIECES, max(1, len(errors) // 2))
    place = np.arange(len(errors)) * pieces // max(1, len(errors))
    scores = np.zeros((pieces, design.shape[1]))
    np.add.at(scores, place, design * errors[:, None])
    bread = np.linalg.pinv(design.T @ design)
    found: Floats = np.diag(bread @ (scores.T @ scores) @ bread)
    return found


def leveled(draws: Floats, coefficients: Floats, host: Host, steps: Steps) -> Floats:
    """Drawn coefficients under which the parts of measured steps take as long as under the fitted ones.

    Runs that are held against a model of others lie as far from it as that model errs, too: how long the parts take
    altogether is in the spread of runs already, and would be drawn twice. How they are shared out is not.

    Args:
        draws: of the fit, ``(draws, coefficients)``.
        steps: those that it is of.
    """

    def factors(drawn: Floats) -> Floats:
        expected = Steps(steps.each, np.maximum(seconds(steps, drawn, host), 1e-9))
        return deviation(coefficients, host, expected).factors()

    found: Floats = draws / np.array([factors(drawn) for drawn in draws]).reshape(draws.shape)
    return found


def draw(coefficients: Floats, draws: Floats, spread: Spread, rng: np.random.Generator) -> Floats:
    """Coefficients as they may be: as other stretches would have given them, all parts as another run may have them.

    Args:
        draws: of a fit; the coefficients themselves where there are none.
    """
    found = draws[rng.integers(len(draws))].copy() if len(draws) else coefficients.copy()
    for names, part in zip(PARTS, (spread.decode, spread.prompt, spread.launch), strict=True):
        found[[COEFFICIENTS.index(name) for name in names]] *= np.exp(rng.normal(0.0, part))
    drawn: Floats = found
    return drawn
