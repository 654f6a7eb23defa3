"""Step times that somebody measured and published: a table of method, stage, batch, length and seconds."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvload.analysis.prediction.errors import HeldOut, held_out, leave_out
from kvload.analysis.prediction.steps import Steps
from kvload.analysis.prediction.timing import ALONE, Host
from kvload.analysis.records.table import Floats
from kvload.errors import UsageError
from kvload.step_model import FEATURES

COLUMNS = ("method", "stage", "batch", "length", "seconds")
STAGES = ("prefill", "decode")
MOST_ROWS = 1_000_000
HEAD_LIMIT = 1 << 16
PARTED = ",;\t"

MOST = {"batch": 1e6, "length": 1e9, "seconds": 1e6}
"""What is larger is a mistake."""

_NUMBER = re.compile(
    r"[0-9]{1,18}(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,3})?|\.[0-9]+(?:e[+-]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE
)
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]+", re.ASCII)


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

    Columns are parted by commas, or all by semicolons or tabs; numbers have a decimal point, without units.

    Raises:
        UsageError: it cannot be read, misses a column, or a value is none; the message names the line.
    """
    rows: dict[str, list[tuple[float, float, float, bool]]] = {}
    try:
        # Spreadsheets begin what they export with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline(HEAD_LIMIT)
            file.seek(0)
            parted = max(PARTED, key=head.count)
            reader = csv.DictReader(file, delimiter=parted, skipinitialspace=True)
            names = [(name or "").strip() for name in reader.fieldnames or ()]
            wrong = [name for name in COLUMNS if names.count(name) != 1]
            if wrong:
                has = "no column" if wrong[0] not in names else "two columns"
                raise UsageError(
                    f"has {has} '{wrong[0]}'", where=str(path), hint=f"the columns are {', '.join(COLUMNS)}"
                )
            reader.fieldnames = names
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if reader.line_num > MOST_ROWS:
                    raise UsageError(f"has more than {MOST_ROWS:,} lines", where=str(path))
                if None in row or None in row.values():
                    raise UsageError(f"has not {len(names)} columns, as the first line has", where=where)
                rows.setdefault(row["method"].strip(), []).append(_point(row, where))
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
    if not row["method"].strip():
        raise UsageError("names no method", where=where)
    stage = row["stage"].strip()
    if stage not in STAGES:
        raise UsageError(f"'{stage}' is neither prefill nor decode", where=where)
    values = []
    for name, most in MOST.items():
        text = row[name].strip()
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not (0 < value <= most):
            hint = "write 0.05, not 0,05" if _DECIMAL_COMMA.fullmatch(text) else None
            raise UsageError(f"{name}: '{text}' is no number above 0 and up to {most:,.0f}", where=where, hint=hint)
        if name == "batch" and value != int(value):
            raise UsageError(f"batch: '{text}' is no whole number of sequences", where=where)
        values.append(value)
    return values[0], values[1], values[2], stage == "prefill"


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
