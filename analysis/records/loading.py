"""Reads the records of a run into columns.

A run may hold millions of requests, so lines are decoded in batches into a narrow struct that has the measured fields
only; texts stay on disk until they are asked for (see :func:`texts`).
"""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.analysis.records.table import (
    BOOL_COLUMNS,
    FLOAT_COLUMNS,
    INT_COLUMNS,
    PLAIN_COLUMNS,
    RECORD_FIELDS,
    STATUS_CODE,
    WORD_COLUMNS,
    Bools,
    Categories,
    Floats,
    Ints,
    RecordTable,
    count_true,
    join_words,
)
from kvload.errors import RunDirError
from kvload.records import RequestRecord
from kvload.rundir import CHUNK_DTYPE, UNACCOUNTED, RunDir, Shard
from kvload.untrusted import DECODE_ERRORS

_BATCH_BYTES = 8 << 20
_PARALLEL_FROM_BYTES = 64 << 20

_MISSING: Any = float("nan")
_LONGEST_S = 1e10


def _row_field(name: str) -> tuple[str, Any, Any] | tuple[str, Any]:
    field = RECORD_FIELDS[name]
    if field.required:
        return name, field.type
    missing = _MISSING if field.default is None and name in FLOAT_COLUMNS else field.default
    return name, field.type, missing


_Row = msgspec.defstruct("_Row", sorted(map(_row_field, (*PLAIN_COLUMNS, *WORD_COLUMNS)), key=len), gc=False)
"""The measured fields of a :class:`RequestRecord`; all other fields of a line are skipped by the decoder.

A missing number is NaN at once: turning None into NaN later costs more than decoding the line.
"""


def load(run: RunDir) -> RecordTable:
    """Read all records of a run.

    Raises:
        RunDirError: a line other than a shard's torn last one does not parse, two records have the same index, or a
            chunk file is shorter than its records say.
    """
    shards = tuple(run.shards())
    parts = _in_parallel(shards) if _worth_processes(shards) else None
    if parts is None:
        parts = [_read_shard(shard) for shard in shards]
    if not parts:
        parts = [_joined([], {name: {} for name in WORD_COLUMNS})]
    whole: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in PLAIN_COLUMNS}
    words = {name: join_words([part[name] for part in parts]) for name in WORD_COLUMNS}
    whole["shard"] = np.repeat(np.arange(len(parts)), [len(part["index"]) for part in parts])
    parts.clear()
    order = np.argsort(whole["index"], kind="stable")
    order = order[_counts(whole["index"][order], whole["shard"][order], shards)]
    for name, values in whole.items():
        whole[name] = values[order]
    _check_unique(whole["index"], run)
    whole |= {name: values.take(order) for name, values in words.items()}
    return RecordTable(**whole, shards=shards, torn=run.torn_records())


def _read_shard(shard: Shard) -> dict[str, Any]:
    """All columns of one shard."""
    codes: dict[str, dict[str | None, int]] = {name: {} for name in WORD_COLUMNS}
    columns = _joined([dict(_columns(batch, codes)) for batch in _batches(shard.records_path)], codes)
    _check_chunks(shard, columns)
    _check_times(shard, columns)
    return columns


def _joined(batches: list[dict[str, npt.NDArray[Any]]], codes: dict[str, dict[str | None, int]]) -> dict[str, Any]:
    batches = batches or [dict(_columns([], codes))]
    joined: dict[str, Any] = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for name in WORD_COLUMNS:
        joined[name] = Categories(tuple(codes[name]), joined[name])
    return joined


def _worth_processes(shards: Sequence[Shard]) -> bool:
    """Whether decoding in several processes pays. A process that has threads must not be forked."""
    if len(shards) < 2 or not hasattr(os, "sched_getaffinity") or threading.active_count() > 1:
        return False
    size_bytes = sum(shard.records_path.stat().st_size for shard in shards)
    return len(os.sched_getaffinity(0)) > 1 and size_bytes > _PARALLEL_FROM_BYTES


def _in_parallel(shards: Sequence[Shard]) -> list[dict[str, Any]] | None:
    """The shards' columns, decoded on all cores; None where a process failed, so that the caller sees the fault."""
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("fork").Pool(min(cores, len(shards))) as pool:
        try:
            return pool.map(_read_shard, shards, chunksize=1)
        except (RunDirError, OSError):
            return None


def _batches(path: Path) -> Iterator[list[Any]]:
    """Rows of complete lines, some megabytes at a time."""
    decoder = msgspec.json.Decoder(_Row)
    done = 0
    with path.open("rb") as file:
        rest = b""
        while block := file.read(_BATCH_BYTES):
            end = block.rfind(b"\n") + 1
            if not end:
                rest += block
                continue
            lines, rest = rest + block[:end], block[end:]
            try:
                rows = decoder.decode_lines(lines)
            except DECODE_ERRORS:
                _name_bad_line(path, done)
                raise
            yield rows
            done += len(lines)


def _name_bad_line(path: Path, start: int) -> None:
    """Find the first line from byte ``start`` on that does not parse."""
    decoder = msgspec.json.Decoder(_Row)
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place += len(line)
            if place <= start:
                continue
            try:
                decoder.decode(line)
            except DECODE_ERRORS as error:
                raise RunDirError(str(error), where=f"{path}:{number}") from error


def _columns(rows: list[Any], codes: dict[str, dict[str | None, int]]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name in INT_COLUMNS:
        yield name, np.fromiter(map(attrgetter(name), rows), np.int64, len(rows))
    for name in FLOAT_COLUMNS:
        yield name, _numbers(rows, name)
    for name in WORD_COLUMNS:
        table = codes[name]
        words = list(map(attrgetter(name), rows))
        for word in set(words) - table.keys():
            table[word] = len(table)
        yield name, np.fromiter(map(table.__getitem__, words), np.int64, len(rows))
    statuses = map(STATUS_CODE.__getitem__, map(attrgetter("status"), rows))
    yield "status", np.fromiter(statuses, np.int64, len(rows))
    for name in BOOL_COLUMNS:
        yield name, np.fromiter(map(attrgetter(name), rows), np.bool_, len(rows))
    yield "prompt_digest", np.array(list(map(attrgetter("prompt_digest"), rows)), "S32")
    yield "request_id", np.fromiter(map(attrgetter("request_id"), rows), np.object_, len(rows))


def _numbers(rows: list[Any], name: str) -> Floats:
    try:
        return np.fromiter(map(attrgetter(name), rows), np.float64, len(rows))
    except TypeError:
        # An explicit null, which our own writer leaves out; as an array of objects it becomes NaN.
        return np.array([getattr(row, name) for row in rows], np.float64)


def _check_chunks(shard: Shard, columns: dict[str, Any]) -> None:
    ends = columns["chunk_offset"] + columns["chunk_count"]
    needed = int(ends[columns["chunk_count"] > 0].max(initial=0))
    there = shard.chunks_path.stat().st_size // CHUNK_DTYPE.itemsize if shard.chunks_path.exists() else 0
    if needed > there:
        raise RunDirError(f"has {there} chunk rows, but its records name {needed}", where=str(shard.chunks_path))


def _check_times(shard: Shard, columns: dict[str, Any]) -> None:
    """No run lasts for centuries: such a time is damage, and no figure could be made of it."""
    for name in FLOAT_COLUMNS:
        if name.endswith("_s") and count_true(np.abs(columns[name]) > _LONGEST_S):
            raise RunDirError(f"a record has a {name} that is no time of a run", where=str(shard.records_path))


def _counts(index: Ints, shard: Ints, shards: Sequence[Shard]) -> Bools:
    """Which records, ordered by index, count: not one of the shard of the unaccounted that came after all."""
    late = np.array([one.name == UNACCOUNTED for one in shards], np.bool_)
    first, last = np.searchsorted(index, index, side="left"), np.searchsorted(index, index, side="right")
    kept: Bools = ~(late[shard] & (last - first > 1)) if late.any() else np.ones(len(index), np.bool_)
    return kept


def _check_unique(index: Ints, run: RunDir) -> None:
    again = np.flatnonzero(index[1:] == index[:-1])
    if len(again):
        raise RunDirError(f"two records have the index {index[again[0]]}", where=str(run.records_dir))


def texts(path: Path, wanted: Iterable[int] | None = None) -> dict[int, RequestRecord]:
    """Whole records with their texts, by index.

    Args:
        path: the run folder.
        wanted: indices to keep; all where None.
    """
    keep = None if wanted is None else set(wanted)
    found = {}
    for record, _ in RunDir(path).records():
        if keep is None or record.index in keep:
            found[record.index] = record
    return found
