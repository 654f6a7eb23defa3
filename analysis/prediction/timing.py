"""How long stretches of steps take under given coefficients: the longest path through the GPU's work and the host's.

The GPU's work adds up. The host must have launched a step with prompts before it is over, which takes ``launch``
seconds from the moment it was scheduled; a server that schedules ahead does so while the step before computes.
"""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.prediction.steps import PROMPT_STEPS, Cube, Steps
from kvload.analysis.records.table import Floats
from kvload.step_model import COEFFICIENTS, FEATURES, StepModel

LAUNCH = COEFFICIENTS.index("launch")

FEWEST_LAUNCHES = 12
"""Launches that must be seen for their time to be told from them alone."""

TIMES_LAUNCHED = 5
"""Launches of different length that a stretch is averaged over."""

PIECES = 24
"""Pieces of a measured time that are taken as independent: steps, and launches, that follow each other are alike."""


@dataclass(frozen=True)
class Host:
    """How a server launches steps.

    Attributes:
        ahead_steps: 0 where it launches a step when the one before is over, more where it does so when the output of
            the step before that is handed out.
        launch_s: mean seconds of a launch where they were seen; None where they must be found from the steps' times.
        jitter: standard deviation of the logarithm of a launch. Steps in a row are launched alike.
        sure: standard deviation of the logarithm of ``launch_s``.
    """

    ahead_steps: int = 0
    launch_s: float | None = None
    jitter: float = 0.0
    sure: float = 0.0

    @classmethod
    def seen(cls, ahead_steps: int, launches_s: Floats) -> "Host":
        """A host of which launches were seen.

        Those beyond twice the median count as that: a launch of a long prompt that waits for the GPU says nothing of
        the host.
        """
        if len(launches_s) < FEWEST_LAUNCHES or not ahead_steps:
            return cls(ahead_steps)
        cut = np.minimum(launches_s, 2 * np.median(launches_s))
        jitter = float(np.log(cut).std())
        # Launches of one piece of a run are alike: as many as there are pieces are independent, or as launches.
        sure = jitter / np.sqrt(min(len(launches_s), PIECES))
        return cls(ahead_steps, float(cut.mean()), jitter, float(sure))

    def factors(self) -> Floats:
        """Equally likely launches relative to their mean."""
        from scipy.stats import norm

        if not self.jitter:
            return np.ones(1)
        found: Floats = np.exp(self.jitter * norm.ppf((np.arange(TIMES_LAUNCHED) + 0.5) / TIMES_LAUNCHED))
        relative: Floats = found / found.mean()
        return relative


ALONE = Host()


def host_of(model: StepModel) -> Host:
    """The host as a model has it."""
    return Host(model.ahead_steps, model.coefficients[LAUNCH], model.launch_jitter)


def seconds(steps: Steps, coefficients: Floats, host: Host = ALONE) -> Floats:
    """What stretches of steps cost, ``(n,)``."""
    found: Floats = paths(steps, coefficients, host) @ coefficients
    return found


def paths(steps: Steps, coefficients: Floats, host: Host = ALONE) -> Floats:
    """What lies on the longest path through each stretch, ``(n, coefficients)``, on average over launches.

    Args:
        coefficients: in the order of ``COEFFICIENTS``; which path is the longest hangs on them.
    """
    found = np.zeros((len(steps), len(COEFFICIENTS)))
    found[:, : len(FEATURES)] = steps.work
    busy = np.flatnonzero(steps.each[:, :, PROMPT_STEPS].any(axis=1))
    if coefficients[LAUNCH] and len(busy):
        factors = host.factors()
        found[busy] = np.mean([_path(steps.each[busy], coefficients, host, factor) for factor in factors], axis=0)
    return found


def _path(each: Cube, coefficients: Floats, host: Host, factor: float) -> Floats:
    both = each.copy()
    both[:, :, PROMPT_STEPS] = 0.0
    costs = both @ coefficients[: len(FEATURES)]
    # Ends of the step before, of the one before that, of the last launch: seconds, and what lies on the way there.
    end, before, launched = (np.zeros(len(each)) for _ in range(3))
    on_end, on_before, on_launched = (np.zeros((len(each), len(COEFFICIENTS))) for _ in range(3))
    for place in range(each.shape[1]):
        if host.ahead_steps:
            late = launched > before
            start, on_start = np.where(late, launched, before), np.where(late[:, None], on_launched, on_before)
        else:
            start, on_start = end, on_end
        mixed = each[:, place, PROMPT_STEPS] > 0
        launched = start + coefficients[LAUNCH] * factor * mixed
        on_launched = on_start.copy()
        on_launched[:, LAUNCH] += mixed * factor
        before, on_before = end, on_end
        end = end + costs[:, place]
        late = mixed & (launched > end)
        on_end = np.where(late[:, None], on_launched, on_end)
        on_end[:, : len(FEATURES)] += np.where(late[:, None], 0.0, both[:, place])
        on_end[:, PROMPT_STEPS] += mixed
        end = np.where(late, launched, end) + coefficients[PROMPT_STEPS] * mixed
    return on_end
