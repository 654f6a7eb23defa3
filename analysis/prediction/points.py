"""Step times that somebody measured and published: a table of method, stage, batch, length and seconds."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvload.analysis.prediction.errors import HeldOut, held_out, leave_out
from kvload.analysis.prediction.fit import ALONE, Host
from kvload.analysis.prediction.steps import Steps
from kvload.analysis.records.table import Floats
from kvload.errors import UsageError
from kvload.step_model import FEATURES

COLUMNS = ("method", "stage", "batch", "length", "seconds")
STAGES = ("prefill", "decode")
MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Points:
    """The points of one method.

    Attributes:
        steps: their work and seconds.
        batch, length: sequences, and tokens of each, ``(n,)``.
        prefill: whether prompts were read, else a token was generated, ``(n,)``.
        host: how the server launches steps.
    """

    steps: Steps
    batch: Floats
    length: Floats
    prefill: Floats
    host: Host = ALONE

    def stage(self, name: str) -> "Points":
        """Those of one stage."""
        rows = np.flatnonzero(self.prefill == (name == "prefill"))
        return Points(self.steps.where(rows), self.batch[rows], self.length[rows], self.prefill[rows], self.host)


@dataclass(frozen=True)
class StageErrors:
    """How well one stage of one method is foretold.

    Attributes:
        by_batch, by_length: with one batch size, or one length, left out at a time; None where there is one alone, or
            too little beside any.
        corner: fitted on batches and lengths below their medians, held against those above both.
    """

    method: str
    stage: str
    points: int
    by_batch: HeldOut | None
    by_length: HeldOut | None
    corner: HeldOut | None


def read(path: Path) -> dict[str, Points]:
    """The points of a CSV file, by method in the order of the file.

    Raises:
        UsageError: it cannot be read, misses a column, or a value is none; the message names the line.
    """
    rows: dict[str, list[tuple[float, float, float, bool]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(
                    f"has no column '{missing[0]}'", where=str(path), hint=f"the columns are {', '.join(COLUMNS)}"
                )
            for number, row in enumerate(reader, 2):
                if number > MOST_ROWS:
                    raise UsageError(f"has more than {MOST_ROWS:,} lines", where=str(path))
                rows.setdefault(row["method"], []).append(_point(row, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    if not rows:
        raise UsageError("has no points", where=str(path))
    return {method: _points(found) for method, found in rows.items()}


def errors(method: str, points: Points) -> list[StageErrors]:
    """Held-out errors of every stage that has points."""
    found = []
    for name in STAGES:
        part = points.stage(name)
        if not len(part.steps):
            continue
        near = (part.batch <= np.median(part.batch)) & (part.length <= np.median(part.length))
        far = (part.batch > np.median(part.batch)) & (part.length > np.median(part.length))
        both = near | far
        corner = None
        if near.sum() >= len(FEATURES) + 2 and far.any():
            corner = HeldOut.of(held_out(part.steps.where(both), near[both], part.host))
        found.append(
            StageErrors(method, name, len(part.steps), _one_out(part, part.batch), _one_out(part, part.length), corner)
        )
    return found


def _one_out(part: Points, key: Floats) -> HeldOut | None:
    if len(np.unique(key)) < 2:
        return None
    found = leave_out(part.steps, key, part.host)
    found = found[~np.isnan(found)]
    return HeldOut.of(found) if len(found) else None


def _point(row: dict[str, str], where: str) -> tuple[float, float, float, bool]:
    if row["stage"] not in STAGES:
        raise UsageError(f"'{row['stage']}' is neither prefill nor decode", where=where)
    values = []
    for name in COLUMNS[2:]:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = math.nan
        if not (0 < value < math.inf):
            raise UsageError(f"{name}: '{row[name]}' is no number above 0", where=where)
        values.append(value)
    return values[0], values[1], values[2], row["stage"] == "prefill"


def _points(rows: list[tuple[float, float, float, bool]]) -> Points:
    batch, length, seconds, prefill = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    work = np.zeros((len(rows), len(FEATURES)))
    columns = {
        "steps": np.ones(len(rows)),
        "prompt_steps": prefill,
        "decodes": (1 - prefill) * batch,
        "context": (1 - prefill) * batch * length,
        "prompt_tokens": prefill * batch * length,
        "prompt_work": prefill * batch * length * (length + 1) / 2,
    }
    for name, column in columns.items():
        work[:, FEATURES.index(name)] = column
    return Points(Steps.single(work, seconds), batch, length, prefill)
