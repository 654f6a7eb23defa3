"""The items of one JSON array, one at a time: ShareGPT's files are one array of hundreds of megabytes."""

import re
from collections.abc import Iterator

from kvload.workloads.traces import reader
from kvload.workloads.traces.containers import BOM

_STRUCTURE = re.compile(rb'["\\{}\[\]]')
_STRING_END = re.compile(rb'["\\]')


def array_items(cursor: reader.Cursor) -> Iterator[bytes]:
    """The objects of the array that the file holds, as JSON text; memory stays that of the longest one.

    The cursor's ``line`` counts items here, from 1. What stands between items (commas, white space) is checked; what
    stands inside them is left to the JSON decoder.

    Raises:
        TraceError: the file is no array of objects, ends too early, or an item is too long.
    """
    buffer = b""
    position = 0  # where scanning goes on in the buffer
    kept = 0  # what stands before has been dealt with
    depth = 0  # brackets open inside the array
    in_string = opened = closed = False
    for chunk in cursor.chunks():
        buffer, position, kept = buffer[kept:] + chunk, position - kept, 0
        while found := (_STRING_END if in_string else _STRUCTURE).search(buffer, position):
            at, symbol = found.start(), found.group()
            if symbol == b"\\":
                if not in_string:
                    raise cursor.error("a backslash outside a string")
                if at + 1 == len(buffer):  # what is escaped comes with the next chunk
                    position = at
                    break
                position = at + 2
                continue
            position = at + 1
            if depth:
                if symbol == b'"':
                    in_string = not in_string
                elif symbol in b"{[":
                    depth += 1
                else:
                    depth -= 1
                if depth == 0:
                    yield buffer[kept:position]
                    kept = position
                continue
            between = buffer[kept:at].strip()
            if not opened:
                if symbol != b"[" or between.removeprefix(BOM):
                    raise cursor.error("the file is not a JSON array")
                opened, kept = True, position
            elif symbol == b"{" and not closed:
                if between != (b"," if cursor.line else b""):
                    raise cursor.error("items are not separated by one comma")
                depth, kept, cursor.line = 1, at, cursor.line + 1
            elif symbol == b"]" and not closed and not between:
                closed, kept = True, position
            else:
                raise cursor.error("the array holds something else than objects, or its brackets do not match")
        else:
            position = len(buffer)
        if len(buffer) - kept > reader.MAX_LINE_BYTES:
            raise cursor.error(f"an item is longer than {reader.MAX_LINE_BYTES >> 20} MiB")
    if not opened:
        raise cursor.error("the file is not a JSON array")
    if not closed:
        raise cursor.error("the array is not closed: the file is cut short")
    if buffer[kept:].strip():
        raise cursor.error("something follows the array")
