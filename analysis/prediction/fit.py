"""The physical step-time model fitted to measured steps, with its uncertainty.

What the GPU does in a step adds up: ``a steps + c decodes + d context + e prompt tokens + f prompt work``. The host
must have launched a step with prompts before that, which takes ``launch`` seconds from the moment it was scheduled; a
server that schedules ahead does so while the step before computes. The later of both counts, and ``b`` for the end of a
step with prompts. Every coefficient is 0 or more (non-negative least squares), errors are relative: a step of 5 ms and
one of 50 ms count alike. Few coefficients on purpose: forms with more, and trees, fit better where they were measured
and fail beyond it.

The time of a stretch is that of its longest path through both, and on a path all is a sum: so it is fitted by least
squares on the paths that are the longest with the coefficients so far, a few times over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvload.analysis.prediction.steps import PROMPT_STEPS, PROMPT_TOKENS, Steps
from kvload.analysis.prediction.timing import ALONE, LAUNCH, PIECES, Host, paths, seconds
from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.errors import UsageError
from kvload.step_model import COEFFICIENTS, FEATURES

ROUNDS = 8
"""Reweightings: errors relative to the last round's prediction, less weight on steps far out (a stall), other paths."""

FAR = 30.0
"""Robust standard deviations beyond which a step loses weight (Huber). Step times have a long tail that belongs to
their mean: only what no step does is cut."""

FEWEST_STEPS = 8

LAUNCHES = (2.0, 4.0, 8.0)
"""Medians of a step without prompts at which the search for the time of a launch begins."""

EVIDENCE = 10.0
"""A launch that was not seen must lower ``n log(mean squared error)`` by this much, or there is none (as in BIC, where
one more parameter costs ``log n``; somewhat more, since neighbouring steps err alike)."""

DRAWS, DRAW_ROUNDS = 24, 4
"""Fits behind the uncertainty, each of whole pieces of the measured time weighed anew, and their rounds."""

SHARED = [COEFFICIENTS.index(name) for name in ("prompt_tokens", "prompt_work")]


@dataclass(frozen=True)
class Part:
    """The measured steps of one method, and the host of its server."""

    steps: Steps
    host: Host


@dataclass(frozen=True)
class Fit:
    """Coefficients in seconds, in the order of ``COEFFICIENTS``.

    Attributes:
        draws: coefficients as other stretches of the same server would have given them, ``(draws, coefficients)``.
        hull: least and most of each feature of a step.
        errors: relative error of each stretch, in-sample.
    """

    coefficients: Floats
    draws: Floats
    hull: dict[str, tuple[float, float]]
    errors: Floats
    host: Host = ALONE

    def seconds(self, steps: Steps) -> Floats:
        """What stretches of steps cost by the model, ``(n,)``."""
        return seconds(steps, self.coefficients, self.host)


def fit(steps: Steps, host: Host = ALONE, *, draws: int = 0) -> Fit:
    """Fit the model.

    Args:
        draws: fits of other weights of the same steps, for the uncertainty.

    Raises:
        UsageError: too few steps.
    """
    if len(steps) < FEWEST_STEPS:
        raise UsageError(f"{len(steps)} measured steps are too few to fit from", hint=f"at least {FEWEST_STEPS} are")
    best = _start(steps, host)
    return _fits([Part(steps, host)], best[None], draws)[0]


def fit_together(parts: Sequence[Part], *, draws: int = 0) -> list[Fit]:
    """Fit several methods on servers of one model and one kind of device.

    The matrix products of a prompt token, and the attention of prompts, are the same for all, and prompts of one
    trace's lengths hardly tell the two apart: their costs are fitted over all methods together, everything else apart.
    A method whose own steps speak against that is fitted by itself.

    Raises:
        UsageError: one of them has too few steps.
    """
    alone = [fit(part.steps, part.host) for part in parts]
    starts = np.array([each.coefficients for each in alone])
    joined = list(range(len(parts)))
    while len(joined) > 1:
        some = [parts[place] for place in joined]
        shared = _solve(some, _alike(starts[joined]), [np.ones(len(part.steps)) for part in some]).coefficients
        worse = [
            len(part.steps) * np.log(_error(part, found) / _error(part, starts[place]))
            for place, part, found in zip(joined, some, shared, strict=True)
        ]
        if max(worse) <= EVIDENCE * len(SHARED):
            starts[joined] = _alike(shared)
            break
        joined.pop(int(np.argmax(worse)))
    found: dict[int, Fit] = {}
    if len(joined) > 1:
        found |= zip(joined, _fits([parts[place] for place in joined], starts[joined], draws), strict=True)
    for place, part in enumerate(parts):
        if place not in found:
            (found[place],) = _fits([part], starts[[place]], draws)
    return [found[place] for place in range(len(parts))]


def _alike(coefficients: Floats) -> Floats:
    """With the mean of what is shared in every row."""
    found = coefficients.copy()
    found[:, SHARED] = coefficients[:, SHARED].mean(axis=0)
    return found


def _error(part: Part, coefficients: Floats) -> float:
    """Mean of squared relative errors."""
    steps = part.steps
    return float(np.mean((steps.seconds / np.maximum(seconds(steps, coefficients, part.host), 1e-9) - 1) ** 2))


def _fits(parts: Sequence[Part], best: Floats, draws: int) -> list[Fit]:
    """The fits around coefficients that were found, ``(parts, coefficients)``."""
    rng = np.random.default_rng(0)
    drawn = np.zeros((draws, *best.shape))
    for rows in drawn:
        starts = best.copy()
        starts[:, LAUNCH] *= np.exp([rng.normal(0.0, part.host.sure) for part in parts])
        rows[:] = _solve(parts, starts, [_weights(len(part.steps), rng) for part in parts], DRAW_ROUNDS).coefficients
    found = []
    for place, part in enumerate(parts):
        counted = part.steps.each[part.steps.each[:, :, 0] > 0]
        ends = zip(FEATURES, counted.min(axis=0).tolist(), counted.max(axis=0).tolist(), strict=True)
        errors = seconds(part.steps, best[place], part.host) / part.steps.seconds - 1
        hull = {name: (low, high) for name, low, high in ends}
        found.append(Fit(best[place], drawn[:, place], hull, errors, part.host))
    return found


def _start(steps: Steps, host: Host) -> Floats:
    """The best coefficients of steps by themselves."""
    even = [np.ones(len(steps))]
    sums = _solve([Part(steps, replace(host, launch_s=None))], np.zeros((1, len(COEFFICIENTS))), even)
    mixed: Bools = np.any(steps.each[:, :, PROMPT_STEPS] > 0, axis=1)
    if mixed.sum() >= FEWEST_STEPS and (host.launch_s is not None or not mixed.all()):
        sums = _with_launch(steps, host, sums, mixed)
    first: Floats = sums.coefficients[0]
    return first


def _with_launch(steps: Steps, host: Host, sums: "_Solution", mixed: Bools) -> "_Solution":
    """The best fit with a launch, where steps show one.

    Args:
        sums: where all adds up.
        mixed: stretches with prompts, ``(n,)``.
    """
    even = [np.ones(len(steps))]
    tokens = float(np.quantile(steps.prompts[steps.prompts > 0], 0.9))
    # What prompts take may as well be all by their tokens as by the step: which steps wait for a launch hangs on it.
    by_token = sums.coefficients[0].copy()
    by_token[PROMPT_TOKENS] += by_token[PROMPT_STEPS] / tokens
    by_token[PROMPT_STEPS] = 0.0

    def tried(start: Floats, launch_s: float) -> _Solution:
        begun = start.copy()
        begun[LAUNCH] = launch_s
        return _solve([Part(steps, host)], begun[None], even)

    if host.launch_s is None:
        usual_s = float(np.median(steps.seconds[~mixed] / steps.work[~mixed, 0]))
        launches_s = [times * usual_s for times in LAUNCHES]
    else:
        launches_s = [host.launch_s]
    found = [tried(start, launch_s) for start in (sums.coefficients[0], by_token) for launch_s in launches_s]
    best = min(found, key=lambda each: each.error)
    return best if host.launch_s is not None or best.error < sums.error * np.exp(-EVIDENCE / len(steps)) else sums


def _weights(count: int, rng: np.random.Generator) -> Floats:
    """Weights of stretches, ``(count,)``: whole pieces of neighbours weigh what an exponential draw says.

    That is Rubin's Bayesian bootstrap, on blocks.
    """
    blocks = min(PIECES, count // 2)
    weights: Floats = rng.exponential(1.0, blocks)[np.arange(count) * blocks // count]
    return weights


@dataclass(frozen=True)
class _Solution:
    """Coefficients, ``(parts, coefficients)``, and the mean of squared relative errors, weighted."""

    coefficients: Floats
    error: float


def _solve(parts: Sequence[Part], starts: Floats, given: Sequence[Floats], rounds: int = ROUNDS) -> _Solution:
    """Least squares from a start; without a launch where that has none.

    Args:
        starts: ``(parts, coefficients)``; what is shared is alike in all.
        given: weights of the squared errors of each part's stretches.
    """
    from scipy.optimize import nnls

    took = np.concatenate([part.steps.seconds for part in parts])
    root = np.sqrt(np.concatenate(given))
    ends = np.cumsum([len(part.steps) for part in parts])
    places = [slice(end - len(part.steps), end) for part, end in zip(parts, ends, strict=True)]
    columns = _columns(len(parts))
    coefficients, expected, weights = starts, took, np.ones(len(took))
    for _ in range(rounds):
        work = np.zeros((len(took), columns.max() + 1))
        rest = took.copy()
        for part, row, column, place in zip(parts, coefficients, columns, places, strict=True):
            on_path = paths(part.steps, row, part.host)
            if part.host.launch_s is not None:
                # Launches that were seen are not fitted again.
                rest[place] -= on_path[:, LAUNCH] * row[LAUNCH]
                on_path[:, LAUNCH] = 0.0
            work[place, column] = on_path
        used: Bools = work.max(axis=0) > 0
        scale = np.where(used, work.max(axis=0), 1.0)
        # Relative to what is expected, not to what came: the mean is wanted, and steps that took long are rare.
        relative = root * weights / np.maximum(expected, 1e-9)
        solution, _ = nnls((work / scale)[:, used] * relative[:, None], rest * relative)
        found = np.zeros(len(used))
        found[used] = solution / scale[used]
        expected = work @ found + (took - rest)
        kept = np.array([part.host.launch_s is not None for part in parts])
        launches = np.where(kept, coefficients[:, LAUNCH], found[columns[:, LAUNCH]])
        coefficients = found[columns]
        coefficients[:, LAUNCH] = launches
        errors = took / np.maximum(expected, 1e-9) - 1
        weights = np.concatenate([_less_far(errors[place]) for place in places])
    costs = [seconds(part.steps, row, part.host) for part, row in zip(parts, coefficients, strict=True)]
    errors = took / np.maximum(np.concatenate(costs), 1e-9) - 1
    return _Solution(coefficients, float(np.mean((root * weights * errors) ** 2)))


def _columns(parts: int) -> Ints:
    """Where each part's coefficients stand among those that are fitted, ``(parts, coefficients)``."""
    found = np.arange(parts * len(COEFFICIENTS)).reshape(parts, -1)
    found[:, SHARED] = found[0, SHARED]
    return found


def _less_far(errors: Floats) -> Floats:
    spread = 1.4826 * np.median(np.abs(errors - np.median(errors))) or 1e-12
    weights: Floats = np.sqrt(np.minimum(1.0, FAR * spread / np.maximum(np.abs(errors), 1e-12)))
    return weights
