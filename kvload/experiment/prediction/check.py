"""Predictions against runs that they were not fitted from, beside what equal runs differ by and what guesses err by."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.loading import load
from kvload.analysis.records.table import Floats, RecordTable, count_true
from kvload.analysis.run.slo import meets_all
from kvload.errors import UsageError
from kvload.experiment.prediction.capacity import AtRate, CapacityCell, capacity_cells
from kvload.experiment.prediction.cells import Cell, Ratio, ratio_of
from kvload.experiment.prediction.forecast import DRAWS, Serving, predict
from kvload.experiment.prediction.loads import by_server, load_of_folder, rows_of_load
from kvload.experiment.prediction.shape import Overrides, differing, method_of, shape_of, with_limits_of
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import Hits, Load
from kvload.step_model import StepModels
from kvload.units import request_limits

TARGET = 0.9
"""Share of requests that a carried load's limits are met by, as ``kvload sweep`` takes it."""


@dataclass(frozen=True)
class Checked:
    """What came of a check.

    Attributes:
        cells: every figure of every run.
        ratios: every figure of every run whose load a run of the baseline had as well.
        again: for each figure, how far runs of the same method and load lay apart: relative, in points (a share) for
            ``attainment``; one value for every two runs.
        hits: how the prefix hits of each run are known.
        notes: by run: in what its server differs from the model's, and requests that were left out.
        outside: by run; see :func:`~kvload.experiment.prediction.outside.outside`.
        capacities: of the methods whose runs lie on both sides of :data:`TARGET`.
    """

    cells: list[Cell]
    ratios: list[Ratio]
    again: dict[str, list[float]]
    hits: dict[str, Hits]
    notes: dict[str, list[str]]
    outside: dict[str, Mapping[str, float]]
    capacities: list[CapacityCell]


@dataclass(frozen=True)
class _Checked:
    """A run's cells by figure, with its rate, what tells its load and the bytes of a token in its cache."""

    cells: dict[str, Cell]
    load: str
    rate_rps: float
    requests: int
    trace: str
    method: str
    bytes_per_token: float | None
    pool_tokens: int | None


def check_runs(
    paths: Sequence[Path], models: StepModels, slo: Mapping[str, float], *, method: str | None = None
) -> Checked:
    """Predict each run's own load and compare.

    Args:
        slo: limits in seconds; those of each run where empty.
        method: of runs that do not say theirs.

    Raises:
        UsageError: a run was used for fitting or cut off, or its method was not fitted.
        RunDirError: a folder cannot be read.
    """
    runs: list[_Checked] = []
    hits: dict[str, Hits] = {}
    notes: dict[str, list[str]] = {}
    beyond: dict[str, Mapping[str, float]] = {}
    seen: dict[str, Path] = {}
    for path in paths:
        run = RunDir.open(path)
        manifest, table = run.manifest(), load(run)
        name = method_of(manifest, path, method)
        model = models.of(name)
        if manifest.run_id in model.run_ids:
            raise UsageError(
                "the model was fitted from this run", where=str(path), hint="check with runs that it has not seen"
            )
        if manifest.partial or manifest.ended not in {None, "completed"}:
            raise UsageError(
                "the run was cut off: what it did not see answered was work for the server as well",
                where=str(path),
                hint="leave it out",
            )
        if manifest.run_id in seen:
            raise UsageError(f"is the same run as {seen[manifest.run_id]}", where=str(path), hint="give each run once")
        seen[manifest.run_id] = path
        places = [place for place, _ in by_server(table, manifest)]
        load_ = load_of_folder(run, table)
        if len(places) > 1:
            servers = table.server[rows_of_load(table)]
            load_ = replace(load_, server=np.searchsorted(places, servers))
        hits[str(path)] = load_.hits
        limits = request_limits(dict(slo) or manifest.slo)
        cells, beyond[str(path)] = _check(path, table, load_, len(places), name, models, limits)
        server = manifest.servers[places[0]]
        shape = shape_of(name, server, Overrides())
        if server.command is None:
            # What a server's command does not tell, the fit was told.
            shape = with_limits_of(shape, model)
        notes[str(path)] = differing(shape, model)
        left_out = count_true(table.sent) - len(load_)
        if left_out:
            notes[str(path)].append(f"{left_out:,} of {count_true(table.sent):,} requests were not answered: left out")
        by_figure = {cell.figure: cell for cell in cells}
        runs.append(
            _Checked(
                by_figure,
                _planned(table),
                _rate_rps(manifest, load_),
                len(load_),
                manifest.trace.sha256,
                name,
                server.bytes_per_token,
                model.pool_tokens,
            )
        )
    baseline = models.models[0].method
    ratios = []
    for each in runs:
        base = next((other for other in runs if other.method == baseline and other.load == each.load), None)
        if each.method != baseline and base is not None:
            ratios += _ratios(each, base)
    cells = [cell for each in runs for cell in each.cells.values()]
    return Checked(cells, ratios, _again(runs), hits, notes, beyond, _capacities(runs))


def _capacities(runs: Sequence[_Checked]) -> list[CapacityCell]:
    """Of each trace by itself: what a server carries depends on what it is sent."""
    found = []
    for trace in dict.fromkeys(each.trace for each in runs):
        points = [
            AtRate(each.method, each.rate_rps, each.requests, cell.measured, cell.predicted, cell.low, cell.high)
            for each in runs
            if each.trace == trace and (cell := each.cells.get("attainment")) is not None
        ]
        found += capacity_cells(points, TARGET)
    return found


def _rate_rps(manifest: RunManifest, load_: Load) -> float:
    """The rate that was asked for, or else the one that came about."""
    asked = manifest.arrivals.get("rate")
    if isinstance(asked, int | float) and asked > 0:
        return float(asked)
    span_s = float(load_.arrival_s[-1] - load_.arrival_s[0])
    return len(load_) / span_s if span_s else float(len(load_))


def _planned(table: RecordTable) -> str:
    """A digest of when a run's requests were due and of the lengths of their prompts."""
    order = np.argsort(table.t_sched_s, kind="stable")
    due_us = np.round(np.nan_to_num(table.t_sched_s[order]) * 1e6).astype(np.int64)
    prompts = np.nan_to_num(table.input_tokens[order]).astype(np.int64)
    return hashlib.sha256(due_us.tobytes() + prompts.tobytes()).hexdigest()


def _ratios(each: _Checked, base: _Checked) -> list[Ratio]:
    scale = None
    if each.bytes_per_token and base.bytes_per_token:
        scale = each.bytes_per_token / base.bytes_per_token
    elif each.pool_tokens and base.pool_tokens:
        # Servers that do not tell: caches of the same memory hold as many more tokens as these are smaller.
        scale = base.pool_tokens / each.pool_tokens
    found = []
    for name, cell in each.cells.items():
        theirs = base.cells.get(name)
        if theirs is not None and min(cell.measured, theirs.measured, cell.predicted, theirs.predicted) > 0:
            guess = None if scale is None else (1.0 if name == "attainment" else scale)
            found.append(ratio_of(cell, theirs, guess))
    return found


def _again(runs: Sequence[_Checked]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one, other in combinations(runs, 2):
        if (one.method, one.load) != (other.method, other.load):
            continue
        for name, cell in one.cells.items():
            if name in other.cells:
                values = cell.measured, other.cells[name].measured
                apart = abs(values[0] - values[1]) / (1 if name == "attainment" else min(values))
                found.setdefault(name, []).append(apart)
    return found


def _check(
    path: Path,
    table: RecordTable,
    load_: Load,
    replicas: int,
    method: str,
    models: StepModels,
    limits: Mapping[str, float],
) -> tuple[list[Cell], Mapping[str, float]]:
    """The cells of a run, measured and predicted over the same requests, and where its simulation leaves the model."""
    if len(load_) < 2:
        raise UsageError("fewer than two requests were answered", where=str(path))
    rate_rps = len(load_) / (load_.window_s or 1.0)
    (found,) = predict({rate_rps: load_}, models, [method], limits, Serving(replicas=replicas, draws=DRAWS))
    rows = rows_of_load(table)
    ttft, tpot, e2e = (latency.METRICS[name](table)[rows] for name in ("ttft", "tpot", "e2e"))
    measured = {
        "ttft.p50": _of_known(ttft, lambda known: np.quantile(known, 0.5)),
        "ttft.p99": _of_known(ttft, lambda known: np.quantile(known, 0.99)),
        "tpot.mean": _of_known(tpot, np.mean),
        "e2e.mean": _of_known(e2e, np.mean),
        "attainment": float(meets_all(table, limits)[rows].mean()) if limits else None,
    }
    cells = []
    for name, value in measured.items():
        predicted = found.central[name]
        if value is None or np.isnan(predicted):
            continue
        error = predicted - value if name == "attainment" else predicted / value - 1
        cells.append(
            Cell(str(path), method, name, value, predicted, found.low[name], found.high[name], error, found.busy)
        )
    return cells, found.outside


def _of_known(values: Floats, of: Callable[[Floats], np.floating]) -> float | None:
    known = values[~np.isnan(values)]
    return float(of(known)) if len(known) else None
