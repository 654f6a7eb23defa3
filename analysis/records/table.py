"""The records of a run as numpy columns.

A run may hold millions of requests, so lines are decoded in batches into a narrow struct that has the measured fields
only (texts stay on disk, see :func:`texts`), and chunk rows are read block by block where they are needed.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.errors import RunDirError
from kvload.records import RequestRecord, Status
from kvload.rundir import CHUNK_DTYPE, UNACCOUNTED, RunDir, Shard
from kvload.untrusted import DECODE_ERRORS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STATUSES: tuple[str, ...] = get_args(Status)
"""The statuses in the order of their codes in :attr:`RecordTable.status`."""

_STATUS_CODE = {name: code for code, name in enumerate(STATUSES)}
_BATCH_BYTES = 8 << 20
_PARALLEL_FROM_BYTES = 64 << 20


_MISSING: Any = float("nan")
_LONGEST_S = 1e10


@dataclass(frozen=True)
class Categories:
    """A column of few distinct words: ``codes`` index into ``names``; a missing word has the name None."""

    names: tuple[str | None, ...]
    codes: Ints

    def equals(self, name: str | None) -> Bools:
        """Where the word is ``name``."""
        if name not in self.names:
            return np.zeros(len(self.codes), np.bool_)
        found: Bools = self.codes == self.names.index(name)
        return found

    def counts(self, where: Bools) -> dict[str | None, int]:
        """How often each word stands among the rows of ``where``, most frequent first."""
        found = np.bincount(self.codes[where], minlength=len(self.names))
        pairs = [(name, int(number)) for name, number in zip(self.names, found, strict=True) if number]
        return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0] or "")))

    def take(self, rows: Ints) -> "Categories":
        """The words of some rows."""
        return Categories(self.names, self.codes[rows])


@dataclass(frozen=True, kw_only=True)
class RecordTable:
    """All records of a run, one row each, ordered by ``index``.

    Arrays have one entry per record. Times are seconds on the run's clock, token counts are floats so that a missing
    value is NaN (never 0). ``status`` holds positions in :data:`STATUSES`; ``shard`` holds positions in ``shards``,
    the files where the chunk rows ``chunk_offset .. chunk_offset + chunk_count`` of a request lie. ``torn`` counts the
    records that a crash cut short.
    """

    index: Ints
    status: Ints
    shard: Ints
    server: Ints
    max_tokens: Ints
    min_tokens: Ints
    retries: Ints
    chunk_offset: Ints
    chunk_count: Ints
    chunk_tick_us: Ints
    end_tokens: Ints
    unproven_tokens: Ints
    ignore_eos: Bools
    in_bursts: Bools
    damaged: Bools
    t_sched_s: Floats
    t_send_s: Floats
    t_first_s: Floats
    t_answer_s: Floats
    t_last_s: Floats
    t_end_s: Floats
    queue_s: Floats
    input_tokens: Floats
    prompt_tokens: Floats
    cached_tokens: Floats
    output_tokens: Floats
    first_chunk_tokens: Floats
    reasoning_tokens: Floats
    temperature: Floats
    top_p: Floats
    seed: Floats
    turn: Floats
    prompt_digest: npt.NDArray[np.bytes_]
    request_id: npt.NDArray[np.object_]
    cause: Categories
    finish_reason: Categories
    clock: Categories
    output_tokens_source: Categories
    count_doubt: Categories
    cached_doubt: Categories
    shards: tuple[Shard, ...]
    torn: int

    def __len__(self) -> int:
        return len(self.index)

    def has_status(self, *names: Status) -> Bools:
        """Where the status is one of ``names``."""
        wanted = np.isin(STATUSES, names)
        found: Bools = wanted[self.status]
        return found

    @property
    def ok(self) -> Bools:
        """Where the stream ended as the protocol says."""
        return self.has_status("ok")

    @property
    def sent(self) -> Bools:
        """Where the request was sent: every status but ``unsent``."""
        return ~self.has_status("unsent")

    def take(self, rows: Ints) -> "RecordTable":
        """The table of some rows, in the order of ``rows``."""
        kept: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Categories):
                kept[field.name] = value.take(rows)
            else:
                kept[field.name] = value[rows] if isinstance(value, np.ndarray) else value
        return RecordTable(**kept)


def _columns_of(kind: Any) -> tuple[str, ...]:
    """The columns of a kind that are fields of a record as they are."""
    hints = get_type_hints(RecordTable)
    return tuple(name for name in hints if hints[name] == kind and name in _RECORD and name != "status")


_RECORD = {field.name: field for field in msgspec.structs.fields(RequestRecord)}
_INT_COLUMNS, _FLOAT_COLUMNS, _BOOL_COLUMNS = _columns_of(Ints), _columns_of(Floats), _columns_of(Bools)
_PLAIN_COLUMNS = (*_INT_COLUMNS, *_FLOAT_COLUMNS, *_BOOL_COLUMNS, "status", "prompt_digest", "request_id")
_WORD_COLUMNS = _columns_of(Categories)


def _row_field(name: str) -> tuple[str, Any, Any] | tuple[str, Any]:
    field = _RECORD[name]
    if field.required:
        return name, field.type
    missing = _MISSING if field.default is None and name in _FLOAT_COLUMNS else field.default
    return name, field.type, missing


_Row = msgspec.defstruct("_Row", sorted(map(_row_field, (*_PLAIN_COLUMNS, *_WORD_COLUMNS)), key=len), gc=False)
"""The measured fields of a :class:`RequestRecord`; all other fields of a line are skipped by the decoder.

A missing number is NaN at once: turning None into NaN later costs more than decoding the line.
"""


def proven(table: RecordTable) -> RecordTable:
    """The table as a comparison takes it: an answer that cannot be held against another one has failed.

    Such are an answer without anything in it (cause ``empty``) and one whose tokens the server counted impossibly
    (cause ``impossible_count``): neither is a faster or a shorter one. They are misses, and without latency and length.
    """
    ok = table.ok
    doubted = ok & ~table.count_doubt.equals(None)
    empty = ok & np.isnan(table.t_first_s) & ~doubted
    if not (doubted | empty).any():
        return table
    names = tuple(dict.fromkeys((*table.cause.names, "empty", "impossible_count")))
    codes = np.where(empty, names.index("empty"), table.cause.codes)
    codes = np.where(doubted, names.index("impossible_count"), codes)
    status = np.where(doubted | empty, _STATUS_CODE["failed"], table.status)
    return replace(table, status=status, cause=Categories(names, codes))


def concatenate(tables: Sequence[RecordTable]) -> RecordTable:
    """The rows of several tables one after the other (repeats of an arm).

    ``shard`` is renumbered over the joined ``shards``, so chunk rows are found as before.
    """
    joined: dict[str, Any] = {"shards": tuple(shard for table in tables for shard in table.shards)}
    joined["torn"] = sum(table.torn for table in tables)
    for field in fields(RecordTable):
        parts = [getattr(table, field.name) for table in tables]
        if field.name in _WORD_COLUMNS:
            joined[field.name] = _join_words(parts)
        elif field.name not in joined:
            joined[field.name] = np.concatenate(parts)
    before = np.cumsum([0, *(len(table.shards) for table in tables[:-1])])
    joined["shard"] = np.concatenate([table.shard + first for table, first in zip(tables, before, strict=True)])
    return RecordTable(**joined)


def _join_words(parts: Sequence[Categories]) -> Categories:
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    places = [np.array([names.index(name) for name in part.names], np.int64) for part in parts]
    return Categories(names, np.concatenate([place[part.codes] for place, part in zip(places, parts, strict=True)]))


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
        parts = [_joined([], {name: {} for name in _WORD_COLUMNS})]
    whole: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in _PLAIN_COLUMNS}
    words = {name: _join_words([part[name] for part in parts]) for name in _WORD_COLUMNS}
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
    codes: dict[str, dict[str | None, int]] = {name: {} for name in _WORD_COLUMNS}
    columns = _joined([dict(_columns(batch, codes)) for batch in _batches(shard.records_path)], codes)
    _check_chunks(shard, columns)
    _check_times(shard, columns)
    return columns


def _joined(batches: list[dict[str, npt.NDArray[Any]]], codes: dict[str, dict[str | None, int]]) -> dict[str, Any]:
    batches = batches or [dict(_columns([], codes))]
    joined: dict[str, Any] = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for name in _WORD_COLUMNS:
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
    for name in _INT_COLUMNS:
        yield name, np.fromiter(map(attrgetter(name), rows), np.int64, len(rows))
    for name in _FLOAT_COLUMNS:
        yield name, _numbers(rows, name)
    for name in _WORD_COLUMNS:
        table = codes[name]
        words = list(map(attrgetter(name), rows))
        for word in set(words) - table.keys():
            table[word] = len(table)
        yield name, np.fromiter(map(table.__getitem__, words), np.int64, len(rows))
    statuses = map(_STATUS_CODE.__getitem__, map(attrgetter("status"), rows))
    yield "status", np.fromiter(statuses, np.int64, len(rows))
    for name in _BOOL_COLUMNS:
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
    for name in _FLOAT_COLUMNS:
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


def chunk_blocks(
    table: RecordTable, rows: Ints, block_rows: int = 1 << 21
) -> Iterator[tuple[npt.NDArray[np.void], Ints, Ints]]:
    """The chunk rows of some requests, block by block, each block holding whole requests.

    Args:
        table: the records.
        rows: positions in ``table``.
        block_rows: about how many chunk rows a block holds.

    Yields:
        chunk rows (``CHUNK_DTYPE``), the positions in ``table`` of the requests they belong to, and where in the
        block each request's rows start.
    """
    rows = rows[table.chunk_count[rows] > 0]
    for number, shard in enumerate(table.shards):
        mine = rows[table.shard[rows] == number]
        if not len(mine):
            continue
        mine = mine[np.argsort(table.chunk_offset[mine], kind="stable")]
        chunks = shard.chunks()
        cuts = np.cumsum(table.chunk_count[mine]) // block_rows
        for part in np.split(mine, np.flatnonzero(np.diff(cuts)) + 1):
            yield _gather(chunks, table.chunk_offset[part], table.chunk_count[part], part)


def chunk_times_us(table: RecordTable, block: npt.NDArray[np.void], part: Ints) -> Ints:
    """The times of a block of :func:`chunk_blocks` in microseconds since each request was sent.

    Args:
        part: the positions in ``table`` of the requests the block belongs to.
    """
    times = block["us"].astype(np.int64)
    ticks = table.chunk_tick_us[part]
    return times if bool((ticks == 1).all()) else times * np.repeat(ticks, table.chunk_count[part])


def _gather(
    chunks: npt.NDArray[np.void], offset: Ints, length: Ints, part: Ints
) -> tuple[npt.NDArray[np.void], Ints, Ints]:
    starts = np.cumsum(length) - length
    first, last = int(offset[0]), int(offset[-1] + length[-1])
    if last - first == int(length.sum()) and np.array_equal(offset - first, starts):
        return chunks[first:last], part, starts
    places = np.arange(int(length.sum())) + np.repeat(offset - starts, length)
    return np.asarray(chunks)[places], part, starts


def count_true(mask: Bools) -> int:
    """How many entries are true."""
    return int(np.count_nonzero(mask))
