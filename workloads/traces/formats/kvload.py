"""kvload's own JSONL: see :mod:`kvload.workloads.traces.trace`."""

import difflib
from collections.abc import Iterator
from typing import Any

import msgspec

from kvload.workloads.traces.names import INPUT_LENGTHS, OUTPUT_LENGTHS, SESSIONS, TIMES
from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import REQUEST_FIELDS, SAMPLING_FIELDS, extra_body, sampling_of
from kvload.workloads.traces.trace import TraceRequest

_FIELDS = frozenset(TraceRequest.__struct_fields__)
_CONTENT = ("messages", "prompt", "prompt_token_ids")
_SENT = SAMPLING_FIELDS | {"extra_body", "n", "best_of"}
_LENGTHS = ("input_length", "output_length", "max_tokens")
_MEANT = {
    "sampling_params": "sampling",
    "parameters": "sampling",
    **dict.fromkeys(TIMES, "arrival"),
    **dict.fromkeys(INPUT_LENGTHS, "input_length"),
    **dict.fromkeys(OUTPUT_LENGTHS, "output_length"),
    **dict.fromkeys(SESSIONS, "session"),
}
"""Other formats' names for fields of this one."""

_ALIKE = 0.8
"""Likeness from which on an unknown key is taken for a misspelt one."""


def _matches(head: Head) -> int:
    is_named = head.knows("id") and head.knows(*_CONTENT, "input_length") and not head.knows(*TIMES)
    return head.explained(_FIELDS | REQUEST_FIELDS) if head.knows("arrival") or is_named else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        yield _request(cursor, row, number)


def _request(cursor: Cursor, row: dict[str, Any], number: int) -> TraceRequest:
    fields = {key: value for key, value in row.items() if key in _FIELDS and value is not None}
    fields.setdefault("id", str(number))
    fields["extra"] = dict(cursor.mapping(fields.get("extra", {}), "extra"))
    fields["sampling"] = extra_body(cursor, fields.get("sampling", {}), "sampling") | sampling_of(cursor, row)
    for key, value in row.items():
        if key not in _FIELDS and key not in _SENT:
            fields["extra"][key] = value
            _tell_misspelt(cursor, key)
    for name in _LENGTHS:
        if name in fields:
            fields[name] = cursor.tokens(fields[name], name)
    if "arrival" in fields:
        fields["arrival"] = cursor.time(fields["arrival"], "arrival", unit="s")
    if "think_time" in fields:
        fields["think_time"] = cursor.pause(fields["think_time"], "think_time", unit="s")
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


def _tell_misspelt(cursor: Cursor, key: str) -> None:
    known = _FIELDS | SAMPLING_FIELDS
    plain = {name.replace("_", ""): name for name in known}
    meant = _MEANT.get(key) or plain.get(key.replace("_", "").replace("-", "").lower())
    if meant is None:
        close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=_ALIKE)
        meant = close[0] if close else None
    if meant is not None:
        cursor.notes.rows(f"'{key}' is no field of a kvload trace and is ignored; is '{meant}' meant?")


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
