"""OpenAI-style requests, a line each, as SGLang and others log them; also batch files (``custom_id`` and ``body``)."""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import REQUEST_FIELDS, split_request
from kvload.workloads.traces.trace import TraceRequest

_BATCH = ("custom_id", "body", "method", "url")


def _matches(head: Head) -> int:
    if "custom_id" in head.first and "body" in head.first:
        return head.explained(_BATCH)
    return head.explained(REQUEST_FIELDS) if head.knows("messages") else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        if "custom_id" in row:
            name = cursor.text(row["custom_id"], "custom_id")
            yield TraceRequest(id=name, **split_request(cursor, cursor.mapping(cursor.needed(row, "body"), "body")))
        else:
            yield TraceRequest(id=str(number), **split_request(cursor, row))


FORMAT = Format(
    name="openai",
    title="OpenAI requests or batch file (JSONL)",
    assumes="no times",
    matches=_matches,
    read=_read,
)
