"""The steps that an engine noted in a log of its own: what it computed in each, and how long that took."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvload.analysis.prediction.points import Points
from kvload.analysis.prediction.steps import Steps
from kvload.analysis.records.table import Floats
from kvload.errors import UsageError
from kvload.records import RunManifest
from kvload.servers.embedded.core.steps import Step, read_steps
from kvload.servers.simulator.cost import prompt_work
from kvload.step_model import FEATURES

LOG_FLAG = "--step-log"
"""How a server is told to keep one."""

Shape = tuple[float, float, bool]
"""What kernels are compiled and graphs captured for, roughly: sequences that decode and prompt tokens, each the next
power of two, and whether a prompt is continued."""


def logged_points(path: Path, kept_tokens: int | None = None) -> Points:
    """The steps of a log as points: their batch is who decodes (or whose prompts are read), their length that of one.

    A step lasts until the next one begins, where somebody decodes in both. The first step of every shape is left out:
    compiling for it, once in a server's life, belongs to no model. Lengths are rounded to powers of two, so that
    leaving one out leaves out its neighbours, too.

    Raises:
        UsageError: too few steps, or it cannot be read.
    """
    steps = _counted(path)
    work = np.array([_work(step, kept_tokens) for step in steps])
    prefill = np.array([bool(step.prefill) for step in steps])
    batch = np.array([float(len(step.prefill) or step.decode) for step in steps])
    tokens = np.array([float(sum(n for n, _ in step.prefill) or step.context) for step in steps])
    seconds = np.array([step.s for step in steps])
    return Points(Steps.single(work, seconds), batch, power_of_two(tokens / batch), prefill)


def _until_next(steps: Sequence[Step]) -> list[Step]:
    """Steps with what lies between them: handing tokens out and choosing who comes next."""
    found = []
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        carried = after is not None and after.decode > 0
        found.append(msgspec.structs.replace(step, s=after.t - step.t) if after is not None and carried else step)
    return [step for step in found if step.s > 0 and (step.decode or step.prefill)]


def _again(steps: Sequence[Step]) -> list[Step]:
    """Those of a shape that was there before."""
    seen: set[Shape] = set()
    found = []
    for step in steps:
        shape = _shape(step)
        if shape in seen:
            found.append(step)
        seen.add(shape)
    return found


def _shape(step: Step) -> Shape:
    tokens = sum(count for count, _ in step.prefill)
    decode, prompt = np.ceil(np.log2([max(1, step.decode), max(1, tokens)])).tolist()
    return decode + bool(step.decode), prompt + bool(tokens), any(start > 0 for _, start in step.prefill)


def logged_steps(path: Path, kept_tokens: int | None, manifest: RunManifest | None = None) -> Steps:
    """The steps of a log, each by itself; of one run alone, where its manifest is given.

    Raises:
        UsageError: there are none, or the log cannot be read.
    """
    steps = _counted(path)
    if manifest is not None:
        begun, took = manifest.started_at or 0.0, manifest.duration_s or 0.0
        steps = [step for step in steps if begun <= step.t <= begun + took]
    if not steps:
        raise UsageError("has no steps of this run", where=str(path), hint="is it the log of another start?")
    return Steps.single(np.array([_work(step, kept_tokens) for step in steps]), np.array([step.s for step in steps]))


def log_of(manifest: RunManifest) -> Path | None:
    """The log that a run's server keeps, if it keeps one that lies on this machine."""
    command = manifest.server.command or []
    for flag, value in itertools.pairwise(command):
        if flag == LOG_FLAG and Path(value).is_file():
            return Path(value)
    return None


def _counted(path: Path) -> list[Step]:
    steps = _again(_until_next(read_steps(path)))
    if not steps:
        raise UsageError("has too few steps", where=str(path), hint="the first one of every shape is not counted")
    return steps


def power_of_two(values: Floats) -> Floats:
    """The nearest power of two of each, 1 at least."""
    found: Floats = np.exp2(np.round(np.log2(np.maximum(1.0, values))))
    return found


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
