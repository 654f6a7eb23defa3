"""A sweep as JSON, and its points as CSV."""

import csv
from pathlib import Path
from typing import Any

from kvload.analysis.report.plain import plain
from kvload.analysis.sweep.model import Sweep

SCHEMA_VERSION = 1


def as_dict(sweep: Sweep) -> dict[str, Any]:
    """All figures; times in seconds, missing ones are null."""
    found: dict[str, Any] = {"schema": "kvload.sweep", "schema_version": SCHEMA_VERSION, **plain(sweep)}
    return found


def write_csv(sweep: Sweep, path: Path) -> None:
    """One row for every arm, load and repeat."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            (
                *("arm", "axis", "load", "repeat", "run", "sent", "met", "attainment", "kept_pace"),
                *("answered_rps", "output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"),
                *("e2e_p50_s", "e2e_p99_s", "duration_s", "cache_usage", "preemptions", "client_bound"),
            )
        )
        for curve in sweep.curves:
            for level in curve.levels:
                for point in level.points:
                    share = point.met / point.sent if point.sent else None
                    rows.writerow(
                        (
                            *(point.arm, sweep.axis, point.level, point.repeat, point.run, point.sent, point.met),
                            *(share, point.kept_pace, point.answered_rps, point.output_tokens_per_s),
                            *(each[p] for each in (point.ttft_s, point.tpot_s, point.e2e_s) for p in (50.0, 99.0)),
                            *(point.duration_s, point.cache_usage, point.preemptions, point.client_bound),
                        )
                    )
