"""A comparison as JSON, and as CSV: one row a pair, one row an arm."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvload.analysis import gates
from kvload.analysis.comparison.decompose import parts_of
from kvload.analysis.comparison.lengths import difference
from kvload.analysis.comparison.model import Comparison
from kvload.analysis.records import latency
from kvload.analysis.records.outcome import censored
from kvload.analysis.records.pairs import Pairs
from kvload.analysis.records.table import STATUSES, Floats
from kvload.analysis.report.plain import plain
from kvload.analysis.run import slo


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """All figures, curves and samples of a comparison; missing figures are null. Times are in seconds."""
    whole = {
        name: plain(getattr(comparison, name))
        for name in (
            *("trace", "mode", "repeats", "level", "closed_loop", "arms", "comparisons", "verdicts", "resolution"),
            *("notes", "course", "run_limits"),
        )
    }
    answers = comparison.answers
    whole["quality"] = {**plain(answers.quality), "arms": plain(answers.arms)} if answers else None
    return {**whole, "slo": plain(comparison.limits_s), "figures": plain(gates.comparison_values(comparison))}


def write_csv(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``pairs.csv`` (one row a pair) and ``arms.csv`` (the figures that gates may name, one row an arm).

    Returns:
        the files written. A figure that was not measured is an empty cell.
    """
    pairs_path, arms_path = folder / "pairs.csv", folder / "arms.csv"
    with pairs_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(PAIR_COLUMNS)
        for name, pairs in comparison.pairs.items():
            writer.writerows(pair_rows(name, pairs, comparison.limits_s))
    figures = gates.comparison_values(comparison)
    columns = list(dict.fromkeys(column for values in figures.values() for column in values))
    with arms_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", *columns])
        for name, values in figures.items():
            writer.writerow([_text_cell(name), *("" if (v := values.get(c)) is None else v for c in columns)])
    return [pairs_path, arms_path]


PAIR_COLUMNS = (
    *("arm", "repeat", "index", "request_id", "base_status", "status", "base_tokens", "tokens", "difference"),
    *("base_cut", "cut", "base_ttft_s", "ttft_s", "base_tpot_s", "tpot_s", "base_e2e_s", "e2e_s"),
    *("queueing_s", "prefill_s", "speed_s", "length_s", "base_good", "good"),
)


def pair_rows(name: str, pairs: Pairs, limits_s: dict[str, float]) -> Iterator[tuple[Any, ...]]:
    """The rows of one arm, in the order of :data:`PAIR_COLUMNS`."""
    base, other = pairs.base, pairs.other
    n = len(base)
    parts = parts_of(pairs)
    in_parts = {name: np.full(n, np.nan) for name in ("queueing", "prefill", "speed", "length")}
    for part, values in parts.named().items():
        in_parts[part][parts.rows] = values
    good = [slo.meets_all(table, limits_s) if limits_s else [""] * n for table in (base, other)]
    columns: list[Any] = [
        [_text_cell(name)] * n,
        pairs.repeat.tolist(),
        base.index.tolist(),
        [_text_cell(value) for value in base.request_id],
        [STATUSES[code] for code in base.status],
        [STATUSES[code] for code in other.status],
        _whole(base.output_tokens),
        _whole(other.output_tokens),
        _cells(difference(pairs)),
        *(censored(table).astype(int).tolist() for table in (base, other)),
        *(_cells(latency.METRICS[m](table)) for m in ("ttft", "tpot", "e2e") for table in (base, other)),
        *(_cells(values) for values in in_parts.values()),
        *([int(v) if v != "" else "" for v in values] for values in good),
    ]
    return zip(*columns, strict=True)


def _cells(values: Floats) -> list[Any]:
    return ["" if np.isnan(value) else value for value in values.tolist()]


def _whole(values: Floats) -> list[Any]:
    return ["" if np.isnan(value) else int(value) for value in values.tolist()]


def _text_cell(text: str) -> str:
    """Text from outside that a spreadsheet must not take for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
