"""One reader per public trace format; a module here that defines ``FORMAT`` is one more format.

A trace is read as a stream: memory does not grow with the file, unless it has to be sorted. The format is told from the
content, never from the file's name.
"""

import functools
import importlib
import itertools
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from kvload.errors import TraceError, UsageError
from kvload.workloads.traces.json_array import array_items
from kvload.workloads.traces.reader import Cursor, Format, Head, open_trace
from kvload.workloads.traces.trace import TraceRequest, shifted


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
        TraceError: the file is empty or unreadable, or looks like none of the formats.
    """
    formats = table()
    if name is not None:
        if name not in formats:
            raise UsageError(f"no such trace format: '{name}'", where="--format", hint=f"known: {', '.join(formats)}")
        return formats[name]
    head = _read_head(path)
    matching = [each for each in formats.values() if each.matches(head)]
    if len(matching) == 1:
        return matching[0]
    seen = ", ".join(head.columns or head.first) or "nothing"
    problem = "several trace formats fit" if matching else "no trace format that kvload knows"
    known = ", ".join(each.name for each in matching) if matching else ", ".join(formats)
    raise TraceError(
        f"{problem}; its first row has: {seen[:200]}", where=str(path), hint=f"name one by --format: {known}"
    )


def detect_format(path: Path) -> str:
    """The name of the format that the file's content tells; raises as :func:`find_format`."""
    return find_format(path).name


def read_trace(
    path: Path,
    format: str | None = None,  # noqa: A002
    *,
    limit: int | None = None,
    sort: bool = False,
) -> Iterator[TraceRequest]:
    """The requests of a trace, in the order of their arrival, as a stream.

    Args:
        path: the file; gzip is unpacked on the way.
        format: a format's name; told from the content where None.
        limit: stop after so many requests.
        sort: allow arrivals out of order and sort them; the whole trace is then held in memory.

    Yields:
        requests whose ``arrival`` counts in seconds from the earliest one, rounded to 100 ns; None where the trace has
        no times, or for a later turn that follows its former.

    Raises:
        UsageError: there is no such format.
        TraceError: the file is empty, or a row is malformed or earlier than the one before it; names file, line, field.
    """
    requests = _read_sorted(path, format) if sort else _read_ordered(path, format)
    yield from itertools.islice(requests, limit)


def _read_head(path: Path) -> Head:
    with open_trace(path) as file:
        cursor = Cursor(path, file)
        start = cursor.peek()
        if start.startswith(b"["):
            for item in array_items(cursor):
                return Head(first=cursor.decoded(item), is_array=True)
        elif start.startswith(b"{"):
            for row in cursor.objects():
                return Head(first=row)
        else:
            for header in cursor.rows():
                return Head(columns=tuple(name.strip() for name in header))
    raise TraceError("the trace is empty", where=str(path))


def _read_ordered(path: Path, name: str | None) -> Iterator[TraceRequest]:
    reader = find_format(path, name)
    zero: float | None = None
    last = 0.0
    empty = True
    with open_trace(path) as file:
        cursor = Cursor(path, file)
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


def _read_sorted(path: Path, name: str | None) -> Iterator[TraceRequest]:
    reader = find_format(path, name)
    with open_trace(path) as file:
        requests = list(reader.read(Cursor(path, file)))
    if not requests:
        raise TraceError("the trace is empty", where=str(path))
    # A turn without a time of its own stays behind the turn it follows.
    keys: list[float] = []
    for request in requests:
        before = keys[-1] if keys else 0.0
        keys.append(before if request.arrival is None else request.arrival)
    zero = min((request.arrival for request in requests if request.arrival is not None), default=0.0)
    for index in sorted(range(len(requests)), key=keys.__getitem__):
        request = requests[index]
        yield request if request.arrival is None else shifted(request, zero)
