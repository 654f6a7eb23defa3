"""The Azure LLM inference traces of 2023, 2024 and (multi-modal) 2025.

https://github.com/Azure/AzurePublicDataset: CSV with ``TIMESTAMP,ContextTokens,GeneratedTokens``. The 2023 files have
CRLF ends, no final newline, and naive date-times with seven digits; those of 2024 add ``+00:00`` and leave the fraction
out where it is 0, and have up to 16.8 million rows; those of 2025 add ``NumImages`` and come as csv.gz.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import NOT_SENT
from kvload.workloads.traces.survey import TICKS_PER_S
from kvload.workloads.traces.timestamps import TickParser
from kvload.workloads.traces.trace import TraceRequest

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_IMAGES = "NumImages"


def _matches(head: Head) -> int:
    return head.explained((*_COLUMNS, _IMAGES)) if set(_COLUMNS) <= set(head.columns) else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    rows = cursor.rows()
    header = next(rows, [])
    time, context, generated = cursor.columns(header, _COLUMNS)
    images = header.index(_IMAGES) if _IMAGES in header else None
    parser = TickParser()
    zero: int | None = None
    for number, row in enumerate(rows):
        ticks = parser.ticks(row[time])
        if ticks is None:
            raise cursor.wrong("TIMESTAMP", row[time], "a date-time")
        zero = ticks if zero is None else zero
        pictures = 0 if images is None else cursor.tokens(row[images], _IMAGES)
        if pictures:
            cursor.notes.group(NOT_SENT, "images of a request")
        yield TraceRequest(
            id=str(number),
            arrival=(ticks - zero) / TICKS_PER_S,
            input_length=cursor.tokens(row[context], "ContextTokens"),
            output_length=cursor.tokens(row[generated], "GeneratedTokens"),
            extra={} if images is None else {"images": pictures},
        )


FORMAT = Format(
    name="azure",
    title="Azure LLM inference trace 2023, 2024, 2025 (CSV, csv.gz)",
    assumes="date-times without a zone are UTC; images are counted but not sent",
    matches=_matches,
    read=_read,
)
