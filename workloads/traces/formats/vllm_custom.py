"""The custom dataset of ``vllm bench serve``: JSONL with ``prompt`` and, if wanted, ``output_tokens``."""

from collections.abc import Iterator

from kvload.workloads.traces.names import OUTPUT_LENGTHS
from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import REQUEST_FIELDS, split_request, tell_times
from kvload.workloads.traces.trace import TraceRequest

_KNOWN = REQUEST_FIELDS | set(OUTPUT_LENGTHS)


def _matches(head: Head) -> int:
    return head.explained(_KNOWN) if head.knows("prompt") and not head.knows("messages") else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        tell_times(cursor, row)
        yield TraceRequest(id=str(number), **split_request(cursor, row))


FORMAT = Format(
    name="vllm-custom",
    title="vLLM custom dataset (JSONL)",
    assumes="no times; the prompt is sent as text, without a chat template",
    matches=_matches,
    read=_read,
)
