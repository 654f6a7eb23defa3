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

from kvload.analysis.prediction.steps import PROMPT_STEPS, PROMPT_TOKENS, Cube, Steps
from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.errors import UsageError
from kvload.step_model import COEFFICIENTS, FEATURES, PARTS, Spread, StepModel

ROUNDS = 8
"""Reweightings: errors relative to the last round's prediction, less weight on steps far out (a stall), other paths."""

FAR = 30.0
"""Robust standard deviations beyond which a step loses weight (Huber). Step times have a long tail that belongs to
their mean: only what no step does is cut."""

FEWEST_STEPS = 8

LEAST_PART = 0.03
"""Share of the time that a part of the steps must have for its deviation to be told."""

LAUNCHES = (2.0, 4.0, 8.0)
"""Medians of a step without prompts at which the search for the time of a launch begins."""

EVIDENCE = 10.0
"""A launch that was not seen must lower ``n log(mean squared error)`` by this much, or there is none (as in BIC, where
one more parameter costs ``log n``; somewhat more, since neighbouring steps err alike)."""

DRAWS, DRAW_ROUNDS, BLOCKS = 24, 4, 24
"""Fits behind the uncertainty, their rounds, and pieces of the measured time that each weighs anew. Steps that follow
each other err alike, so that not steps but whole pieces are taken as independent."""

LAUNCH = COEFFICIENTS.index("launch")
SHARED = [COEFFICIENTS.index(name) for name in ("prompt_tokens", "prompt_work")]

FEWEST_LAUNCHES = 12
"""Launches that must be seen for their time to be told from them alone."""

TIMES_LAUNCHED = 5
"""Launches of different length that a stretch is averaged over."""


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
        sure = jitter / np.sqrt(min(len(launches_s), BLOCKS))
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
    blocks = min(BLOCKS, count // 2)
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


@dataclass(frozen=True)
class Deviation:
    """Logarithms of measured to fitted time of a run's steps, of their parts; None for one that has no share."""

    decode: float | None
    prompt: float | None
    launch: float | None


def deviation(coefficients: Floats, host: Host, steps: Steps) -> Deviation:
    """How a run deviates from a model that was fitted without it."""
    from scipy.optimize import nnls

    belongs = np.array([[name in part for part in PARTS] for name in COEFFICIENTS], dtype=float)
    factors, used = np.ones(len(PARTS)), np.zeros(len(PARTS), np.bool_)
    for _ in range(ROUNDS if len(steps) else 0):
        now = coefficients * (belongs @ factors)
        parts = paths(steps, now, host) * coefficients @ belongs
        used = parts.sum(axis=0) > LEAST_PART * parts.sum()
        if not used.any():
            break
        row = 1 / np.maximum(parts @ factors, 1e-9)
        rest = steps.seconds - parts[:, ~used].sum(axis=1)
        found, _ = nnls(parts[:, used] * row[:, None], rest * row)
        factors = np.ones(len(PARTS))
        factors[used] = np.maximum(found, 0.05)
    logs = [float(np.log(factor)) if told else None for factor, told in zip(factors, used, strict=True)]
    return Deviation(*logs)


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
