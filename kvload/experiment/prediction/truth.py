"""Step times held out: against an engine's own log of its steps, or against what runs show of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvload.analysis.prediction.errors import HeldOut
from kvload.analysis.prediction.points import STAGES, Points, StageErrors
from kvload.analysis.prediction.points import errors as stage_errors
from kvload.analysis.prediction.steps import habits, join
from kvload.analysis.prediction.timing import Host, host_of, seconds
from kvload.analysis.records.loading import load
from kvload.analysis.records.table import Floats, RecordTable
from kvload.errors import UsageError
from kvload.experiment.prediction.fitting import measured_steps
from kvload.experiment.prediction.loads import by_server
from kvload.experiment.prediction.logged import logged_points, power_of_two
from kvload.experiment.prediction.shape import Overrides, shape_of
from kvload.rundir import RunDir
from kvload.step_model import FEATURES, StepModel


@dataclass(frozen=True)
class TruthErrors:
    """How a stage of a method's steps is foretold.

    Attributes:
        model: by the model from chunk times; None without a model.
        total: logarithm of the model's time of all steps to the true one; None without a model.
        held_out: by fits of the log itself, with one batch size or length (its power of two) left out at a time.
    """

    model: HeldOut | None
    total: float | None
    held_out: StageErrors


def truth_errors(paths: Sequence[Path], method: str, model: StepModel | None) -> list[TruthErrors]:
    """Hold a method's step times against steps that were seen.

    Args:
        paths: what ``--step-log`` of the embedded engine wrote, or run folders, whose chunk times show stretches of a
            few steps.
        model: fitted from runs; None to hold the steps against each other alone.

    Raises:
        UsageError: too few steps, or a log cannot be read.
        RunDirError: a folder cannot be read.
    """
    kept_tokens = model.kept_tokens if model is not None else None
    points = joined(
        [
            run_points(path, method) if path.is_dir() else _without_rare(logged_points(path, kept_tokens))
            for path in paths
        ]
    )
    found = []
    for each in stage_errors(method, points):
        if model is None:
            found.append(TruthErrors(None, None, each))
            continue
        steps = points.stage(each.stage).steps
        expected_s = seconds(steps, np.array(model.coefficients), host_of(model))
        total = float(np.log(expected_s.sum() / steps.seconds.sum()))
        found.append(TruthErrors(HeldOut.of(expected_s / steps.seconds - 1), total, each))
    return found


def run_points(path: Path, method: str) -> Points:
    """The stretches of steps that a run shows; their batch, and their length, is the mean's power of two.

    Raises:
        UsageError: it shows none.
        RunDirError: it cannot be read.
    """
    run = RunDir.open(path)
    manifest = run.manifest()
    found = [
        _server_points(table, shape_of(method, manifest.servers[place], Overrides()))
        for place, table in by_server(load(run), manifest)
    ]
    found = [points for points in found if len(points.steps)]
    if not found:
        raise UsageError("shows no steps", where=str(path), hint="answers must be streamed token by token")
    return joined(found)


def _server_points(table: RecordTable, shape: StepModel) -> Points:
    steps = measured_steps(table, shape)
    work = dict(zip(FEATURES, steps.work.T, strict=True))
    prefill = work["prompt_tokens"] > 0
    batch: Floats = np.where(prefill, (steps.prompts > 0).sum(axis=1), work["decodes"] / work["steps"])
    length: Floats = np.where(
        prefill, work["prompt_tokens"] / np.maximum(1, batch), work["context"] / np.maximum(1, work["decodes"])
    )
    shown = habits(table, chunk_tokens=shape.chunk_tokens)
    host = Host.seen(shown.ahead_steps or 0, shown.launches_s)
    return Points(steps, power_of_two(batch), power_of_two(length), prefill, host)


def joined(parts: Sequence[Points]) -> Points:
    """The points of several logs or runs of one server."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("batch", "length", "prefill")}
    launched = [part.host for part in parts if part.host.launch_s is not None]
    host = parts[0].host
    if launched:
        mean_s = float(np.mean([each.launch_s or 0.0 for each in launched]))
        host = replace(launched[0], launch_s=mean_s, jitter=float(np.mean([each.jitter for each in launched])))
    return Points(join([part.steps for part in parts]), **columns, host=host)


def _without_rare(points: Points) -> Points:
    """Without stages of hardly any step: there is nothing to leave out of them."""
    rare = [name for name in STAGES if 0 < len(points.stage(name).steps) < 2 * len(FEATURES)]
    for name in rare:
        rows = np.flatnonzero(points.prefill != (name == "prefill"))
        columns = {key: getattr(points, key)[rows] for key in ("batch", "length", "prefill")}
        points = replace(points, steps=points.steps.where(rows), **columns)
    return points
