"""How far another run may lie from a model: every run held against a model of the others.

A fit's own residuals say nothing of that. What is asked for is the error on a run that the model has not seen, so each
run is left out in turn and the rest is fitted. Where a method was run on several servers, all runs of a server are left
out together: another start, and another machine, differ by more than another run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from kvload.analysis.prediction.drift import deviation
from kvload.analysis.prediction.steps import Steps
from kvload.analysis.prediction.timing import host_of
from kvload.analysis.records.table import Floats, RecordTable
from kvload.experiment.prediction.loads import load_of_run, rows_of_load
from kvload.servers.simulator.cluster import serve
from kvload.step_model import Spread, StepModel

LONGEST_QUEUE = 3.0
"""First tokens of requests that waited longer than so many steps with prompts tell nothing of the time beside steps."""

FEWEST_FIRST_TOKENS = 5

LAUNCHED = 8
"""Simulations with launches of their own that a run is held against."""

FEWEST_OWN = 3
"""Runs that must be held against their own simulation for what that misses to be told."""

FEWEST_FREEDOM, LEAST_CROWD = 3, 10.0
"""Runs beyond the unknowns, and requests by which their crowds differ, from which on a growth is told from noise."""


@dataclass(frozen=True)
class FittedRun:
    """A run that models are fitted from.

    Attributes:
        table: its records.
        steps: those that can be told from them.
        server: which server it was made against.
    """

    table: RecordTable
    steps: Steps
    server: str


@dataclass(frozen=True)
class Left:
    """A run held against a model of the others, and how many other runs, or servers, there were.

    Attributes:
        decode, prompt, launch: log ratios of measured to foretold time of the parts of a step; None where not told.
        overhead_s: what first tokens take beside steps, less that of the others; None where not told.
        noise: variances of the log ratios: what the few steps of one run leave open is no drift.
    """

    decode: float | None
    prompt: float | None
    launch: float | None
    overhead_s: float | None
    others: int
    noise: Floats


def as_in(run: FittedRun, model: StepModel) -> StepModel:
    """The model with the parts of its steps as long as they were in a run."""
    coefficients = np.array(model.coefficients)
    factors = deviation(coefficients, host_of(model), run.steps).factors()
    return msgspec.structs.replace(model, coefficients=tuple((coefficients * factors).tolist()))


def leave_out_runs(
    runs: Sequence[FittedRun], rests_s: Sequence[float | None], modelled: Callable[[Sequence[FittedRun]], StepModel]
) -> list[Left]:
    """Hold each run of a method against the others; nothing where there is one run alone.

    Args:
        rests_s: what the first tokens of each run take beside its own steps (:func:`beside_steps` of :func:`as_in`):
            steps that were slow are another part of the spread.
        modelled: a model of some runs.
    """
    servers = {run.server for run in runs}
    left = []
    for place, run in enumerate(runs if len(runs) > 1 else []):
        kept = [
            number
            for number, other in enumerate(runs)
            if (other.server != run.server if len(servers) > 1 else number != place)
        ]
        model = modelled([runs[number] for number in kept])
        told = deviation(np.array(model.coefficients), host_of(model), run.steps)
        others_s = [rest for number in kept if (rest := rests_s[number]) is not None]
        own_s = rests_s[place]
        rest_s = own_s - float(np.median(others_s)) if own_s is not None and others_s else None
        others = len(servers) - 1 if len(servers) > 1 else len(kept)
        left.append(Left(told.decode, told.prompt, told.launch, rest_s, others, told.noise))
    return left


@dataclass(frozen=True)
class Own:
    """How a run differs from simulations under a model of nothing but itself: what no coefficient tells.

    Attributes:
        ttft: log ratios of measured to simulated TTFT, of its median and its 99th percentile.
        tpot: log ratio of the mean TPOT.
        ttft_launches, tpot_launches: variances of these that come of how launches happened to fall: they are drawn
            anew in every simulation.
    """

    ttft: tuple[float, float]
    tpot: float
    ttft_launches: tuple[float, float]
    tpot_launches: float


def own_errors(table: RecordTable, model: StepModel) -> Own | None:
    """Simulate a run under a model that was fitted from it alone; None where too little can be told."""
    beside = beside_steps(table, model)
    if beside is None:
        return None
    load_ = load_of_run(table)
    rows = rows_of_load(table)
    first_s, rest_s = (table.t_first_s - table.t_send_s)[rows], (table.t_last_s - table.t_first_s)[rows]
    later = load_.output_tokens > 1
    if not later.any():
        return None
    known = msgspec.structs.replace(model, overhead_s=max(0.0, beside.seconds))
    simulated = []
    for seed in range(LAUNCHED if model.launch_jitter else 1):
        served = serve(load_, known, seed=seed)
        if np.isnan(served.ttft_s).any():
            return None
        simulated.append(_shown(served.ttft_s, served.tpot_s[later]))
    logs = np.array(simulated)
    measured = _shown(first_s, rest_s[later] / (load_.output_tokens[later] - 1))
    median, tail, tpot = (measured - logs.mean(axis=0)).tolist()
    # Of the run itself, and of the mean of the simulations.
    varied = logs.var(axis=0, ddof=1) * (1 + 1 / len(logs)) if len(logs) > 1 else np.zeros(3)
    return Own((median, tail), tpot, (float(varied[0]), float(varied[1])), float(varied[2]))


def _shown(ttft_s: Floats, tpot_s: Floats) -> Floats:
    """Logarithms of the TTFT's median and 99th percentile, and of the mean TPOT."""
    values: Floats = np.log(np.maximum([*np.quantile(ttft_s, [0.5, 0.99]), np.mean(tpot_s)], 1e-9))
    return values


@dataclass(frozen=True)
class Beside:
    """What first tokens of a run took beside their steps as simulated, in the middle.

    Attributes:
        seconds: median.
        others: requests that receive a token in the same step, on average.
    """

    seconds: float
    others: float


def beside_steps(table: RecordTable, model: StepModel) -> Beside | None:
    """The rest of first tokens beyond their steps and the time their tokens are handed out; None for too few."""
    load_ = load_of_run(table)
    if len(load_) < FEWEST_FIRST_TOKENS or model.pool_tokens is None:
        return None
    served = serve(load_, msgspec.structs.replace(model, overhead_s=0.0))
    rests_s = (table.t_first_s - table.t_send_s)[rows_of_load(table)] - served.ttft_s
    prompt_step_s = max(sum(model.coefficients[:2]), model.coefficients[-1])
    calm = (served.queue_s <= LONGEST_QUEUE * prompt_step_s) & ~np.isnan(rests_s)
    if calm.sum() < FEWEST_FIRST_TOKENS:
        return None
    others = np.array([request.first_beside for request in served.requests])[calm]
    return Beside(float(np.median(rests_s[calm])), float(others.mean()))


def busy_front(found: Sequence[Sequence[Beside | None]]) -> float:
    """Seconds that the rest of first tokens grows by for every other request; 0 where too few runs tell.

    Args:
        found: the runs of each method; methods may differ by a constant.
    """
    from scipy.optimize import nnls

    rows, rests_s = [], []
    for place, runs in enumerate(found):
        for run in runs:
            if run is not None:
                rows.append([float(place == other) for other in range(len(found))] + [run.others])
                rests_s.append(run.seconds)
    design = np.array(rows)
    if len(rows) < len(found) + FEWEST_FREEDOM or np.ptp(design[:, -1]) < LEAST_CROWD:
        return 0.0
    solution, _ = nnls(design, np.array(rests_s))
    return float(solution[-1])


def spread_of(left: Sequence[Left], own: Sequence[Own]) -> Spread | None:
    """The spread of new runs around a model of all of them; None without any run left out."""
    if not left:
        return None
    assumed = Spread()
    enough = len(own) >= FEWEST_OWN

    def size(name: str, least: float, part: int | None = None) -> float:
        told = [each for each in left if getattr(each, name) is not None]
        if not told:
            return least
        # A run against a model of k others scatters by 1 + 1/k of its variance, a new one against k + 1 by less.
        scales = np.array([(1 + 1 / (each.others + 1)) / (1 + 1 / each.others) for each in told])
        values = np.array([getattr(each, name) for each in told]) * np.sqrt(scales)
        noise = 0.0 if part is None else float(np.mean([each.noise[part] for each in told] * scales))
        return _wide(values, noise)

    return Spread(
        decode=size("decode", assumed.decode, 0),
        prompt=size("prompt", assumed.prompt, 1),
        launch=size("launch", assumed.launch, 2),
        overhead_s=size("overhead_s", assumed.overhead_s),
        ttft=_rest([each.ttft for each in own], [each.ttft_launches for each in own]) if enough else assumed.ttft,
        tpot=_rest([each.tpot for each in own], [each.tpot_launches for each in own]) if enough else assumed.tpot,
        runs=len(left),
    )


def _wide(values: Floats, known: float = 0.0) -> float:
    """Standard deviation about 0, as wide as the middle 80 % of Student's t with so few values asks for.

    Args:
        known: variance that is told of elsewhere.
    """
    from scipy.stats import norm, t

    root = float(np.sqrt(max(0.0, float(np.mean(values**2)) - known)))
    return root * float(t.ppf(0.9, len(values)) / norm.ppf(0.9))


def _rest(errors: Sequence[float | tuple[float, float]], launches: Sequence[float | tuple[float, float]]) -> float:
    """What is left of errors beyond what launches explain of their variance."""
    return _wide(np.array(errors).ravel(), float(np.mean(launches)))
