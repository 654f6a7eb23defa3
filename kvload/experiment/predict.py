"""Predictions: step models from runs, a trace served by the simulator, and what that says of latency and goodput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec
import numpy as np

from kvload import __version__
from kvload.analysis.prediction.fit import Fit, draw, fit
from kvload.analysis.prediction.steps import Steps, join, lone_first_tokens, rebuild
from kvload.analysis.records.table import Floats, RecordTable, load
from kvload.errors import UsageError
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import Load, Policy, Served, serve
from kvload.step_model import FEATURES, StepModel, StepModels
from kvload.untrusted import DECODE_ERRORS

if TYPE_CHECKING:
    from kvload.workloads.schedule.arrivals import ArrivalSpec

DRAWS = 20
"""Simulations behind an interval; each with coefficients and drift of its own."""

LEAST_SHARE = 0.005
"""Share of steps outside what was measured that is worth a word."""

SATURATED = 0.85
"""Share of time a server works beyond which waiting times hang on small errors of the step time."""


@dataclass(frozen=True)
class Overrides:
    """What the runs do not tell, or tell wrongly.

    Attributes:
        pool_tokens, max_sequences, chunk_tokens: in place of the server's own; None keeps those.
    """

    pool_tokens: int | None = None
    max_sequences: int | None = None
    chunk_tokens: int | None = None


def fit_models(paths: Sequence[Path], overrides: Overrides | None = None) -> StepModels:
    """A step model for each method among some runs.

    Args:
        paths: run folders; several of one method are taken together.

    Raises:
        UsageError: a run names no method, or a method has too few steps.
        RunDirError: a folder cannot be read.
    """
    overrides = overrides or Overrides()
    by_method: dict[str, list[tuple[RunDir, RunManifest, RecordTable]]] = {}
    for path in paths:
        run = RunDir.open(path)
        manifest = run.manifest()
        by_method.setdefault(method_of(manifest, path), []).append((run, manifest, load(run)))
    models = [_fit_one(method, runs, overrides) for method, runs in by_method.items()]
    models.sort(key=lambda model: model.method not in {"none", "auto"})
    return StepModels(kvload_version=__version__, models=models)


def measured_steps(table: RecordTable, model: StepModel) -> Steps:
    """The steps of a run that can be told from its records, for the server that a model describes."""
    return rebuild(table, chunk_tokens=model.chunk_tokens, kept_tokens=model.kept_tokens)


def _fit_one(method: str, runs: list[tuple[RunDir, RunManifest, RecordTable]], overrides: Overrides) -> StepModel:
    shape = _shape(method, runs[-1][1], overrides)
    steps = join([measured_steps(table, shape) for _, _, table in runs])
    try:
        found = fit(steps)
    except UsageError as error:
        folders = ", ".join(str(run.path) for run, _, _ in runs)
        raise UsageError(f"{method}: {error.message}", where=folders, hint=error.hint) from error
    size = np.abs(found.errors)
    drift, drift_runs = _drift([(manifest, table) for _, manifest, table in runs])
    return msgspec.structs.replace(
        shape,
        coefficients=tuple(found.coefficients.tolist()),
        covariance=found.covariance.tolist(),
        hull=found.hull,
        steps=len(steps),
        error_p50=float(np.median(size)),
        error_p90=float(np.quantile(size, 0.9)),
        overhead_s=_overhead_s([table for _, _, table in runs], found, shape),
        drift=shape.drift if drift is None else drift,
        drift_runs=drift_runs,
        runs=[str(run.path) for run, _, _ in runs],
    )


def _shape(method: str, manifest: RunManifest, overrides: Overrides) -> StepModel:
    from kvload.servers.catalogue.methods import METHODS, MethodSpec, read_method
    from kvload.servers.engines.base import ENGINES, adapter
    from kvload.servers.engines.scheduling import Scheduling, limits

    server = manifest.server
    known = server.engine in ENGINES
    scheduling = adapter(server.engine).scheduling if server.engine and known else Scheduling("", "", "", 256, 2048, 16)
    found = limits(scheduling, server.command or [])
    spec = read_method(method)
    row = METHODS.get(spec.name) if isinstance(spec, MethodSpec) else None
    kept = None
    if row is not None and row.kept and isinstance(spec, MethodSpec):
        options = {option.name: option.default for option in row.options} | dict(spec.options)
        kept = int(sum(options[name] for name in row.kept))
    pool = overrides.pool_tokens or server.pool_tokens
    return StepModel(
        method=method,
        coefficients=(0.0, 0.0, 0.0, 0.0, 0.0),
        covariance=[],
        hull={},
        steps=0,
        error_p50=0.0,
        error_p90=0.0,
        engine=server.engine,
        engine_version=server.engine_version,
        device=server.device,
        model=server.model,
        pool_tokens=pool,
        page_tokens=found.page_tokens,
        max_sequences=overrides.max_sequences or found.max_sequences,
        chunk_tokens=overrides.chunk_tokens or found.chunk_tokens,
        kept_tokens=kept,
        evicts_while_decoding=bool(row and row.evicts_generated),
    )


def method_of(manifest: RunManifest, path: Path) -> str:
    """The method of a run's server.

    Raises:
        UsageError: the run does not say.
    """
    if manifest.server.method is None:
        raise UsageError(
            "the run does not say which method its server had",
            where=str(path),
            hint="runs against servers that kvload launched, or whose metrics name their cache's dtype, do",
        )
    return manifest.server.method


def _overhead_s(tables: list[RecordTable], found: Fit, shape: StepModel) -> float:
    """What first tokens of lone requests took beyond their steps: network, tokenising, the server's own loop."""
    rests = []
    for table in tables:
        prompts, ttft_s = lone_first_tokens(table)
        rests.append(ttft_s - found.seconds(_prefill(prompts, shape.chunk_tokens)))
    rest = np.concatenate(rests) if rests else np.zeros(0)
    return max(0.0, float(np.median(rest))) if len(rest) else 0.0


def _prefill(prompts: Floats, chunk_tokens: int) -> Floats:
    """The work of reading prompts, each alone: ``(n, features)``."""
    work = np.zeros((len(prompts), len(FEATURES)))
    work[:, 0] = np.ceil(prompts / chunk_tokens)
    work[:, 3] = prompts
    work[:, 4] = prompts * (prompts + 1) / 2
    return work


def _drift(runs: list[tuple[RunManifest, RecordTable]]) -> tuple[float | None, int]:
    """Spread of the speed of equal runs: of their total time from first to last token over the same requests."""
    groups: dict[tuple[str, str, int], list[RecordTable]] = {}
    for manifest, table in runs:
        key = (manifest.trace.sha256, msgspec.json.encode(manifest.arrivals).decode(), manifest.planned)
        groups.setdefault(key, []).append(table)
    squares, freedom = 0.0, 0
    for tables in groups.values():
        if len(tables) < 2:
            continue
        logs = np.array([np.log(np.nansum((table.t_last_s - table.t_first_s)[table.ok])) for table in tables])
        squares += float(((logs - logs.mean()) ** 2).sum())
        freedom += len(tables) - 1
    return (float(np.sqrt(squares / freedom)), freedom + 1) if freedom else (None, 0)


@dataclass(frozen=True)
class Prediction:
    """A method at one rate: central figures, and the middle 80 % of the draws.

    Attributes:
        busy: share of the time that the servers work.
        outside: features of a step that leave what was measured, with the share of steps that do.
        refused: requests that the pool can never hold.
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

    @property
    def near_saturation(self) -> bool:
        """Whether waiting times hang on small errors of the step time."""
        return self.busy > SATURATED


def read_load(
    path: Path,
    spec: ArrivalSpec,
    *,
    format: str | None = None,  # noqa: A002
    limit: int | None = None,
    default_output: int | None = None,
) -> Load:
    """The load of a trace: arrivals and lengths.

    Args:
        spec: when requests are due.
        format: the trace's, told by its content where None.
        limit: at most so many requests.
        default_output: tokens of an answer for which the trace records none.

    Raises:
        TraceError: the trace cannot be read.
        UsageError: it has no lengths.
    """
    from itertools import islice

    from kvload.workloads.schedule.arrivals import offsets
    from kvload.workloads.traces.formats import find_format, read_trace

    requests = list(islice(read_trace(path, find_format(path, format).name), limit))
    if not requests:
        raise UsageError("the trace has no requests", where=str(path))
    prompts, outputs, cached = [], [], []
    seen: set[int] = set()
    for request in requests:
        length = request.input_length
        if length is None and request.prompt_token_ids is not None:
            length = len(request.prompt_token_ids)
        output = request.output_length or request.max_tokens or default_output
        if length is None or output is None:
            what = "the length of its prompt" if length is None else "the length of its answer"
            raise UsageError(
                f"request '{request.id}' does not say {what}",
                where=str(path),
                hint="give a run folder in its place, whose server counted tokens; --output sets the answers' length",
            )
        prompts.append(max(1, length))
        outputs.append(max(1, output))
        cached.append(_cached(request.block_ids, request.block_size, seen))
    recorded = np.array([np.nan if request.arrival is None else request.arrival for request in requests])
    sessions = {name: place for place, name in enumerate(dict.fromkeys(request.session for request in requests))}
    return Load(
        offsets(recorded, spec),
        np.array(prompts),
        np.array(outputs),
        np.array(cached) if any(cached) else None,
        np.array([sessions[request.session] for request in requests]) if len(sessions) > 1 else None,
    )


def _cached(block_ids: list[int] | None, block_size: int | None, seen: set[int]) -> int:
    """Tokens of a prompt's leading blocks that an earlier request brought: a cache without limits holds them."""
    hit = 0
    for block in block_ids or ():
        if block not in seen:
            break
        hit += block_size or 0
    seen.update(block_ids or ())
    return hit


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


def policy_of(text: str) -> Policy:
    """A policy by its name.

    Raises:
        UsageError: there is none of that name.
    """
    for policy in get_args(Policy):
        if policy == text:
            found: Policy = policy
            return found
    raise UsageError(f"no policy '{text}'", where="--policy", hint=f"known: {', '.join(get_args(Policy))}")


def predict(
    load_of_rate: Mapping[float, Load],
    models: StepModels,
    methods: Sequence[str],
    slo: Mapping[str, float],
    serving: Serving | None = None,
    *,
    length_ratios: Mapping[str, Floats] | None = None,
) -> list[Prediction]:
    """Serve loads under each method, many times over with step times as they may be.

    Args:
        load_of_rate: loads by their rate in requests a second.
        methods: the first is the baseline that ratios are to.
        slo: limits in seconds on ``ttft``, ``tpot`` and ``e2e``.
        serving: servers, draws and seed.
        length_ratios: by method, ratios of answer lengths to the baseline's, drawn from for every request.
    """
    serving = serving or Serving()
    found: list[Prediction] = []
    for rate, load_ in load_of_rate.items():
        baseline: Sequence[Mapping[str, float]] | None = None
        for method in methods:
            model = models.of(method)
            rng = np.random.default_rng([serving.seed, 17])
            stretched = _stretched(load_, (length_ratios or {}).get(method), np.random.default_rng([serving.seed, 3]))
            central = serve(stretched, model, replicas=serving.replicas, policy=serving.policy)
            runs = [figures(central, stretched, slo)]
            for _ in range(serving.draws):
                coefficients = draw(np.array(model.coefficients), np.array(model.covariance), model.drift, rng).tolist()
                served = serve(
                    stretched,
                    model,
                    coefficients=coefficients,
                    replicas=serving.replicas,
                    policy=serving.policy,
                )
                runs.append(figures(served, stretched, slo))
            found.append(_prediction(method, rate, model, central, runs, baseline))
            baseline = baseline or runs
    return found


def write_runs(
    out: Path,
    loads: Mapping[float, Load],
    models: StepModels,
    methods: Sequence[str],
    slo: Mapping[str, float],
    serving: Serving,
) -> list[RunDir]:
    """The central simulation of every rate and method as a run folder ``OUT/METHOD-RATE``.

    Raises:
        RunDirError: one cannot be written.
    """
    from kvload.experiment.simulated_run import write_run

    runs = []
    for rate, load_ in loads.items():
        for method in methods:
            model = models.of(method)
            served = serve(load_, model, replicas=serving.replicas, policy=serving.policy)
            name = f"{method.replace(':', '-').replace('=', '-')}-{rate:.4g}"
            runs.append(write_run(out / name, served, load_, model, slo=slo, seed=serving.seed))
    return runs


def read_ratios(path: Path) -> dict[str, Floats]:
    """Ratios of answer lengths to the baseline's, by method: ``{"kivi-2": [1.0, 1.3, ...]}``.

    Raises:
        UsageError: it cannot be read, or a ratio is not above 0.
    """
    try:
        lists = msgspec.json.decode(path.read_bytes(), type=dict[str, list[float]])
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except DECODE_ERRORS as error:
        raise UsageError(f"holds no ratios by method: {error}", where=str(path)) from error
    if any(not (0 < ratio < float("inf")) for ratios in lists.values() for ratio in ratios):
        raise UsageError("ratios are above 0", where=str(path))
    return {method: np.array(ratios) for method, ratios in lists.items()}


def read_loads(
    path: Path,
    *,
    rates: str | None,
    burstiness: float,
    speed: float,
    seed: int,
    format: str | None = None,  # noqa: A002
    limit: int | None = None,
    default_output: int | None = None,
) -> dict[float, Load]:
    """The load of a trace at several rates, by the mean rate (requests a second) that each has.

    Args:
        rates: as in ``1,2,4``; the recorded arrivals, ``speed`` times as fast, where None.
        burstiness: shape of gamma gaps where a rate is given.

    Raises:
        TraceError: the trace cannot be read.
        UsageError: a rate does not parse, or the trace has no lengths.
    """
    from kvload.units import parse_rate
    from kvload.workloads.schedule.arrivals import ArrivalSpec

    if rates is None:
        specs = [ArrivalSpec(kind="trace", speed=speed, seed=seed)]
    else:
        wanted = [parse_rate(text, where="--rate") for text in rates.split(",")]
        specs = [ArrivalSpec(kind="gamma", rate=rate, burstiness=burstiness, seed=seed) for rate in wanted]
    loads = {}
    for spec in specs:
        if path.is_dir():
            found = _again(load_of_run(load(RunDir.open(path))), spec, limit)
        else:
            found = read_load(path, spec, format=format, limit=limit, default_output=default_output)
        span_s = float(found.arrival_s[-1] - found.arrival_s[0])
        loads[spec.rate or (len(found) / span_s if span_s else float(len(found)))] = found
    return loads


def load_of_run(table: RecordTable) -> Load:
    """What a run sent: arrivals as sent, lengths as counted. Requests without an answer are left out."""
    rows = np.flatnonzero(table.ok & ~np.isnan(table.t_send_s) & ~np.isnan(table.output_tokens))
    rows = rows[np.argsort(table.t_send_s[rows], kind="stable")]
    prompts = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)[rows]
    known = ~np.isnan(prompts)
    rows, prompts = rows[known], prompts[known]
    outputs = np.maximum(1, table.output_tokens[rows] - table.end_tokens[rows])
    return Load(table.t_send_s[rows], prompts.astype(np.int64), outputs.astype(np.int64))


def _again(load_: Load, spec: ArrivalSpec, limit: int | None) -> Load:
    """A run's requests with other arrivals."""
    from kvload.workloads.schedule.arrivals import offsets

    rows = slice(None, limit)
    return Load(offsets(load_.arrival_s[rows], spec), load_.prompt_tokens[rows], load_.output_tokens[rows])


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


def _stretched(load_: Load, ratios: Floats | None, rng: np.random.Generator) -> Load:
    """The load with answers as long as a method makes them."""
    if ratios is None or not len(ratios):
        return load_
    lengths = np.maximum(1, np.round(load_.output_tokens * rng.choice(ratios, len(load_)))).astype(np.int64)
    return replace(load_, output_tokens=lengths)


def _prediction(
    method: str,
    rate: float,
    model: StepModel,
    central: Served,
    runs: list[dict[str, float]],
    baseline: Sequence[Mapping[str, float]] | None,
) -> Prediction:
    drawn = runs[1:] or runs
    spread = {name: np.array([run[name] for run in drawn]) for name in runs[0]}
    ratio = {}
    if baseline is not None:
        for name in runs[0]:
            ours, theirs = np.array([run[name] for run in runs]), np.array([run[name] for run in baseline])
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = ours / theirs
            low, high = np.nanquantile(ratios[1:] if len(ratios) > 1 else ratios, [0.1, 0.9])
            ratio[name] = (float(ratios[0]), float(low), float(high))
    ends = [replica.now_s for replica in central.replicas]
    return Prediction(
        method,
        rate,
        central=runs[0],
        low={name: float(np.nanquantile(values, 0.1)) for name, values in spread.items()},
        high={name: float(np.nanquantile(values, 0.9)) for name, values in spread.items()},
        ratio=ratio,
        busy=sum(replica.busy_s for replica in central.replicas) / max(1e-9, sum(ends)),
        outside=_outside(central, model),
        refused=sum(request.refused for request in central.requests),
        preemptions=central.preemptions,
    )


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
