"""How far predictions err: one value of a parameter left out at a time, the far corner, and the skill of ratios.

A small error per method proves nothing about compression where methods hardly differ, so the ratio to the baseline is
scored by itself: skill is 1 less the squared error relative to that of "no change".
"""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.prediction.fit import FEWEST_STEPS, fit
from kvload.analysis.prediction.steps import Steps
from kvload.analysis.prediction.timing import ALONE, Host
from kvload.analysis.records.table import Bools, Floats

TELLING = np.log(1.05)
"""A ratio that moves by less than 5 % is not worth foretelling."""


@dataclass(frozen=True)
class HeldOut:
    """Errors of steps that a model was not fitted on.

    Attributes:
        mape: mean absolute relative error.
        p90, worst: of the absolute relative errors.
        n: steps predicted.
    """

    mape: float
    p90: float
    worst: float
    n: int

    @classmethod
    def of(cls, errors: Floats) -> "HeldOut":
        """Summarise relative errors."""
        size = np.abs(errors)
        return cls(float(size.mean()), float(np.quantile(size, 0.9)), float(size.max()), len(size))


def leave_out(steps: Steps, groups: Floats, host: Host = ALONE) -> Floats:
    """Relative error of every step when all steps with its value of ``groups`` are left out of the fit.

    Returns:
        NaN where too few steps are left to fit from.
    """
    errors = np.full(len(steps), np.nan)
    for value in np.unique(groups):
        held: Bools = groups == value
        if (~held).sum() < FEWEST_STEPS:
            continue
        errors[held] = fit(steps.where(~held), host).seconds(steps.where(held)) / steps.seconds[held] - 1
    return errors


def held_out(steps: Steps, inside: Bools, host: Host = ALONE) -> Floats:
    """Relative errors of the steps not ``inside`` when fitted on those inside: the far corner, from the near one."""
    far = steps.where(~inside)
    errors: Floats = fit(steps.where(inside), host).seconds(far) / far.seconds - 1
    return errors


@dataclass(frozen=True)
class RatioSkill:
    """How well ratios to the baseline are foretold.

    Attributes:
        skill: 1 less the squared log error relative to that of "no change"; None where the true ratios are all 1.
        sign_right: share of the ratios that truly move by 5 % or more whose direction is right; None without any.
        moving: how many do.
        n: ratios.
    """

    skill: float | None
    sign_right: float | None
    moving: int
    n: int


def ratio_skill(true: Floats, predicted: Floats) -> RatioSkill:
    """Score ratios of seconds, arm to baseline, above 0."""
    truth, guess = np.log(true), np.log(predicted)
    nothing = float(truth @ truth)
    moving = np.abs(truth) >= TELLING
    return RatioSkill(
        skill=1 - float((truth - guess) @ (truth - guess)) / nothing if nothing else None,
        sign_right=float(np.mean(np.sign(truth[moving]) == np.sign(guess[moving]))) if moving.any() else None,
        moving=int(moving.sum()),
        n=len(truth),
    )
