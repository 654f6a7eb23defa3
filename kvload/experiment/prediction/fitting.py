"""Step models from run folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from kvload import __version__
from kvload.analysis.prediction.drift import leveled
from kvload.analysis.prediction.fit import DRAWS, FEWEST_STEPS, Fit, Part, fit, fit_together
from kvload.analysis.prediction.points import StageErrors
from kvload.analysis.prediction.points import errors as stage_errors
from kvload.analysis.prediction.points import read as read_points
from kvload.analysis.prediction.steps import Steps, habits, join, lone_first_tokens, rebuild
from kvload.analysis.prediction.timing import Host
from kvload.analysis.records.cached import with_cached
from kvload.analysis.records.loading import load
from kvload.analysis.records.table import Floats, RecordTable
from kvload.errors import UsageError
from kvload.experiment.prediction.loads import by_server
from kvload.experiment.prediction.logged import logged_steps
from kvload.experiment.prediction.shape import Overrides, bare_shape, differing, kept_by, method_of, shape_of
from kvload.experiment.prediction.spread import (
    Beside,
    FittedRun,
    Left,
    Own,
    as_in,
    beside_steps,
    busy_front,
    leave_out_runs,
    own_errors,
    spread_of,
)
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.step_model import COEFFICIENTS, StepModel, StepModels


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
        if len(each.runs) > 1:
            shown = [beside_steps(run.table, as_in(run, each.model)) for run in each.runs]
            rests_s = [None if rest is None else rest.seconds - grows_s * rest.others for rest in shown]
            left += leave_out_runs(each.runs, rests_s, each.again)
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
        models.append(_with_fit(bare_shape(method, overrides), points.steps, found))
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
    shape = msgspec.structs.replace(bare_shape(method, overrides), kept_tokens=kept, evicts_while_decoding=evicts)
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
    draws = leveled(found.draws, found.coefficients, part.host, part.steps)
    return msgspec.structs.replace(
        _with_fit(shape, part.steps, replace(found, draws=draws)),
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
