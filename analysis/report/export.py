"""Every request of a run as a row: for spreadsheets and data frames."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from kvload.analysis.records import latency
from kvload.analysis.records.loading import load
from kvload.errors import UsageError
from kvload.records import RequestRecord
from kvload.rundir import RunDir

_LEFT_OUT = {"token_ids", "chunk_offset", "chunk_count"}
_TEXTS = {"text", "expected", "error"}
_DERIVED = ("ttft", "tpot", "e2e", "ttft_sched", "e2e_sched", "lag")


def columns(*, texts: bool) -> list[str]:
    """The names of the columns: the record's fields, then latencies in seconds."""
    left_out = _LEFT_OUT if texts else _LEFT_OUT | _TEXTS
    fields = [name for name in RequestRecord.__struct_fields__ if name not in left_out]
    return ["run_id", "arm", "repeat", "method", *fields, *(f"{name}_s" for name in _DERIVED)]


def rows(run: RunDir, *, texts: bool = False) -> Iterator[dict[str, Any]]:
    """One dictionary a request, in the order of the schedule; what was not measured is None.

    Args:
        run: a run folder.
        texts: the answers' texts too, and what failures were told.
    """
    manifest, table = run.manifest(), load(run)
    derived = {name: latency.METRICS[name](table) for name in _DERIVED}
    place = {int(index): row for row, index in enumerate(table.index)}
    wanted = set(columns(texts=texts))
    shared = {
        "run_id": manifest.run_id,
        "arm": manifest.arm,
        "repeat": manifest.repeat,
        "method": manifest.server.method,
    }
    records = sorted((record for record, _ in run.records()), key=lambda record: record.index)
    for record in records:
        values = {name: value for name, value in msgspec.structs.asdict(record).items() if name in wanted}
        row = place.get(record.index)
        latencies = {
            f"{name}_s": None if row is None or column[row] != column[row] else float(column[row])
            for name, column in derived.items()
        }
        yield shared | values | latencies


def write_csv(run: RunDir, path: Path, *, texts: bool = False) -> int:
    """Write the requests as CSV; how many there are.

    Cells that a spreadsheet would take for a formula get an apostrophe in front (OWASP, CSV injection).
    """
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(texts=texts), restval="")
        writer.writeheader()
        for row in rows(run, texts=texts):
            writer.writerow({name: _cell(value) for name, value in row.items()})
            count += 1
    return count


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


def write_parquet(run: RunDir, path: Path, *, texts: bool = False) -> int:
    """Write the requests as Parquet; how many there are.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "pyarrow is not installed", where="--parquet", hint="pip install 'kvload[parquet]', or use --csv"
        ) from None
    found = list(rows(run, texts=texts))
    names = columns(texts=texts)
    pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in found] for name in names}), path)
    return len(found)
