"""What a method would do to a load: simulated with step times as they may be, beside the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from kvload.analysis.prediction.fit import draw
from kvload.analysis.records.table import Floats
from kvload.balancing import Policy
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import Hits, Load, Served, serve
from kvload.step_model import Spread, StepModel, StepModels

DRAWS = 20
"""Simulations behind an interval; each with coefficients and drift of its own."""

LEAST_SHARE = 0.005
"""Share of steps outside what was measured that is worth a word."""

SATURATED = 0.85
"""Share of time a server works beyond which waiting times hang on small errors of the step time."""


@dataclass(frozen=True)
class Prediction:
    """A method at one rate: central figures, and the middle 80 % of the draws.

    Attributes:
        central: of the load itself under the model's step times; where arrivals are drawn as well, the median of all
            simulations, since no one draw of arrivals is more likely than another.
        ratio: to the baseline under the same arrivals: central, low, high.
        busy: share of the time that the servers work.
        outside: features of a step that leave what was measured, with the share of steps that do.
        refused: requests that the pool can never hold.
        hits: how the load's prefix hits are known.
        cached: share of the prompts' tokens that the prefix caches held.
    """

    method: str
    rate_rps: float
    central: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    ratio: Mapping[str, tuple[float, float, float]]
    busy: float
    outside: Mapping[str, float]
    refused: int
    preemptions: int
    hits: Hits
    cached: float

    @property
    def near_saturation(self) -> bool:
        """Whether waiting times hang on small errors of the step time."""
        return self.busy > SATURATED


@dataclass(frozen=True)
class Serving:
    """How loads are served.

    Attributes:
        replicas, policy: servers, and how requests are spread over them.
        draws: simulations behind an interval; 0 for none.
        seed: decides everything that is drawn.
    """

    replicas: int = 1
    policy: Policy = "round-robin"
    draws: int = DRAWS
    seed: int = 0


def predict(
    load_of_rate: Mapping[float, Load],
    models: StepModels,
    methods: Sequence[str],
    slo: Mapping[str, float],
    serving: Serving | None = None,
    *,
    length_ratios: Mapping[str, Floats] | None = None,
    arriving: Callable[[Load, float, int], Load] | None = None,
) -> list[Prediction]:
    """Serve loads under each method, many times over with step times as they may be.

    Args:
        load_of_rate: loads by their rate in requests a second.
        methods: the first is the baseline that ratios are to.
        slo: limits in seconds on ``ttft``, ``tpot`` and ``e2e``.
        serving: servers, draws and seed.
        length_ratios: by method, ratios of answer lengths to the baseline's, drawn from for every request.
        arriving: given a load, its rate and a number, the load with other arrivals; the same ones in all simulations
            where None.
    """
    serving = serving or Serving()
    found: list[Prediction] = []
    for rate, load_ in load_of_rate.items():
        baseline: Sequence[Mapping[str, float]] | None = None
        for place, method in enumerate(methods):
            model = models.of(method)
            rng = np.random.default_rng([serving.seed, 17, place])
            stretched = with_lengths(load_, (length_ratios or {}).get(method), serving.seed)
            central = serve(stretched, model, replicas=serving.replicas, policy=serving.policy)
            runs = [figures(central, stretched, slo)]
            for number in range(serving.draws):
                came = stretched if arriving is None else arriving(stretched, rate, number)
                seed = int(rng.integers(2**31))
                may_be = drawn_model(model, rng)
                served = serve(came, may_be, replicas=serving.replicas, policy=serving.policy, seed=seed)
                runs.append(figures(as_a_run(served, drawn_rest(model.spread, rng)), came, slo))
            found.append(_prediction(method, rate, model, central, runs, baseline, drawn_arrivals=arriving is not None))
            baseline = baseline or runs
    return found


def drawn_rest(spread: Spread, rng: np.random.Generator) -> tuple[float, float]:
    """Factors on TTFT and TPOT: what a run shows that no step time tells."""
    first, rest = np.exp(rng.normal(0.0, [spread.ttft, spread.tpot])).tolist()
    return first, rest


def as_a_run(served: Served, factors: tuple[float, float]) -> Served:
    """What a run may show of this, with the factors of :func:`drawn_rest`."""
    first, rest = factors
    ttft_s = served.ttft_s * first
    return replace(
        served, ttft_s=ttft_s, tpot_s=served.tpot_s * rest, e2e_s=ttft_s + (served.e2e_s - served.ttft_s) * rest
    )


def drawn_model(model: StepModel, rng: np.random.Generator) -> StepModel:
    """The model as another run may show it."""
    coefficients = draw(np.array(model.coefficients), np.array(model.draws), model.spread, rng).tolist()
    overhead_s = max(0.0, model.overhead_s + rng.normal(0.0, model.spread.overhead_s))
    return msgspec.structs.replace(model, coefficients=tuple(coefficients), overhead_s=overhead_s)


def write_runs(
    out: Path,
    loads: Mapping[float, Load],
    models: StepModels,
    methods: Sequence[str],
    slo: Mapping[str, float],
    serving: Serving,
    *,
    length_ratios: Mapping[str, Floats] | None = None,
) -> list[RunDir]:
    """The central simulation of every rate and method as a run folder ``OUT/METHOD-RATE``; see :func:`predict`.

    Raises:
        RunDirError: one cannot be written.
    """
    from kvload.experiment.prediction.run_folder import write_run

    runs = []
    for rate, load_ in loads.items():
        for method in methods:
            model = models.of(method)
            stretched = with_lengths(load_, (length_ratios or {}).get(method), serving.seed)
            served = serve(stretched, model, replicas=serving.replicas, policy=serving.policy)
            name = f"{method.replace(':', '-').replace('=', '-')}-{rate:.4g}"
            runs.append(write_run(out / name, served, stretched, model, slo=slo, seed=serving.seed))
    return runs


def figures(served: Served, load_: Load, slo: Mapping[str, float]) -> dict[str, float]:
    """Percentiles (s), attainment, goodput (requests/s over the arrival window) and throughput (tokens/s), by name."""
    values: dict[str, float] = {}
    columns = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    for name, column in columns.items():
        known = column[~np.isnan(column)]
        for label, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            values[f"{name}.{label}"] = float(np.quantile(known, q)) if len(known) else float("nan")
        values[f"{name}.mean"] = float(known.mean()) if len(known) else float("nan")
    met = ~np.isnan(served.ttft_s)
    for name, limit_s in slo.items():
        if name in columns:
            # One token has no TPOT: such an answer meets any limit on it.
            met &= (columns[name] <= limit_s) | (np.isnan(columns[name]) & ~np.isnan(served.ttft_s))
    window_s = float(load_.arrival_s[-1] - load_.arrival_s[0]) or 1.0
    values["attainment"] = float(met.mean())
    values["goodput"] = float(met.sum()) / window_s
    last_s = float(np.nanmax(load_.arrival_s + served.e2e_s)) if not np.isnan(served.e2e_s).all() else float("nan")
    answered = ~np.isnan(served.e2e_s)
    values["tokens_per_s"] = float(load_.output_tokens[answered].sum()) / last_s if last_s else float("nan")
    return values


def with_lengths(load_: Load, ratios: Floats | None, seed: int) -> Load:
    """The load with answers as long as a method makes them.

    Args:
        ratios: of lengths to the baseline's, drawn from for every request; None for as they are.
    """
    if ratios is None or not len(ratios):
        return load_
    # Every part of the distribution as often as it should be, in a random order: the mean is not left to chance.
    drawn = np.quantile(ratios, (np.arange(len(load_)) + 0.5) / len(load_), method="inverted_cdf")
    np.random.default_rng([seed, 3]).shuffle(drawn)
    lengths = np.maximum(1, np.round(load_.output_tokens * drawn)).astype(np.int64)
    return replace(load_, output_tokens=lengths)


def _prediction(
    method: str,
    rate: float,
    model: StepModel,
    central: Served,
    runs: list[dict[str, float]],
    baseline: Sequence[Mapping[str, float]] | None,
    *,
    drawn_arrivals: bool,
) -> Prediction:
    def middle(values: Floats) -> float:
        if not drawn_arrivals or np.isnan(values).all():
            return float(values[0])
        return float(np.nanmedian(values))

    drawn = runs[1:] or runs
    spread = {name: np.array([run[name] for run in drawn]) for name in runs[0]}
    ratio = {}
    if baseline is not None:
        for name in runs[0]:
            ours, theirs = np.array([run[name] for run in runs]), np.array([run[name] for run in baseline])
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = ours / theirs
            low, high = _middle_80(ratios[1:] if len(ratios) > 1 else ratios)
            ratio[name] = (middle(ratios), low, high)
    ends = [replica.now_s for replica in central.replicas]
    return Prediction(
        method,
        rate,
        central={name: middle(np.array([run[name] for run in runs])) for name in runs[0]},
        low={name: _middle_80(values)[0] for name, values in spread.items()},
        high={name: _middle_80(values)[1] for name, values in spread.items()},
        ratio=ratio,
        busy=sum(replica.busy_s for replica in central.replicas) / max(1e-9, sum(ends)),
        outside=_outside(central, model),
        refused=sum(request.refused for request in central.requests),
        preemptions=central.preemptions,
        hits=central.hits,
        cached=central.cached_share,
    )


def _middle_80(values: Floats) -> tuple[float, float]:
    """Between which of the draws another one lies in 80 % of cases.

    The quantile that leaves out a tenth of the draws themselves is too narrow where they are few: rank p (n + 1).
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.1, 0.9], method="weibull")
    return float(low), float(high)


def _outside(served: Served, model: StepModel) -> dict[str, float]:
    """Share of simulated steps that leave what was measured, by feature; those that never do are left out."""
    total, beyond = 0, dict.fromkeys(("decodes", "context"), 0)
    for replica in served.replicas:
        for stretch in replica.log:
            total += stretch.steps
            for name, value in (("decodes", stretch.decodes), ("context", stretch.context)):
                limit = model.hull.get(name)
                beyond[name] += stretch.steps if limit is not None and value > limit[1] * 1.001 else 0
    return {name: count / total for name, count in beyond.items() if total and count / total >= LEAST_SHARE}
