"""Step models from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvload import __version__
from kvload.analysis.prediction.fit import Fit, fit
from kvload.analysis.prediction.points import StageErrors
from kvload.analysis.prediction.points import errors as stage_errors
from kvload.analysis.prediction.points import read as read_points
from kvload.analysis.prediction.steps import Steps, join, lone_first_tokens, rebuild
from kvload.analysis.records.table import Floats, RecordTable, load
from kvload.errors import UsageError
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.step_model import FEATURES, StepModel, StepModels


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


def fit_points(path: Path, overrides: Overrides | None = None) -> tuple[StepModels, list[StageErrors]]:
    """Step models from a table of published step times, and how well each stage is foretold by the other points.

    Raises:
        UsageError: the table cannot be read, or a method has too few points.
    """
    overrides = overrides or Overrides()
    models, found_errors = [], []
    for method, points in read_points(path).items():
        try:
            found = fit(points.steps)
            found_errors += stage_errors(method, points)
        except UsageError as error:
            raise UsageError(f"{method}: {error.message}", where=str(path), hint=error.hint) from error
        models.append(_with_fit(_bare(method, overrides), points.steps, found))
    return StepModels(kvload_version=__version__, models=models), found_errors


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
    drift, drift_runs = _drift([(manifest, table) for _, manifest, table in runs])
    return msgspec.structs.replace(
        _with_fit(shape, steps, found),
        ahead_steps=min(1, steps.lag_steps),
        overhead_s=_overhead_s([table for _, _, table in runs], found, shape),
        drift=shape.drift if drift is None else drift,
        drift_runs=drift_runs,
        runs=[str(run.path) for run, _, _ in runs],
    )


def _with_fit(shape: StepModel, steps: Steps, found: Fit) -> StepModel:
    size = np.abs(found.errors)
    return msgspec.structs.replace(
        shape,
        coefficients=tuple(found.coefficients.tolist()),
        covariance=found.covariance.tolist(),
        hull=found.hull,
        steps=len(steps),
        error_p50=float(np.median(size)),
        error_p90=float(np.quantile(size, 0.9)),
        misfit=found.misfit,
    )


def _bare(method: str, overrides: Overrides) -> StepModel:
    """A server of which only the method is known."""
    return StepModel(
        method=method,
        coefficients=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        covariance=[],
        hull={},
        steps=0,
        error_p50=0.0,
        error_p90=0.0,
        pool_tokens=overrides.pool_tokens,
        max_sequences=overrides.max_sequences or 256,
        chunk_tokens=overrides.chunk_tokens or 8192,
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
        coefficients=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
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
    work[:, FEATURES.index("steps")] = work[:, FEATURES.index("prompt_steps")] = np.ceil(prompts / chunk_tokens)
    work[:, FEATURES.index("prompt_tokens")] = prompts
    work[:, FEATURES.index("prompt_work")] = prompts * (prompts + 1) / 2
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
