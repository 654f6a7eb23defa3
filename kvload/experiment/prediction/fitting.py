"""Step models from run folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvload import __version__
from kvload.analysis.prediction.fit import DRAWS, FEWEST_STEPS, Fit, Host, Part, fit, fit_together
from kvload.analysis.prediction.points import StageErrors
from kvload.analysis.prediction.points import errors as stage_errors
from kvload.analysis.prediction.points import read as read_points
from kvload.analysis.prediction.steps import Steps, habits, join, lone_first_tokens, rebuild
from kvload.analysis.records.cached import with_cached
from kvload.analysis.records.loading import load
from kvload.analysis.records.table import Floats, RecordTable
from kvload.errors import UsageError
from kvload.experiment.prediction.loads import by_server
from kvload.experiment.prediction.logged import logged_steps
from kvload.experiment.prediction.spread import (
    Beside,
    FittedRun,
    Left,
    Own,
    beside_steps,
    busy_front,
    leave_out_runs,
    own_errors,
    spread_of,
)
from kvload.records import RunManifest, ServerInfo
from kvload.rundir import RunDir
from kvload.step_model import COEFFICIENTS, StepModel, StepModels, require_room

DIFFERING = {
    "engine": "engine",
    "model": "model",
    "device": "device",
    "tensor_parallel": "GPUs a layer",
    "page_tokens": "tokens a page",
    "max_sequences": "requests at once",
    "chunk_tokens": "tokens a step",
}
"""What servers must have in common to be fitted together."""

SAME_POOL = 0.05
"""By how much caches may differ (a logarithm): what an engine finds free varies from start to start."""


@dataclass(frozen=True)
class Overrides:
    """What the runs do not tell, or tell wrongly.

    Attributes:
        pool_tokens, max_sequences, chunk_tokens: in place of the server's own; None keeps those.
        method: of runs that do not say theirs.
    """

    pool_tokens: int | None = None
    max_sequences: int | None = None
    chunk_tokens: int | None = None
    method: str | None = None


def fit_models(
    paths: Sequence[Path], overrides: Overrides | None = None, logs: Mapping[str, Path] | None = None
) -> StepModels:
    """A step model for each method among some runs.

    Args:
        paths: run folders; several of one method are taken together.
        logs: by method, the log that the runs' server kept of its steps, which then count in place of those that chunk
            times show. Without runs, a model tells nothing of the scheduler but what the overrides say.

    Raises:
        UsageError: a run names no method, a method has too few steps, or a log is of none of them or cannot be read.
        RunDirError: a folder cannot be read.
    """
    overrides, logs = overrides or Overrides(), logs or {}
    if not paths:
        return StepModels(kvload_version=__version__, models=[_fit_log(*each, overrides) for each in logs.items()])
    by_method: dict[str, list[RunDir]] = {}
    seen: dict[str, Path] = {}
    for path in paths:
        run = RunDir.open(path)
        manifest = run.manifest()
        if manifest.run_id in seen:
            # It would foretell itself without any error, and so take all doubt from the intervals.
            raise UsageError(f"is the same run as {seen[manifest.run_id]}", where=str(path), hint="give each run once")
        seen[manifest.run_id] = path
        by_method.setdefault(method_of(manifest, path, overrides.method), []).append(run)
    strange = [method for method in logs if method not in by_method]
    if strange:
        raise UsageError(f"no run is of '{strange[0]}'", where="--steps", hint=f"there are: {', '.join(by_method)}")
    measured = [_measure(method, folders, overrides, logs.get(method)) for method, folders in by_method.items()]
    fitted = [found for alike in _alike(measured) for found in _fit_alike(alike)]
    grows_s = busy_front([each.beside for each in fitted])
    models: list[StepModel] = []
    left: list[Left] = []
    own: list[Own] = []
    for each in fitted:
        rests_s = [None if rest is None else rest.seconds - grows_s * rest.others for rest in each.beside]
        told_s = [rest for rest in rests_s if rest is not None]
        models.append(
            msgspec.structs.replace(
                each.model,
                overhead_s=max(0.0, float(np.median(told_s))) if told_s else each.model.overhead_s,
                token_s=each.model.token_s + grows_s,
            )
        )
        left += leave_out_runs(each.runs, rests_s, each.again)
        if len(each.runs) > 1:
            alone = [(run, each.again([run])) for run in each.runs if len(run.steps) >= FEWEST_STEPS]
            own += [found for run, model in alone if (found := own_errors(run.table, model)) is not None]
    spread = spread_of(left, own)
    if spread is not None:
        models = [msgspec.structs.replace(model, spread=spread) for model in models]
    models.sort(key=lambda model: model.method not in {"none", "auto"})
    return StepModels(kvload_version=__version__, models=models)


def fit_points(path: Path, overrides: Overrides | None = None) -> tuple[StepModels, list[StageErrors]]:
    """Step models from a table of published step times, and how well each stage is foretold by the other points.

    Raises:
        UsageError: the table cannot be read, or a method has too few points.
    """
    overrides = overrides or Overrides()
    models, found_errors = [], []
    for method, points in read_points(path).items():
        try:
            found = fit(points.steps, draws=DRAWS)
            found_errors += stage_errors(method, points)
        except UsageError as error:
            raise UsageError(f"{method}: {error.message}", where=str(path), hint=error.hint) from error
        models.append(_with_fit(_bare(method, overrides), points.steps, found))
    return StepModels(kvload_version=__version__, models=models), found_errors


def measured_steps(table: RecordTable, model: StepModel) -> Steps:
    """The steps of a run that can be told from its records, for the server that a model describes."""
    return rebuild(table, chunk_tokens=model.chunk_tokens, kept_tokens=model.kept_tokens)


@dataclass(frozen=True)
class _Measured:
    """A method's runs, and its model without step times."""

    shape: StepModel
    runs: list[FittedRun]


@dataclass(frozen=True)
class _Fitted:
    """A method's model, the runs behind it with what their first tokens took, and the way to fit some of them again."""

    model: StepModel
    runs: list[FittedRun]
    beside: list[Beside | None]
    again: Callable[[Sequence[FittedRun]], StepModel]


def _measure(method: str, folders: list[RunDir], overrides: Overrides, log: Path | None) -> _Measured:
    shape: StepModel | None = None
    runs = []
    for folder in folders:
        manifest = folder.manifest()
        for place, table in by_server(with_cached(load(folder), manifest.servers), manifest):
            one = shape_of(method, manifest.servers[place], overrides)
            if shape is not None and (apart := differing(one, shape)):
                raise UsageError(
                    f"{method}: {'; '.join(apart)} in {folders[0].path}",
                    where=str(folder.path),
                    hint="fit what differs into files of their own",
                )
            shape = one
            logged = None if log is None else logged_steps(log, shape.kept_tokens, manifest)
            steps = measured_steps(table, shape) if logged is None else logged
            runs.append(FittedRun(table, steps, _server(manifest, place)))
    if shape is None:
        raise ValueError("no runs")
    names, ids = [str(folder.path) for folder in folders], [folder.manifest().run_id for folder in folders]
    return _Measured(msgspec.structs.replace(shape, runs=names, run_ids=ids), runs)


def differing(one: StepModel, other: StepModel) -> list[str]:
    """In what two servers differ whose steps, or whose waiting, cannot be alike; what is not known does not differ."""
    found = []
    for name, what in DIFFERING.items():
        mine, theirs = getattr(one, name), getattr(other, name)
        if None not in (mine, theirs) and mine != theirs:
            found.append(f"{what} {mine} here, {theirs}")
    mine, theirs = one.pool_tokens, other.pool_tokens
    if mine and theirs and abs(np.log(mine / theirs)) > SAME_POOL:
        found.append(f"a cache of {mine:,} tokens here, {theirs:,}")
    return found


def with_limits_of(shape: StepModel, other: StepModel) -> StepModel:
    """A server with another's scheduler."""
    names = ("page_tokens", "max_sequences", "chunk_tokens")
    return msgspec.structs.replace(shape, **{name: getattr(other, name) for name in names})


def _alike(measured: Sequence[_Measured]) -> list[list[_Measured]]:
    """Methods by engine, model and device; a server that does not tell the first two is by itself."""
    groups: dict[object, list[_Measured]] = {}
    for each in measured:
        shape = each.shape
        known = None not in (shape.engine, shape.model)
        groups.setdefault((shape.engine, shape.model, shape.device) if known else id(each), []).append(each)
    return list(groups.values())


def _fit_alike(measured: Sequence[_Measured]) -> list[_Fitted]:
    """The models of methods on servers of one kind."""
    parts = [_part(each.runs, each.shape) for each in measured]
    for each, part in zip(measured, parts, strict=True):
        if len(part.steps) < FEWEST_STEPS:
            hint = f"at least {FEWEST_STEPS} are"
            message = f"{each.shape.method}: {len(part.steps)} measured steps are too few to fit from"
            raise UsageError(message, where=", ".join(each.shape.runs), hint=hint)
    found = []
    for each, part, one in zip(measured, parts, fit_together(parts, draws=DRAWS), strict=True):

        def again(some: Sequence[FittedRun], shape: StepModel = each.shape) -> StepModel:
            own = _part(some, shape)
            return _modelled(some, shape, own, fit(own.steps, own.host))

        model = _modelled(each.runs, each.shape, part, one)
        found.append(_Fitted(model, each.runs, [beside_steps(run.table, model) for run in each.runs], again))
    return found


def _fit_log(method: str, path: Path, overrides: Overrides) -> StepModel:
    """A model of nothing but a log."""
    kept, evicts = kept_by(method)
    shape = msgspec.structs.replace(_bare(method, overrides), kept_tokens=kept, evicts_while_decoding=evicts)
    steps = logged_steps(path, kept)
    try:
        return _with_fit(shape, steps, fit(steps, draws=DRAWS))
    except UsageError as error:
        raise UsageError(f"{method}: {error.message}", where=str(path), hint=error.hint) from error


def _part(runs: Sequence[FittedRun], shape: StepModel) -> Part:
    """The steps of some runs, and how their server launches them."""
    shown = [habits(run.table, chunk_tokens=shape.chunk_tokens) for run in runs]
    ahead = [each.ahead_steps for each in shown if each.ahead_steps is not None]
    launches_s = np.concatenate([each.launches_s for each in shown])
    return Part(join([run.steps for run in runs]), Host.seen(int(np.median(ahead)) if ahead else 0, launches_s))


def _modelled(runs: Sequence[FittedRun], shape: StepModel, part: Part, found: Fit) -> StepModel:
    """The model of a method; its spread, and what first tokens take in the simulation, are not in it yet."""
    shown = [habits(run.table, chunk_tokens=shape.chunk_tokens).token_s for run in runs]
    token = [each for each in shown if each is not None]
    return msgspec.structs.replace(
        _with_fit(shape, part.steps, found),
        token_s=float(np.median(token)) if token else 0.0,
        overhead_s=_lone_overhead_s([run.table for run in runs], found, shape),
    )


def _with_fit(shape: StepModel, steps: Steps, found: Fit) -> StepModel:
    size = np.abs(found.errors)
    return msgspec.structs.replace(
        shape,
        coefficients=tuple(found.coefficients.tolist()),
        draws=[tuple(drawn) for drawn in found.draws.tolist()],
        hull=found.hull,
        ahead_steps=found.host.ahead_steps,
        launch_jitter=found.host.jitter,
        steps=len(steps),
        error_p50=float(np.median(size)),
        error_p90=float(np.quantile(size, 0.9)),
    )


def _bare(method: str, overrides: Overrides) -> StepModel:
    """A server of which only the method is known."""
    sequences, tokens = overrides.max_sequences or 256, overrides.chunk_tokens or 8192
    require_room(tokens, sequences, where="--chunk-tokens, --max-num-seqs")
    return StepModel(
        method=method,
        coefficients=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        draws=[],
        hull={},
        steps=0,
        error_p50=0.0,
        error_p90=0.0,
        pool_tokens=overrides.pool_tokens,
        max_sequences=sequences,
        chunk_tokens=tokens,
    )


def shape_of(method: str, server: ServerInfo, overrides: Overrides) -> StepModel:
    """A model without step times: what a run's manifest tells of a server's scheduler and cache."""
    from kvload.servers.engines.base import ENGINES, adapter
    from kvload.servers.engines.scheduling import Scheduling, limits

    known = server.engine in ENGINES
    scheduling = adapter(server.engine).scheduling if server.engine and known else Scheduling("", "", "", 256, 2048, 16)
    found = limits(scheduling, server.command or [], server.device)
    kept, evicts = kept_by(method)
    sequences = overrides.max_sequences or found.max_sequences
    tokens = overrides.chunk_tokens or found.chunk_tokens
    require_room(tokens, sequences, where="--chunk-tokens, --max-num-seqs")
    return StepModel(
        method=method,
        coefficients=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        draws=[],
        hull={},
        steps=0,
        error_p50=0.0,
        error_p90=0.0,
        engine=server.engine,
        engine_version=server.engine_version,
        device=server.device,
        model=server.model,
        pool_tokens=overrides.pool_tokens or server.pool_tokens,
        page_tokens=found.page_tokens,
        spare_pages=scheduling.spare_pages,
        max_sequences=sequences,
        chunk_tokens=tokens,
        max_model_len=server.max_model_len,
        tensor_parallel=server.tensor_parallel,
        kept_tokens=kept,
        evicts_while_decoding=evicts,
        prefix_cache=None if server.prefix_cache is None else server.prefix_cache != "off",
    )


def kept_by(method: str) -> tuple[int | None, bool]:
    """Tokens of a sequence that stay where a method evicts, None for all; and whether generated ones go as well."""
    from kvload.servers.catalogue.asked import MethodSpec, read_method
    from kvload.servers.catalogue.methods import METHODS

    spec = read_method(method)
    row = METHODS.get(spec.name) if isinstance(spec, MethodSpec) else None
    kept = None
    if row is not None and row.kept and isinstance(spec, MethodSpec):
        options = {option.name: option.default for option in row.options} | dict(spec.options)
        kept = int(sum(options[name] for name in row.kept))
    return kept, bool(row and row.evicts_generated)


def method_of(manifest: RunManifest, path: Path, given: str | None = None) -> str:
    """The method of a run's server, or the one that is given where the run does not say.

    A server that was given by its address tells the dtype of its cache at most, which a method inside the engine leaves
    as it was: an arm that is named like a method is taken at its word.

    Raises:
        UsageError: neither does.
    """
    from kvload.servers.catalogue.methods import METHODS

    arm = manifest.arm
    if manifest.server.command is None and arm is not None and arm.partition(":")[0] in METHODS:
        return arm
    # Where the first is a router, the servers behind it have the method.
    told = list(dict.fromkeys(server.method for server in manifest.servers if server.method is not None))
    if len(told) > 1:
        raise UsageError(f"its servers had different methods: {', '.join(told)}", where=str(path))
    method = told[0] if told else given
    if method is None:
        raise UsageError(
            "the run does not say which method its server had",
            where=str(path),
            hint="--method NAME says it; runs against servers that kvload launched need none",
        )
    return method


def _server(manifest: RunManifest, place: int) -> str:
    """A name for a server of a run; another start gives another one."""
    server = manifest.servers[place]
    return f"{manifest.client.get('host')} {server.url} {server.name} {server.device}"


def _lone_overhead_s(tables: list[RecordTable], found: Fit, shape: StepModel) -> float:
    """What first tokens of lone requests took beyond their steps, for servers that cannot be simulated."""
    rests = []
    for table in tables:
        prompts, ttft_s = lone_first_tokens(table)
        rests.append(ttft_s - _prefill_s(prompts, found, shape.chunk_tokens))
    rest = np.concatenate(rests) if rests else np.zeros(0)
    return max(0.0, float(np.median(rest))) if len(rest) else 0.0


def _prefill_s(prompts: Floats, found: Fit, chunk_tokens: int) -> Floats:
    """How long reading prompts takes, each alone: ``(n,)``."""
    chunks = np.ceil(prompts / chunk_tokens)
    columns = {
        "steps": chunks,
        "prompt_steps": chunks,
        "prompt_tokens": prompts,
        "prompt_work": prompts * (prompts + 1) / 2,
        "launch": np.zeros(len(prompts)),
    }
    costs = dict(zip(COEFFICIENTS, found.coefficients, strict=True))
    computing: Floats = sum((costs[name] * column for name, column in columns.items()), np.zeros(len(prompts)))
    seconds: Floats = np.maximum(computing, chunks * costs["launch"])
    return seconds
