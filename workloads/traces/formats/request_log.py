"""Logs of requests that were answered, as gateways and clients keep them: JSONL.

LiteLLM's spend logs (``startTime``, ``prompt_tokens``, ``completion_tokens``, ``messages`` if they were kept), and
OpenAI-style pairs of request and answer (``created``, ``usage``). A row whose prompt was kept is sent as it was; of one
without it the logged lengths are made up.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from kvload.workloads.traces.names import INPUT_LENGTHS, OUTPUT_LENGTHS, TIMES
from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import REQUEST_FIELDS, split_request
from kvload.workloads.traces.trace import TraceRequest

_TIMES = TIMES
_USAGE = "usage"
_BODIES = ("request", "request_body", "body", "proxy_server_request")
_IDS = ("request_id", "id", "requestId")
_ANSWER = (
    "response", "choices", "object", "endTime", "end_time", "status", "call_type", "total_tokens", "spend", "cost",
    "latency", "completionStartTime", "completion_start_time", "duration", "cache_hit", "cache_key", "api_base",
    "system_fingerprint", "response_time", "custom_llm_provider", "error",
)  # fmt: skip
_WRITTEN = {*_BODIES, _USAGE, "messages", "response"}
_READ = (*TIMES, *INPUT_LENGTHS, *OUTPUT_LENGTHS, _USAGE, *_BODIES, *_IDS, *_ANSWER)


def _matches(head: Head) -> int:
    is_timed = head.knows(*_TIMES)
    is_answered = isinstance(head.first.get(_USAGE), dict) or head.knows(*_ANSWER, "completion_tokens", "prompt_tokens")
    is_asked = head.knows("messages", "prompt", _USAGE, "prompt_tokens", *_BODIES)
    return head.explained({*_READ, *REQUEST_FIELDS}) if is_timed and is_answered and is_asked else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        time = next((name for name in _TIMES if row.get(name) is not None), None)
        if time is None:
            raise cursor.error(f"no time is given: one of {', '.join(_TIMES)}")
        name = next((row[name] for name in _IDS if row.get(name) is not None), number)
        if row.get("status") == "failure" or row.get("error"):
            cursor.notes.rows("the log says that the request failed")
        yield TraceRequest(
            id=str(name),
            arrival=cursor.time(row[time], time, unit="s", is_open=True),
            **_content(cursor, row),
        )


def _content(cursor: Cursor, row: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: _decoded(value) if name in _WRITTEN else value for name, value in row.items()}
    answer = row.get("response")
    inner = answer.get(_USAGE) if isinstance(answer, dict) else None
    usage = next((each for each in (row.get(_USAGE), inner) if isinstance(each, dict)), row)
    body = next((row[name] for name in _BODIES if isinstance(row.get(name), dict) and row[name]), None)
    request = {**row, **body} if body is not None else dict(row)
    for name in ("messages", "prompt"):
        if not request.get(name):
            request.pop(name, None)
    lengths = {
        "input_length": _length(cursor, usage, INPUT_LENGTHS),
        "output_length": _length(cursor, usage, OUTPUT_LENGTHS),
    }
    found: dict[str, Any]
    if "messages" in request or "prompt" in request:
        found = split_request(cursor, request, *_READ)
    else:
        if lengths["input_length"] is None:
            raise cursor.error("the row has neither the prompt nor its length")
        model = request.get("model")
        found = {} if model is None else {"model": cursor.text(model, "model")}
        found["extra"] = {}
    if row.get("status") == "failure" or row.get("error"):
        found["extra"]["failed"] = True
    return found | {name: length for name, length in lengths.items() if length is not None}


def _decoded(value: object) -> object:
    """JSON that a database's dump wrote as a text; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _length(cursor: Cursor, usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        if usage.get(name) is not None:
            return cursor.tokens(usage[name], name)
    return None


FORMAT = Format(
    name="request-log",
    title="Log of answered requests: LiteLLM, OpenAI pairs (JSONL)",
    assumes="numbers are seconds unless they show otherwise; date-times without a zone are UTC; prompts that were not "
    "kept are made up from their lengths",
    matches=_matches,
    read=_read,
)
