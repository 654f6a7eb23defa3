"""evalscope's request logs (https://github.com/modelscope/evalscope): JSONL.

``timestamp`` (seconds or ISO-8601), ``body`` (an OpenAI-style request), and, if known, ``request_id`` and
``completion_tokens``. ``headers`` may hold keys and are never read.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import split_request
from kvload.workloads.traces.timestamps import TICKS_PER_S, TickParser
from kvload.workloads.traces.trace import TraceRequest


def _matches(head: Head) -> bool:
    return "timestamp" in head.first and isinstance(head.first.get("body"), dict)


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    parser = TickParser()
    zero: int | None = None
    for number, row in enumerate(cursor.objects()):
        time = cursor.needed(row, "timestamp")
        ticks = parser.ticks(time) if isinstance(time, str) else None
        if ticks is None:
            ticks = round(cursor.seconds(time, "timestamp") * TICKS_PER_S)
        zero = ticks if zero is None else zero
        output = row.get("completion_tokens")
        yield TraceRequest(
            id=str(row.get("request_id") or number),
            arrival=(ticks - zero) / TICKS_PER_S,
            output_length=None if output is None else cursor.tokens(output, "completion_tokens"),
            **split_request(cursor, cursor.mapping(cursor.needed(row, "body"), "body")),
        )


FORMAT = Format(
    name="evalscope",
    title="evalscope request log (JSONL)",
    assumes="numbers are seconds; date-times without a zone are UTC; headers are not read",
    matches=_matches,
    read=_read,
)
