"""What a method would do to a load: simulated with step times as they may be, beside the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from kvload.analysis.prediction.drift import draw
from kvload.analysis.records.table import Bools, Floats
from kvload.balancing import Policy
from kvload.experiment.prediction.outside import outside
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import Hits, Load, Served, serve
from kvload.step_model import Spread, StepModel, StepModels

DRAWS = 20
"""Simulations behind an interval; each with coefficients and drift of its own."""

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
        outside: see :func:`~kvload.experiment.prediction.outside.outside`.
        refused: requests that a server can never hold.
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
            stretched = with_lengths(load_, (length_ratios or {}).get(method), serving.seed, model.max_model_len)
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


def limits_before(slo: Mapping[str, float], factors: tuple[float, float]) -> dict[str, float]:
    """Limits that a simulation misses only where a run with these factors, see :func:`as_a_run`, misses ``slo``."""
    first, rest = factors
    times = {"ttft": first, "tpot": rest, "e2e": min(first, rest)}
    return {name: limit_s / times[name] for name, limit_s in slo.items()}


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
            stretched = with_lengths(load_, (length_ratios or {}).get(method), serving.seed, model.max_model_len)
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
    good = met(served, slo)
    window_s = load_.window_s
    values["attainment"] = float(good.mean())
    values["goodput"] = float(good.sum()) / window_s if window_s else float("nan")
    answered = ~np.isnan(served.e2e_s)
    last_s = float(np.max((load_.arrival_s + served.e2e_s)[answered])) if answered.any() else float("nan")
    took_s = last_s - float(load_.arrival_s[0])
    values["tokens_per_s"] = float(load_.output_tokens[answered].sum()) / took_s if took_s else float("nan")
    return values


def met(served: Served, slo: Mapping[str, float]) -> Bools:
    """Which requests meet all limits, ``(n,)``: those that were refused, or not served any more, do not."""
    answered = ~np.isnan(served.e2e_s)
    found: Bools = answered.copy()
    columns = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    for name, limit_s in slo.items():
        # One token has no TPOT: such an answer meets any limit on it.
        found &= (columns[name] <= limit_s) | (answered & np.isnan(columns[name]))
    return found


def with_lengths(load_: Load, ratios: Floats | None, seed: int, max_model_len: int | None = None) -> Load:
    """The load with answers as long as a method makes them.

    Args:
        ratios: of lengths to the baseline's, drawn from for every request; None for as they are.
        max_model_len: tokens of prompt and answer at which a server ends an answer that has grown; None for no end.
    """
    if ratios is None or not len(ratios):
        return load_
    # Every part of the distribution as often as it should be, in a random order: the mean is not left to chance.
    drawn = np.quantile(ratios, (np.arange(len(load_)) + 0.5) / len(load_), method="inverted_cdf")
    np.random.default_rng([seed, 3]).shuffle(drawn)
    lengths = np.maximum(1, np.round(load_.output_tokens * drawn)).astype(np.int64)
    if max_model_len is not None:
        lengths = np.minimum(lengths, np.maximum(load_.output_tokens, max_model_len - load_.prompt_tokens))
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
    return Prediction(
        method,
        rate,
        central={name: middle(np.array([run[name] for run in runs])) for name in runs[0]},
        low={name: _middle_80(values)[0] for name, values in spread.items()},
        high={name: _middle_80(values)[1] for name, values in spread.items()},
        ratio=ratio,
        busy=central.busy,
        outside=outside(central, model),
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
