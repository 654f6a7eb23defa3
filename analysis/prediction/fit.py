"""The physical step-time model fitted to measured steps, with its uncertainty.

``seconds = a + b decodes + c context + d prompt tokens + e prompt work``, every coefficient 0 or more (non-negative
least squares), errors relative: a step of 5 ms and one of 50 ms count alike. Few coefficients on purpose: forms with
more, and trees, fit better where they were measured and fail beyond it.
"""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.prediction.steps import Steps
from kvload.analysis.records.table import Bools, Floats
from kvload.errors import UsageError
from kvload.step_model import FEATURES

ROUNDS = 6
"""Reweightings that take weight from steps far off (a stall, a garbage collection)."""

FAR = 2.5
"""Robust standard deviations beyond which a step loses weight (Huber)."""

FEWEST_STEPS = 8


@dataclass(frozen=True)
class Fit:
    """Coefficients in seconds, in the order of ``FEATURES``.

    Attributes:
        covariance: ``(features, features)``; zero for coefficients that are held at 0.
        hull: least and most of each feature.
        errors: relative error of each step, in-sample.
    """

    coefficients: Floats
    covariance: Floats
    hull: dict[str, tuple[float, float]]
    errors: Floats

    def seconds(self, work: Floats) -> Floats:
        """What steps cost: ``work`` is ``(n, features)``."""
        found: Floats = work @ self.coefficients
        return found

    def outside(self, work: Floats) -> Bools:
        """Whether steps leave what was measured, by feature, ``(n, features)``; the constant never does."""
        low = np.array([self.hull[name][0] for name in FEATURES])
        high = np.array([self.hull[name][1] for name in FEATURES])
        found: Bools = (work < low * (1 - 1e-9)) | (work > high * (1 + 1e-9))
        return found


def fit(steps: Steps) -> Fit:
    """Fit the model.

    Raises:
        UsageError: too few steps.
    """
    from scipy.optimize import nnls

    if len(steps) < FEWEST_STEPS:
        raise UsageError(f"{len(steps)} measured steps are too few to fit from", hint=f"at least {FEWEST_STEPS} are")
    used: Bools = steps.work.max(axis=0) > 0
    scale = np.where(used, steps.work.max(axis=0), 1.0)
    relative = 1 / steps.seconds
    weights = np.ones(len(steps))
    coefficients = np.zeros(len(FEATURES))
    for _ in range(ROUNDS):
        row = weights * relative
        found, _ = nnls((steps.work / scale)[:, used] * row[:, None], steps.seconds * row)
        coefficients[used] = found / scale[used]
        errors = steps.work @ coefficients * relative - 1
        spread = 1.4826 * np.median(np.abs(errors - np.median(errors))) or 1e-12
        weights = np.sqrt(np.minimum(1.0, FAR * spread / np.maximum(np.abs(errors), 1e-12)))
    hull = {
        name: (float(steps.work[:, place].min()), float(steps.work[:, place].max()))
        for place, name in enumerate(FEATURES)
    }
    return Fit(coefficients, _covariance(steps, coefficients, weights * relative), hull, errors)


def _covariance(steps: Steps, coefficients: Floats, row: Floats) -> Floats:
    free = np.flatnonzero(coefficients > 0)
    covariance = np.zeros((len(FEATURES), len(FEATURES)))
    design = steps.work[:, free] * row[:, None]
    residual = (steps.seconds - steps.work @ coefficients) * row
    variance = float(residual @ residual) / max(1, len(steps) - len(free))
    # Neighbouring steps err alike (the same stretch of a run): an effective number of steps, from their correlation.
    lag = float(np.corrcoef(residual[:-1], residual[1:])[0, 1]) if len(residual) > 2 and residual.std() else 0.0
    lag = min(max(lag, 0.0), 0.98)
    covariance[np.ix_(free, free)] = variance * (1 + lag) / (1 - lag) * np.linalg.pinv(design.T @ design)
    return covariance


def draw(coefficients: Floats, covariance: Floats, drift: float, rng: np.random.Generator) -> Floats:
    """Coefficients as they may be: from their covariance, none below 0, and with a run's drift on all of them."""
    found = np.maximum(0.0, rng.multivariate_normal(coefficients, covariance, method="svd"))
    drifted: Floats = found * np.exp(rng.normal(0.0, drift))
    return drifted
