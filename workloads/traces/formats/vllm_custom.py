"""The custom dataset of ``vllm bench serve``: JSONL with ``prompt`` and, if wanted, ``output_tokens``."""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import split_request
from kvload.workloads.traces.trace import TraceRequest

_OTHERS = ("id", "arrival", "timestamp", "messages", "hash_ids", "body", "text", "texts", "turns", "chat_id")


def _matches(head: Head) -> bool:
    return "prompt" in head.first and not head.is_array and not any(name in head.first for name in _OTHERS)


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        fields = split_request(cursor, row)
        output = fields["extra"].pop("output_tokens", None)
        yield TraceRequest(
            id=str(number), output_length=None if output is None else cursor.tokens(output, "output_tokens"), **fields
        )


FORMAT = Format(
    name="vllm-custom",
    title="vLLM custom dataset (JSONL)",
    assumes="no times; the prompt is sent as text, without a chat template",
    matches=_matches,
    read=_read,
)
