"""The load that a method carries: searched in simulations, and read off attainments at several rates.

A search raises the rate until fewer requests than the target meet the limits, then closes in on the crossing. Every
draw of step times and arrivals is searched by itself; the same draw of arrivals goes to all methods, so that ratios
hold what methods differ by and not what arrivals do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvload.analysis.records.table import Floats
from kvload.analysis.statistics.crossing import falling
from kvload.errors import UsageError
from kvload.experiment.prediction.forecast import (
    Serving,
    as_a_run,
    drawn_model,
    drawn_rest,
    figures,
    limits_before,
    with_lengths,
)
from kvload.experiment.prediction.outside import outside
from kvload.experiment.prediction.plan import Hopeless
from kvload.servers.simulator.cluster import Load, make_replica, serve
from kvload.step_model import StepModel, StepModels

TOLERANCE, DRAWN_TOLERANCE = 0.02, 0.05
"""A search ends where the rates that reach the target and miss it are so close: the central one, and a draw's."""

SLOWEST_RPS, FASTEST_RPS = 1e-3, 1e5
"""Where a search gives up: a method that misses the target at the first carries nothing, one that reaches it at the
second is not bounded by this trace."""

FIRST_STEP = 1.2
"""By how much a draw's search moves first, from where the central one ended."""

Arriving = Callable[[Load, float, int], Load]
"""Given a load, a rate and a number, the load with the arrivals of that number at that rate."""


@dataclass(frozen=True)
class Capacity:
    """What a method carries.

    Attributes:
        rate_rps: requests a second at which the target share still meets the limits: the median over the draws; 0 where
            not even the slowest load is carried, infinite where the trace cannot show an end.
        low, high: the middle 80 % of the draws.
        ratio: to the baseline's under the same arrivals: median, low, high; None for the baseline, and where in half of
            the draws one of the two carries nothing or has no end.
        held_s: for how long the trace keeps that rate up.
        too_large: requests that a server can never hold: they meet no limit at any rate.
        outside: at that rate; see :func:`~kvload.experiment.prediction.outside.outside`.
    """

    method: str
    rate_rps: float
    low: float
    high: float
    ratio: tuple[float, float, float] | None
    held_s: float
    too_large: int
    outside: Mapping[str, float] = field(default_factory=dict)


def find_capacities(
    load: Load,
    models: StepModels,
    methods: Sequence[str],
    slo: Mapping[str, float],
    arriving: Arriving,
    *,
    target: float,
    serving: Serving | None = None,
    length_ratios: Mapping[str, Floats] | None = None,
) -> list[Capacity]:
    """The highest rate at which a share of a load's requests meets all limits, under each method.

    Args:
        load: requests; their arrivals are made.
        methods: the first is the baseline.
        slo: limits in seconds on ``ttft``, ``tpot`` and ``e2e``.
        arriving: makes arrivals at a rate.
        target: the share.
        serving: servers, draws and seed.
        length_ratios: by method, ratios of answer lengths to the baseline's.

    Raises:
        UsageError: no limits are given.
    """
    if not slo:
        raise UsageError("--rate auto needs limits to meet", where="--slo", hint="--slo ttft=500ms,tpot=50ms")
    serving = serving or Serving()
    found: list[Capacity] = []
    baseline: Floats | None = None
    start = 1.0
    for place, method in enumerate(methods):
        model = models.of(method)
        rng = np.random.default_rng([serving.seed, 17, place])
        stretched = with_lengths(load, (length_ratios or {}).get(method), serving.seed, model.max_model_len)
        rates = []
        for number in range(serving.draws + 1):
            drawn, factors = (drawn_model(model, rng), drawn_rest(model.spread, rng)) if number else (model, (1.0, 1.0))

            def share(
                rate: float,
                drawn: StepModel = drawn,
                factors: tuple[float, float] = factors,
                number: int = number,
                sent: Load = stretched,
            ) -> float:
                came = arriving(sent, rate, number)
                hopeless = Hopeless(limits_before(slo, factors), target, len(came), drawn.token_s)
                seed = number or None
                served = serve(
                    came, drawn, replicas=serving.replicas, policy=serving.policy, give_up=hopeless, seed=seed
                )
                return figures(as_a_run(served, factors), came, slo)["attainment"]

            step, tolerance = (FIRST_STEP, DRAWN_TOLERANCE) if number else (2.0, TOLERANCE)
            rates.append(search(share, target, start, step, tolerance))
            start = min(max(rates[0], SLOWEST_RPS), FASTEST_RPS)
        values = np.array(rates)
        of = values[1:] if len(values) > 1 else values
        low, high = _quantiles(of)
        ratio = None
        if baseline is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                times = of / baseline
            known = times[np.isfinite(times)]
            # Nothing carried has no multiple, and what has no end is none.
            if 2 * len(known) > len(times):
                ratio = (float(np.median(known)), *_quantiles(known))
        else:
            baseline = of
        middle = float(np.median(of))
        held_s = len(load) / middle if middle else 0.0
        beyond: Mapping[str, float] = {}
        if 0 < middle < math.inf:
            came = arriving(stretched, middle, 0)
            beyond = outside(serve(came, model, replicas=serving.replicas, policy=serving.policy), model)
        found.append(Capacity(method, middle, low, high, ratio, held_s, _too_large(stretched, model), beyond))
    return found


def _too_large(load: Load, model: StepModel) -> int:
    replica = make_replica(model)
    sizes = zip(load.prompt_tokens.tolist(), load.output_tokens.tolist(), strict=True)
    return sum(not replica.takes(prompt, output) for prompt, output in sizes)


def search(
    share: Callable[[float], float], target: float, start: float, step: float, tolerance: float = TOLERANCE
) -> float:
    """The rate at which a share that falls with the rate crosses a target.

    Args:
        share: by rate.
        start: where to begin, requests a second.
        step: by what factor to move first; squared each time after.
        tolerance: how far apart the rates on the two sides may be at the end, relative.

    Returns:
        0 where the slowest rate misses the target, infinity where the fastest reaches it.
    """
    rate = other = min(max(start, SLOWEST_RPS), FASTEST_RPS)
    good = share(rate) >= target
    while True:
        if rate == (FASTEST_RPS if good else SLOWEST_RPS):
            return math.inf if good else 0.0
        other = min(rate * step, FASTEST_RPS) if good else max(rate / step, SLOWEST_RPS)
        if (share(other) >= target) != good:
            break
        rate, step = other, min(step * step, 16.0)
    low, high = min(rate, other), max(rate, other)
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        if share(middle) >= target:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


@dataclass(frozen=True)
class CapacityCell:
    """A capacity as runs at several rates show it, beside the predicted one.

    Attributes:
        measured: requests a second at which the share of requests that met the limits crosses the target.
        predicted, low, high: 0 and infinite where the rates do not bound the prediction.
        error: relative; NaN where the rates do not bound it.
        met_at, missed_at: the measured rates next to the crossing.
        slowest, fastest: of the runs' rates.
    """

    method: str
    measured: float
    predicted: float
    low: float
    high: float
    error: float
    met_at: float
    missed_at: float
    slowest: float
    fastest: float


@dataclass(frozen=True)
class AtRate:
    """A run's share of requests that met the limits: as measured, as predicted, and the prediction's interval."""

    method: str
    rate_rps: float
    requests: int
    measured: float
    predicted: float
    low: float
    high: float


def capacity_cells(points: Sequence[AtRate], target: float) -> list[CapacityCell]:
    """The capacities of all methods whose runs lie on both sides of the target."""
    found = []
    for method in dict.fromkeys(point.method for point in points):
        of = sorted((point for point in points if point.method == method), key=lambda point: point.rate_rps)
        rates = np.array([point.rate_rps for point in of])
        weights = np.array([point.requests for point in of], np.float64)

        def crossing(shares: list[float], rates: Floats = rates, weights: Floats = weights) -> float:
            return crossing_of(rates, np.array(shares), weights, target)

        measured = crossing([point.measured for point in of])
        if not 0 < measured < math.inf:
            continue
        predicted = crossing([point.predicted for point in of])
        found.append(
            CapacityCell(
                method,
                measured,
                predicted,
                crossing([point.low for point in of]),
                crossing([point.high for point in of]),
                predicted / measured - 1 if 0 < predicted < math.inf else math.nan,
                float(rates[rates <= measured].max()),
                float(rates[rates >= measured].min()),
                float(rates[0]),
                float(rates[-1]),
            )
        )
    return found


def crossing_of(rates: Floats, shares: Floats, weights: Floats, target: float) -> float:
    """The rate at which shares cross a target: between two rates in proportion to the shares, rates on a log scale.

    Args:
        rates: rising, ``(n,)``.
        shares: ``(n,)``; made to fall first, as shares do but for chance.
        weights: of the shares.

    Returns:
        0 where the slowest rate misses the target, infinity where the fastest reaches it.
    """
    fitted = falling(shares[None, :], weights)[0]
    reached = int((fitted >= target - 1e-12).sum())
    if reached == 0:
        return 0.0
    if reached == len(rates):
        return math.inf
    above, below = fitted[reached - 1], fitted[reached]
    way = (above - target) / (above - below)
    logs = np.log(rates)
    return float(np.exp(logs[reached - 1] + way * (logs[reached] - logs[reached - 1])))


def _quantiles(values: Floats) -> tuple[float, float]:
    """The tenth and the ninetieth percentile, as values that were found: some may be infinite."""
    low, high = np.quantile(values, [0.1, 0.9], method="closest_observation")
    return float(low), float(high)
