"""Step times against an engine's own log: the error of a model from chunk times, and of fits of the log itself."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvload.analysis.prediction.errors import HeldOut
from kvload.analysis.prediction.points import STAGES, Points, StageErrors
from kvload.analysis.prediction.points import errors as stage_errors
from kvload.analysis.prediction.steps import Steps
from kvload.errors import UsageError
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


def truth_errors(path: Path, method: str, model: StepModel | None, kept_tokens: int | None = None) -> list[TruthErrors]:
    """Hold a method's step times against its server's log.

    Args:
        path: what ``--step-log`` of the embedded engine wrote.
        model: fitted from runs; None to hold the log against itself alone.
        kept_tokens: tokens of a sequence that are read, where the method evicts.

    Raises:
        UsageError: too few steps.
        ServerError: the log cannot be read.
    """
    points = logged_points(path, kept_tokens)
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
    length = 2.0 ** np.round(np.log2(np.maximum(1.0, tokens / batch)))
    points = Points(Steps.single(work, np.array([step.s for step in steps])), batch, length, prefill)
    return _without_rare(points)


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
