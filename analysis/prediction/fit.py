"""The physical step-time model fitted to measured steps, with its uncertainty.

``seconds = a steps + b steps with prompts + c decodes + d context + e prompt tokens + f prompt work``, every
coefficient 0 or more (non-negative least squares), errors relative: a step of 5 ms and one of 50 ms count alike. Few
coefficients on purpose: forms with more, and trees, fit better where they were measured and fail beyond it.

A step with prompts often takes a floor's time whatever their length: a GPU waits for the launch of its kernels until
the prompts are long enough to fill it. The first ``free_prompt_tokens`` of a step then cost nothing beside ``b``; how
many is searched for, and none are free where that explains the steps hardly better.
"""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.prediction.steps import Steps
from kvload.analysis.records.table import Bools, Floats
from kvload.errors import UsageError
from kvload.step_model import DECODE_FEATURES, FEATURES, PROMPT_FEATURES, Spread

ROUNDS = 6
"""Reweightings: errors relative to the last round's prediction, and weight off steps far out (a stall, say)."""

FAR = 30.0
"""Robust standard deviations beyond which a step loses weight (Huber). Step times have a long tail that belongs to
their mean: only what no step does is cut."""

FEWEST_STEPS = 8

PARTS = (DECODE_FEATURES, PROMPT_FEATURES)

LEAST_PART = 0.03
"""Share of the time that a part of the steps must have for its deviation to be told."""

FREE_TOKENS = (64, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
"""Prompt tokens of a step that may be free."""

EVIDENCE = 10.0
"""Free tokens must lower ``n log(mean squared error)`` by this much, or there are none (as in BIC, where one more
parameter costs ``log n``; somewhat more, since neighbouring steps err alike): a knee that is not in the steps would
bend the line beyond them."""


@dataclass(frozen=True)
class Fit:
    """Coefficients in seconds, in the order of ``FEATURES``.

    Attributes:
        covariance: ``(features, features)``; zero for coefficients that are held at 0.
        hull: least and most of each feature of a step.
        free_prompt_tokens: prompt tokens of a step that cost nothing by themselves.
        errors: relative error of each step, in-sample.
    """

    coefficients: Floats
    covariance: Floats
    hull: dict[str, tuple[float, float]]
    errors: Floats
    free_prompt_tokens: int = 0

    def seconds(self, steps: Steps) -> Floats:
        """What steps cost by the model, ``(n,)``."""
        found: Floats = steps.beyond(self.free_prompt_tokens) @ self.coefficients
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
    if len(steps) < FEWEST_STEPS:
        raise UsageError(f"{len(steps)} measured steps are too few to fit from", hint=f"at least {FEWEST_STEPS} are")
    free, best = 0, _solve(steps.work, steps.seconds)
    least = best.error * np.exp(-EVIDENCE / len(steps))
    busy = steps.prompts[steps.prompts > 0]
    for tokens in FREE_TOKENS:
        # A knee is seen only with steps on both sides of it.
        if len(busy) < FEWEST_STEPS or not np.quantile(busy, 0.1) < tokens < np.quantile(busy, 0.9):
            continue
        found = _solve(steps.beyond(tokens), steps.seconds)
        if found.error < least:
            free, best, least = tokens, found, found.error
    work = steps.beyond(free)
    each = steps.work / steps.work[:, :1]
    hull = {name: (float(each[:, place].min()), float(each[:, place].max())) for place, name in enumerate(FEATURES)}
    errors = work @ best.coefficients / steps.seconds - 1
    covariance = _covariance(work, steps.seconds, best.coefficients, best.row)
    return Fit(best.coefficients, covariance, hull, errors, free)


@dataclass(frozen=True)
class _Solution:
    """Coefficients, the weight of each step's error in seconds, and the mean of squared relative errors, weighted."""

    coefficients: Floats
    row: Floats
    error: float


def _solve(work: Floats, seconds: Floats) -> _Solution:
    from scipy.optimize import nnls

    used: Bools = work.max(axis=0) > 0
    scale = np.where(used, work.max(axis=0), 1.0)
    relative = 1 / seconds
    weights = np.ones(len(seconds))
    coefficients = np.zeros(len(FEATURES))
    for number in range(ROUNDS):
        if number:
            # Relative to what is expected, not to what came: the mean is wanted, and steps that took long are rare.
            relative = 1 / np.maximum(work @ coefficients, 1e-9)
        row = weights * relative
        found, _ = nnls((work / scale)[:, used] * row[:, None], seconds * row)
        coefficients[used] = found / scale[used]
        errors = seconds / np.maximum(work @ coefficients, 1e-9) - 1
        spread = 1.4826 * np.median(np.abs(errors - np.median(errors))) or 1e-12
        weights = np.sqrt(np.minimum(1.0, FAR * spread / np.maximum(np.abs(errors), 1e-12)))
    return _Solution(coefficients, weights * relative, float(np.mean((weights * errors) ** 2)))


def _covariance(work: Floats, seconds: Floats, coefficients: Floats, row: Floats) -> Floats:
    free = np.flatnonzero(coefficients > 0)
    covariance = np.zeros((len(FEATURES), len(FEATURES)))
    design = work[:, free] * row[:, None]
    residual = (seconds - work @ coefficients) * row
    variance = float(residual @ residual) / max(1, len(seconds) - len(free))
    # Neighbouring steps err alike (the same stretch of a run): an effective number of steps, from their correlation.
    lag = float(np.corrcoef(residual[:-1], residual[1:])[0, 1]) if len(residual) > 2 and residual.std() else 0.0
    lag = min(max(lag, 0.0), 0.98)
    covariance[np.ix_(free, free)] = variance * (1 + lag) / (1 - lag) * np.linalg.pinv(design.T @ design)
    return covariance


@dataclass(frozen=True)
class Deviation:
    """Logarithms of measured to fitted time of a run's steps, of their two parts; None for one that has no share."""

    decode: float | None
    prompt: float | None


def deviation(coefficients: Floats, free_prompt_tokens: int, steps: Steps) -> Deviation:
    """How a run deviates from a model that was fitted without it."""
    from scipy.optimize import nnls

    work = steps.beyond(free_prompt_tokens) * coefficients
    parts = np.stack([work[:, [FEATURES.index(name) for name in names]].sum(axis=1) for names in PARTS], axis=1)
    expected = np.maximum(parts.sum(axis=1), 1e-9)
    used = parts.sum(axis=0) > LEAST_PART * parts.sum()
    if not len(steps) or not used.any():
        return Deviation(None, None)
    row = 1 / expected
    rest = steps.seconds - parts[:, ~used].sum(axis=1)
    factors, _ = nnls(parts[:, used] * row[:, None], rest * row)
    logs = np.full(len(PARTS), np.nan)
    logs[used] = np.log(np.maximum(factors, 0.05))
    decode, prompt = (None if np.isnan(value) else float(value) for value in logs)
    return Deviation(decode, prompt)


def draw(coefficients: Floats, covariance: Floats, spread: Spread, rng: np.random.Generator) -> Floats:
    """Coefficients as they may be: from their covariance, none below 0, and both parts as another run may have them."""
    found = np.maximum(0.0, rng.multivariate_normal(coefficients, covariance, method="svd"))
    for names, part in zip(PARTS, (spread.decode, spread.prompt), strict=True):
        found[[FEATURES.index(name) for name in names]] *= np.exp(rng.normal(0.0, part))
    drawn: Floats = found
    return drawn
