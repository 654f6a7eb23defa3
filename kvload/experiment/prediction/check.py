"""Predictions against runs that they were not fitted from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvload.analysis.records.table import RecordTable, load
from kvload.analysis.run.slo import meets_all
from kvload.errors import UsageError
from kvload.experiment.prediction.fitting import method_of
from kvload.experiment.prediction.forecast import DRAWS, Serving, predict
from kvload.experiment.prediction.loads import load_of_run
from kvload.rundir import RunDir
from kvload.step_model import StepModels

FIGURES = ("ttft.p50", "ttft.p99", "tpot.mean", "e2e.mean", "attainment")


@dataclass(frozen=True)
class Cell:
    """One figure of one run.

    Attributes:
        run: folder.
        figure: a name of :data:`FIGURES`.
        measured, predicted: seconds, or a share for ``attainment``.
        low, high: the middle 80 % of the prediction.
        error: relative; in points (a share) for ``attainment``.
        busy: share of the time that the simulated server worked.
    """

    run: str
    method: str
    figure: str
    measured: float
    predicted: float
    low: float
    high: float
    error: float
    busy: float

    @property
    def held(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.low <= self.measured <= self.high


def check_runs(paths: Sequence[Path], models: StepModels, slo: Mapping[str, float]) -> list[Cell]:
    """Predict each run's own load and compare.

    Args:
        slo: limits in seconds; those of each run where empty.

    Raises:
        UsageError: a run was used for fitting, or its method was not fitted.
        RunDirError: a folder cannot be read.
    """
    cells: list[Cell] = []
    for path in paths:
        run = RunDir.open(path)
        manifest, table = run.manifest(), load(run)
        method = method_of(manifest, path)
        model = models.of(method)
        if str(path) in model.runs or str(path.resolve()) in {str(Path(used).resolve()) for used in model.runs}:
            raise UsageError(
                "the model was fitted from this run", where=str(path), hint="check with runs that it has not seen"
            )
        cells += _check(path, table, method, models, dict(slo) or dict(manifest.slo))
    return cells


def _check(path: Path, table: RecordTable, method: str, models: StepModels, slo: dict[str, float]) -> list[Cell]:
    load_ = load_of_run(table)
    if len(load_) < 2:
        raise UsageError("fewer than two requests were answered", where=str(path))
    span_s = float(load_.arrival_s[-1] - load_.arrival_s[0]) or 1.0
    (found,) = predict({len(load_) / span_s: load_}, models, [method], slo, Serving(draws=DRAWS))
    ok = table.ok
    ttft, e2e = (table.t_first_s - table.t_send_s)[ok], (table.t_last_s - table.t_send_s)[ok]
    later = (table.output_tokens - table.first_chunk_tokens - table.end_tokens)[ok]
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(later > 0, (table.t_last_s - table.t_first_s)[ok] / later, np.nan)
    measured = {
        "ttft.p50": float(np.nanquantile(ttft, 0.5)),
        "ttft.p99": float(np.nanquantile(ttft, 0.99)),
        "tpot.mean": float(np.nanmean(tpot)),
        "e2e.mean": float(np.nanmean(e2e)),
    }
    if slo:
        measured["attainment"] = float(meets_all(table, slo)[ok].mean())
    cells = []
    for name, value in measured.items():
        predicted = found.central[name]
        error = predicted - value if name == "attainment" else predicted / value - 1
        cells.append(
            Cell(str(path), method, name, value, predicted, found.low[name], found.high[name], error, found.busy)
        )
    return cells
