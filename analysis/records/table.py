"""The records of a run as numpy columns.

A run may hold millions of requests, so that chunk rows are read block by block where they are needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.records import RequestRecord, Status
from kvload.rundir import Shard

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STATUSES: tuple[str, ...] = get_args(Status)
"""The statuses in the order of their codes in :attr:`RecordTable.status`."""

STATUS_CODE = {name: code for code, name in enumerate(STATUSES)}


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
    return tuple(name for name in hints if hints[name] == kind and name in RECORD_FIELDS and name != "status")


RECORD_FIELDS = {field.name: field for field in msgspec.structs.fields(RequestRecord)}
INT_COLUMNS, FLOAT_COLUMNS, BOOL_COLUMNS = _columns_of(Ints), _columns_of(Floats), _columns_of(Bools)
PLAIN_COLUMNS = (*INT_COLUMNS, *FLOAT_COLUMNS, *BOOL_COLUMNS, "status", "prompt_digest", "request_id")
WORD_COLUMNS = _columns_of(Categories)


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
    status = np.where(doubted | empty, STATUS_CODE["failed"], table.status)
    return replace(table, status=status, cause=Categories(names, codes))


def concatenate(tables: Sequence[RecordTable]) -> RecordTable:
    """The rows of several tables one after the other (repeats of an arm).

    ``shard`` is renumbered over the joined ``shards``, so chunk rows are found as before.
    """
    joined: dict[str, Any] = {"shards": tuple(shard for table in tables for shard in table.shards)}
    joined["torn"] = sum(table.torn for table in tables)
    for field in fields(RecordTable):
        parts = [getattr(table, field.name) for table in tables]
        if field.name in WORD_COLUMNS:
            joined[field.name] = join_words(parts)
        elif field.name not in joined:
            joined[field.name] = np.concatenate(parts)
    before = np.cumsum([0, *(len(table.shards) for table in tables[:-1])])
    joined["shard"] = np.concatenate([table.shard + first for table, first in zip(tables, before, strict=True)])
    return RecordTable(**joined)


def join_words(parts: Sequence[Categories]) -> Categories:
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    places = [np.array([names.index(name) for name in part.names], np.int64) for part in parts]
    return Categories(names, np.concatenate([place[part.codes] for place, part in zip(places, parts, strict=True)]))


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
