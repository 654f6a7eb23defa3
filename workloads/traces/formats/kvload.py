"""kvload's own JSONL: see :mod:`kvload.workloads.traces.trace`."""

from collections.abc import Iterator
from typing import Any

import msgspec

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import SAMPLING_FIELDS
from kvload.workloads.traces.trace import TraceRequest

_FIELDS = frozenset(TraceRequest.__struct_fields__)
_CONTENT = ("messages", "prompt", "prompt_token_ids")
_LENGTHS = ("input_length", "output_length", "max_tokens")
_FOREIGN = ("timestamp", "hash_ids", "conversations", "conversation", "custom_id")


def _matches(head: Head) -> bool:
    first = head.first
    if head.is_array or any(name in first for name in _FOREIGN):
        return False
    return "arrival" in first or ("id" in first and any(name in first for name in (*_CONTENT, "input_length")))


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        yield _request(cursor, row, number)


def _request(cursor: Cursor, row: dict[str, Any], number: int) -> TraceRequest:
    fields = {key: value for key, value in row.items() if key in _FIELDS and value is not None}
    fields.setdefault("id", str(number))
    for name in ("sampling", "extra"):
        fields[name] = dict(cursor.mapping(fields.get(name, {}), name))
    for key, value in row.items():
        if key in SAMPLING_FIELDS:
            fields["sampling"][key] = value
        elif key not in _FIELDS:
            fields["extra"][key] = value
    for name in _LENGTHS:
        if name in fields:
            fields[name] = cursor.tokens(fields[name], name)
    for name in ("arrival", "think_time"):
        if name in fields:
            fields[name] = cursor.seconds(fields[name], name)
    for name in ("prompt_token_ids", "block_ids"):
        if name in fields:
            cursor.ids(fields[name], name)
    if "messages" in fields:
        cursor.messages(fields["messages"], "messages")
    try:
        request = msgspec.convert(fields, TraceRequest)
    except msgspec.ValidationError as error:
        message, _, place = str(error).rpartition(" - at `$.")
        raise cursor.error(f"field '{place.rstrip('`')}': {message}" if message else str(error)) from error
    _check(cursor, request)
    return request


def _check(cursor: Cursor, request: TraceRequest) -> None:
    given = [name for name in _CONTENT if getattr(request, name) is not None]
    if len(given) > 1:
        raise cursor.error(f"fields '{given[0]}' and '{given[1]}' exclude each other: one of them says what to send")
    if not given and request.input_length is None:
        raise cursor.error(f"nothing says what to send: give one of {', '.join(_CONTENT)}, input_length")
    if request.turn is not None and request.turn < 0:
        raise cursor.wrong("turn", request.turn, "0 or more")
    if request.turn and request.session is None:
        raise cursor.error("field 'session' is missing where 'turn' is given")
    if request.block_ids is not None and (request.block_size is None or request.block_size < 1):
        raise cursor.wrong("block_size", request.block_size, "a number of tokens, as block_ids need")


FORMAT = Format(
    name="kvload",
    title="kvload (JSONL)",
    assumes="times are in seconds",
    matches=_matches,
    read=_read,
)
