"""OpenAI-style requests, a line each, as SGLang and others log them; also batch files (``custom_id`` and ``body``).

SGLang's own requests (``text`` or ``input_ids`` with ``sampling_params``) are read as the completions they stand for.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import REQUEST_FIELDS, split_request, tell_times
from kvload.workloads.traces.trace import TraceRequest

_NATIVE = ("text", "input_ids")
_SAMPLING = "sampling_params"
_BATCH = ("custom_id", "body", "method", "url")


def _matches(head: Head) -> int:
    if "custom_id" in head.first and "body" in head.first:
        return head.explained(_BATCH)
    if isinstance(head.first.get(_SAMPLING), dict) and head.knows(*_NATIVE):
        return head.explained({*_NATIVE, _SAMPLING, *REQUEST_FIELDS})
    return head.explained(REQUEST_FIELDS) if head.knows("messages") else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        tell_times(cursor, row)
        if "custom_id" in row:
            name = cursor.text(row["custom_id"], "custom_id")
            yield TraceRequest(id=name, **split_request(cursor, cursor.mapping(cursor.needed(row, "body"), "body")))
        else:
            yield TraceRequest(id=str(number), **split_request(cursor, _translated(cursor, row)))


def _translated(cursor: Cursor, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request of SGLang's own under OpenAI's names."""
    if row.get(_SAMPLING) is None:
        return row
    given = dict(cursor.mapping(row[_SAMPLING], _SAMPLING))
    if "max_new_tokens" in given:
        given["max_tokens"] = given.pop("max_new_tokens")
    rest = {key: value for key, value in row.items() if key not in {*_NATIVE, _SAMPLING}}
    prompt = next((row[name] for name in _NATIVE if row.get(name) is not None), None)
    return {**rest, **given, **({} if prompt is None else {"prompt": prompt})}


FORMAT = Format(
    name="openai",
    title="OpenAI requests or batch file (JSONL)",
    assumes="no times",
    matches=_matches,
    read=_read,
)
