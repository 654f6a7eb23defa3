"""The physical step-time model fitted to measured steps, with its uncertainty.

``seconds = a steps + b steps with prompts + c decodes + d context + e prompt tokens + f prompt work``, every
coefficient 0 or more (non-negative
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
"""Reweightings: errors relative to the last round's prediction, and weight off steps far out (a stall, say)."""

FAR = 30.0
"""Robust standard deviations beyond which a step loses weight (Huber). Step times have a long tail that belongs to
their mean: only what no step does is cut."""

BLOCKS = 8
"""Parts of the measured time whose speed is compared with the fit, for what the model leaves out."""

FEWEST_STEPS = 8


@dataclass(frozen=True)
class Fit:
    """Coefficients in seconds, in the order of ``FEATURES``.

    Attributes:
        covariance: ``(features, features)``; zero for coefficients that are held at 0.
        hull: least and most of each feature of a step.
        errors: relative error of each step, in-sample.
        misfit: spread (standard deviation of the logarithm) of measured to fitted time over long stretches: what the
            model leaves out, which no number of steps averages away.
    """

    coefficients: Floats
    covariance: Floats
    hull: dict[str, tuple[float, float]]
    errors: Floats
    misfit: float

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
    for number in range(ROUNDS):
        if number:
            # Relative to what is expected, not to what came: the mean is wanted, and steps that took long are rare.
            relative = 1 / np.maximum(steps.work @ coefficients, 1e-9)
        row = weights * relative
        found, _ = nnls((steps.work / scale)[:, used] * row[:, None], steps.seconds * row)
        coefficients[used] = found / scale[used]
        errors = steps.seconds / np.maximum(steps.work @ coefficients, 1e-9) - 1
        spread = 1.4826 * np.median(np.abs(errors - np.median(errors))) or 1e-12
        weights = np.sqrt(np.minimum(1.0, FAR * spread / np.maximum(np.abs(errors), 1e-12)))
    each = steps.work / steps.work[:, :1]
    hull = {name: (float(each[:, place].min()), float(each[:, place].max())) for place, name in enumerate(FEATURES)}
    errors = steps.work @ coefficients / steps.seconds - 1
    covariance = _covariance(steps, coefficients, weights * relative)
    return Fit(coefficients, covariance, hull, errors, _misfit(steps, coefficients))


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


def _misfit(steps: Steps, coefficients: Floats) -> float:
    blocks = np.array_split(np.arange(len(steps)), min(BLOCKS, len(steps) // 4 or 1))
    fitted = steps.work @ coefficients
    ratios = [np.log(steps.seconds[block].sum() / fitted[block].sum()) for block in blocks]
    return float(np.std(ratios, ddof=1)) if len(ratios) > 1 else 0.0


def draw(coefficients: Floats, covariance: Floats, drift: float, rng: np.random.Generator) -> Floats:
    """Coefficients as they may be: from their covariance, none below 0, and with a run's drift on all of them."""
    found = np.maximum(0.0, rng.multivariate_normal(coefficients, covariance, method="svd"))
    drifted: Floats = found * np.exp(rng.normal(0.0, drift))
    return drifted
