"""AIPerf's custom datasets (https://github.com/ai-dynamo/aiperf): JSONL.

A single turn a line: ``text`` or ``texts``, ``timestamp`` (ms), ``delay`` (ms), ``session_id``, ``output_length``; or a
whole conversation: ``session_id`` and ``turns``, a list of such objects (or plain texts), each with its own ``delay``.
"""

from collections.abc import Iterator
from typing import Any

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import extra_body, named_rest, sampling_of
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

_CONTENT = ("text", "texts", "turns")
_KNOWN = {
    *_CONTENT,
    "timestamp",
    "delay",
    "session_id",
    "output_length",
    "role",
    "type",
    "max_tokens",
    "model",
    "extra",
}
_FIRST = {*_CONTENT, "timestamp", "delay", "session_id", "role", "type"}
"""Fields of a conversation that are not those of each of its turns."""


def _matches(head: Head) -> int:
    return head.explained(_KNOWN) if head.knows(*_CONTENT) else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    counter = TurnCounter()
    for number, row in enumerate(cursor.objects()):
        if "turns" not in row:
            session, turn = counter.count(cursor, row.get("session_id"))
            yield _request(cursor, row, str(number), session, turn)
            continue
        turns = cursor.array(row["turns"], "turns")
        if not turns:
            raise cursor.error("field 'turns' is empty")
        name = row.get("session_id", f"line {number}")
        shared = {key: value for key, value in row.items() if key not in _FIRST}
        for position, value in enumerate(turns):
            fields = {"text": value} if isinstance(value, str) else cursor.mapping(value, f"turns[{position}]")
            fields = {**shared, **fields}
            if position == 0 and "timestamp" in row:
                fields = {"timestamp": row["timestamp"], **fields}
            session, turn = counter.count(cursor, name)
            yield _request(cursor, fields, f"{number}/{position}", session, turn)


def _request(cursor: Cursor, row: dict[str, Any], name: str, session: str | None, turn: int | None) -> TraceRequest:
    arrival, delay, output = row.get("timestamp"), row.get("delay"), row.get("output_length")
    limit = row.get("max_tokens")
    sampling = sampling_of(cursor, row)
    if row.get("extra") is not None:
        sampling |= extra_body(cursor, row["extra"], "extra")
    return TraceRequest(
        id=name,
        arrival=None if arrival is None else cursor.time(arrival, "timestamp", unit="ms", is_open=True),
        messages=[{"role": row.get("role") or "user", "content": _text(cursor, row)}],
        output_length=None if output is None else cursor.tokens(output, "output_length"),
        max_tokens=None if limit is None else cursor.tokens(limit, "max_tokens"),
        session=session,
        turn=turn,
        think_time=cursor.pause(delay, "delay", unit="ms") if turn and delay is not None else None,
        model=None if row.get("model") is None else cursor.text(row["model"], "model"),
        sampling=sampling,
        extra=named_rest(cursor, row, _KNOWN),
    )


def _text(cursor: Cursor, row: dict[str, Any]) -> str:
    if row.get("text") is not None:
        return cursor.text(row["text"], "text")
    parts: list[str] = []
    for value in cursor.array(cursor.needed(row, "texts"), "texts"):
        if isinstance(value, dict):
            contents = cursor.array(cursor.needed(value, "contents"), "texts.contents")
            parts += [cursor.text(content, "texts.contents") for content in contents]
        else:
            parts.append(cursor.text(value, "texts"))
    return "\n".join(parts)


FORMAT = Format(
    name="aiperf",
    title="AIPerf single-turn and multi-turn dataset (JSONL)",
    assumes="timestamps and delays are in milliseconds unless they show otherwise; texts of one turn are joined by "
    "line ends; images and audio are not sent",
    matches=_matches,
    read=_read,
)
