"""Arms made in memory, for simulations that would write thousands of run folders."""

import dataclasses
from pathlib import Path

import numpy as np

from kvload.analysis.records.loading import load
from kvload.analysis.records.pairs import LoadedArm, LoadedRun
from kvload.analysis.records.table import RecordTable
from tests.analysis.synthetic import manifest, mixed


def answered(folder: Path, count: int) -> RecordTable:
    """A table of ``count`` answered requests, read from a run folder once."""
    table = load(mixed(folder / "template", count=count + 10))
    return table.take(np.flatnonzero(table.ok)[:count])


def with_answers(table: RecordTable, tokens: np.ndarray, tpot_s: np.ndarray | float, ttft_s: np.ndarray) -> RecordTable:
    """The same requests with other answers."""
    tokens = np.maximum(np.round(tokens), 2.0)
    first = table.t_send_s + ttft_s
    last = first + tpot_s * (tokens - 1)
    return dataclasses.replace(
        table,
        output_tokens=tokens,
        first_chunk_tokens=np.ones(len(table)),
        t_first_s=first,
        t_last_s=last,
        t_end_s=last,
        chunk_count=np.zeros(len(table), np.int64),
        max_tokens=np.full(len(table), 1 << 20),
    )


def loaded(name: str, *tables: RecordTable, baseline: bool = False, floor: bool = False) -> LoadedArm:
    runs = {
        repeat: LoadedRun(None, manifest(len(table), duration_s=30.0), table, []) for repeat, table in enumerate(tables)
    }
    return LoadedArm(name, runs, baseline, floor)
