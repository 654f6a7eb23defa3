"""One reader per public trace format; a module here that defines ``FORMAT`` is one more format.

A trace is read as a stream: memory does not grow with the file, unless it has to be sorted or gives its rows names. The
format is told from the content, never from the file's name: it is the one that knows most fields of the first row.
"""

import difflib
import functools
import importlib
import itertools
import math
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from kvload.errors import TraceError, UsageError
from kvload.workloads.traces.containers import open_trace
from kvload.workloads.traces.conversations import Conversations
from kvload.workloads.traces.ids import UniqueIds
from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.reader import Cursor, Format, Head, Reading
from kvload.workloads.traces.survey import SURVEYED_ROWS, Survey, parse_unit
from kvload.workloads.traces.survey import block_tokens as surveyed_block_tokens
from kvload.workloads.traces.survey import time_unit as surveyed_time_unit
from kvload.workloads.traces.trace import TraceRequest, shifted

_SILENT_ROWS = 256
"""A format that has asked about neither times nor blocks so far is not looked at any longer."""


@functools.cache
def table() -> Mapping[str, Format]:
    """All formats by name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    formats = [module.FORMAT for module in modules]
    return MappingProxyType({each.name: each for each in sorted(formats, key=lambda each: each.name)})


def find_format(path: Path, name: str | None = None) -> Format:
    """The format of that name, or where None the one the file's content tells.

    Raises:
        UsageError: there is no format of that name.
        TraceError: the file is empty or unreadable, or looks like none of the formats, or like several alike.
    """
    formats = table()
    if name is not None:
        if name not in formats:
            close = difflib.get_close_matches(name, formats, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            told = f"{hint}known: {', '.join(formats)}"
            raise UsageError(f"no such trace format: '{name}'", where="--format", hint=told)
        return formats[name]
    head = _read_head(path)
    matching = _matching(head)
    if len(matching) == 1:
        return formats[matching[0]]
    seen = ", ".join(head.columns or head.first) or "nothing"
    problem = "several trace formats fit" if matching else "no trace format that kvload knows"
    raise TraceError(
        f"{problem}; its first row has: {seen[:200]}",
        where=str(path),
        hint=f"name one by --format: {', '.join(matching or formats)}",
    )


def _matching(head: Head) -> list[str]:
    """The formats that know most of a file's first row; none where nobody knows anything of it."""
    known = {each.name: each.matches(head) for each in table().values()}
    most = max(known.values())
    return [name for name, count in known.items() if count == most and count]


def _hint_at_another(error: TraceError, path: Path, asked: str) -> None:
    """Where the first row of a trace cannot be read in the format that was named, tell the one it looks like."""
    try:
        others = _matching(_read_head(path))
    except TraceError:
        return
    if len(others) == 1 and others[0] != asked:
        error.hint = f"the content looks like {others[0]}: leave --format {asked} out"


def detect_format(path: Path) -> str:
    """The name of the format that the file's content tells; raises as :func:`find_format`."""
    return find_format(path).name


def read_trace(
    path: Path,
    format: str | None = None,  # noqa: A002
    *,
    limit: int | None = None,
    sort: bool = False,
    time_unit: str | None = None,
    block_tokens: int | None = None,
    notes: Notes | None = None,
) -> Iterator[TraceRequest]:
    """The requests of a trace, in the order of their arrival, as a stream.

    Args:
        path: the file; gzip, bzip2, xz and zstd are unpacked on the way.
        format: a format's name; told from the content where None.
        limit: stop after so many requests.
        sort: allow arrivals out of order and sort them; the whole trace is then held in memory.
        time_unit: the unit of times that are plain numbers (``s``, ``ms``, ``us``, ``ns``); where None the format's
            own, or the one that the first rows show.
        block_tokens: tokens in a block of ``block_ids``; where None the format's own, or what the lengths show.
        notes: takes down what was decided on the way; complete when the last request was read.

    Yields:
        requests with ids of their own, whose ``arrival`` counts in seconds from the earliest one, rounded to 100 ns;
        None where the trace has no times, or for a later turn that follows its former.

    Raises:
        UsageError: there is no such format or unit.
        TraceError: the file is empty, its units are unclear, or a row is malformed or earlier than the one before it;
            names file, line, field.
    """
    reader = find_format(path, format)
    if block_tokens is not None and block_tokens < 1:
        raise UsageError(f"{block_tokens} is not a number of tokens", where="--block-tokens")
    reading = Reading(time_unit and parse_unit(time_unit), block_tokens, notes or Notes())
    _settle_units(path, reader, reading)
    requests = _read_sorted(path, reader, reading) if sort else _read_ordered(path, reader, reading)
    ids, conversations = UniqueIds(reading.notes), Conversations(reading.notes)
    begun = False
    try:
        for request in itertools.islice(requests, limit):
            begun = True
            yield conversations.settled(ids.unique(request))
    except TraceError as error:
        if format is not None and not begun:
            _hint_at_another(error, path, reader.name)
        raise


def _read_head(path: Path) -> Head:
    with open_trace(path) as file:
        cursor = Cursor(path, file)
        if cursor.peek()[:1] in {b"[", b"{"}:
            for row in cursor.objects():
                return Head(first=row)
        else:
            for header in cursor.rows():
                return Head(columns=tuple(name.strip() for name in header))
    raise TraceError("the trace is empty", where=str(path))


def _settle_units(path: Path, reader: Format, reading: Reading) -> None:
    """Look at the first rows' raw times and blocks, and settle what the user has not."""
    if reading.time_unit is not None and reading.block_tokens is not None:
        return
    survey = Survey()
    with open_trace(path) as file:
        cursor = Cursor(path, file, Reading(survey=survey))
        try:
            for number, _ in enumerate(itertools.islice(reader.read(cursor), SURVEYED_ROWS)):
                if number >= _SILENT_ROWS and not survey.times and not survey.blocks:
                    break
        except TraceError:
            pass  # told when the row is read in earnest
    if reading.time_unit is None:
        unit, told = surveyed_time_unit(survey, path)
        reading.time_unit = unit if survey.times else None
        if told:
            reading.notes.say(told)
    if reading.block_tokens is None:
        reading.block_tokens, told = surveyed_block_tokens(survey)
        if told:
            reading.notes.say(told)


def _read_ordered(path: Path, reader: Format, reading: Reading) -> Iterator[TraceRequest]:
    zero: float | None = None
    last = 0.0
    empty = True
    with open_trace(path) as file:
        cursor = Cursor(path, file, reading)
        for request in reader.read(cursor):
            empty = False
            arrival = request.arrival
            if arrival is not None:
                if zero is None:
                    zero = last = arrival
                if arrival < last:
                    raise cursor.error(
                        f"the arrival runs backwards: {arrival - zero:.6f} s after {last - zero:.6f} s",
                        hint="allow it with --sort",
                    )
                last = arrival
                request = shifted(request, zero)  # noqa: PLW2901
            yield request
    if empty:
        raise TraceError("the trace is empty", where=str(path))


def _read_sorted(path: Path, reader: Format, reading: Reading) -> Iterator[TraceRequest]:
    with open_trace(path) as file:
        requests = list(reader.read(Cursor(path, file, reading)))
    if not requests:
        raise TraceError("the trace is empty", where=str(path))
    # A turn without a time of its own stays behind the turn it follows.
    keys: list[float] = []
    for request in requests:
        before = keys[-1] if keys else -math.inf
        keys.append(before if request.arrival is None else request.arrival)
    zero = min((request.arrival for request in requests if request.arrival is not None), default=0.0)
    for index in sorted(range(len(requests)), key=keys.__getitem__):
        request = requests[index]
        yield request if request.arrival is None else shifted(request, zero)
