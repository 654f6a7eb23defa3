"""evalscope's request logs (https://github.com/modelscope/evalscope): JSONL.

``timestamp`` (seconds or ISO-8601), ``body`` (an OpenAI-style request), and, if known, ``request_id`` and
``completion_tokens``. ``headers`` may hold keys and are never read.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import split_request
from kvload.workloads.traces.trace import TraceRequest

_KNOWN = ("timestamp", "body", "headers", "request_id", "completion_tokens")


def _matches(head: Head) -> int:
    is_one = "timestamp" in head.first and isinstance(head.first.get("body"), dict)
    # a log of requests knows these names too, but not which of them a row must have
    return head.explained(_KNOWN) + 1 if is_one else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        output = row.get("completion_tokens")
        fields = split_request(cursor, cursor.mapping(cursor.needed(row, "body"), "body"))
        if output is not None:
            fields["output_length"] = cursor.tokens(output, "completion_tokens")
        yield TraceRequest(
            id=str(row.get("request_id") or number),
            arrival=cursor.time(cursor.needed(row, "timestamp"), "timestamp", unit="s", is_open=True),
            **fields,
        )


FORMAT = Format(
    name="evalscope",
    title="evalscope request log (JSONL)",
    assumes="numbers are seconds unless they show otherwise; date-times without a zone are UTC; headers are not read",
    matches=_matches,
    read=_read,
)
