"""Step times held out: against an engine's own log of its steps, or against what runs show of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvload.analysis.prediction.errors import HeldOut
from kvload.analysis.prediction.points import STAGES, Points, StageErrors
from kvload.analysis.prediction.points import errors as stage_errors
from kvload.analysis.prediction.steps import Steps, join
from kvload.analysis.records.table import Floats, load
from kvload.errors import UsageError
from kvload.experiment.prediction.fitting import Overrides, measured_steps, shape_of
from kvload.rundir import RunDir
from kvload.servers.embedded.core.steps import Step, read_steps
from kvload.servers.simulator.cost import prompt_work
from kvload.step_model import FEATURES, StepModel

SETTLING_STEPS = 20
"""Steps at the start of a log that are left out: an engine warms up."""


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
        UsageError: too few steps.
        ServerError, RunDirError: one cannot be read.
    """
    kept_tokens = model.kept_tokens if model is not None else None
    points = joined([run_points(path, method) if path.is_dir() else logged_points(path, kept_tokens) for path in paths])
    found = []
    for each in stage_errors(method, points):
        if model is None:
            found.append(TruthErrors(None, None, each))
            continue
        steps = points.stage(each.stage).steps
        seconds = steps.beyond(model.free_prompt_tokens) @ np.array(model.coefficients)
        total = float(np.log(seconds.sum() / steps.seconds.sum()))
        found.append(TruthErrors(HeldOut.of(seconds / steps.seconds - 1), total, each))
    return found


def logged_points(path: Path, kept_tokens: int | None = None) -> Points:
    """The steps of a log as points: their batch is who decodes (or whose prompts are read), their length that of one.

    Lengths are rounded to powers of two, so that leaving one out leaves out its neighbours, too.

    Raises:
        UsageError: too few steps.
    """
    steps = [step for step in read_steps(path)[SETTLING_STEPS:] if step.s > 0 and (step.decode or step.prefill)]
    if not steps:
        raise UsageError("has too few steps", where=str(path), hint=f"the first {SETTLING_STEPS} are not counted")
    work = np.array([_work(step, kept_tokens) for step in steps])
    prefill = np.array([bool(step.prefill) for step in steps])
    batch = np.array([float(len(step.prefill) or step.decode) for step in steps])
    tokens = np.array([float(sum(n for n, _ in step.prefill) or step.context) for step in steps])
    seconds = np.array([step.s for step in steps])
    points = Points(Steps.single(work, seconds), batch, _power(tokens / batch), prefill)
    return _without_rare(points)


def run_points(path: Path, method: str) -> Points:
    """The stretches of steps that a run shows; their batch, and their length, is the mean's power of two.

    Raises:
        UsageError: it shows none.
        RunDirError: it cannot be read.
    """
    run = RunDir.open(path)
    steps = measured_steps(load(run), shape_of(method, run.manifest(), Overrides()))
    if not len(steps):
        raise UsageError("shows no steps", where=str(path), hint="answers must be streamed token by token")
    work = dict(zip(FEATURES, steps.work.T, strict=True))
    prefill = work["prompt_tokens"] > 0
    batch: Floats = np.where(prefill, (steps.prompts > 0).sum(axis=1), work["decodes"] / work["steps"])
    length: Floats = np.where(
        prefill, work["prompt_tokens"] / np.maximum(1, batch), work["context"] / np.maximum(1, work["decodes"])
    )
    return _without_rare(Points(steps, _power(batch), _power(length), prefill))


def joined(parts: Sequence[Points]) -> Points:
    """The points of several logs or runs of one server."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("batch", "length", "prefill")}
    return Points(join([part.steps for part in parts]), **columns)


def _power(values: Floats) -> Floats:
    found: Floats = np.exp2(np.round(np.log2(np.maximum(1.0, values))))
    return found


def _without_rare(points: Points) -> Points:
    """Without stages of hardly any step: there is nothing to leave out of them."""
    rare = [name for name in STAGES if 0 < len(points.stage(name).steps) < 2 * len(FEATURES)]
    for name in rare:
        rows = np.flatnonzero(points.prefill != (name == "prefill"))
        columns = {key: getattr(points, key)[rows] for key in ("batch", "length", "prefill")}
        points = replace(points, steps=points.steps.where(rows), **columns)
    return points


def _work(step: Step, kept_tokens: int | None) -> list[float]:
    context = float(step.context)
    if kept_tokens is not None:
        context = min(context, float(kept_tokens * step.decode))
    values = {
        "steps": 1.0,
        "prompt_steps": float(bool(step.prefill)),
        "decodes": float(step.decode),
        "context": context,
        "prompt_tokens": float(sum(count for count, _ in step.prefill)),
        "prompt_work": float(sum(prompt_work(start, count) for count, start in step.prefill)),
    }
    return [values[name] for name in FEATURES]
