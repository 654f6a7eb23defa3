"""AIPerf's custom datasets (https://github.com/ai-dynamo/aiperf): JSONL.

A single turn a line: ``text`` or ``texts``, ``timestamp`` (ms), ``delay`` (ms), ``session_id``, ``output_length``; or a
whole conversation: ``session_id`` and ``turns``, a list of such objects (or plain texts), each with its own ``delay``.
"""

from collections.abc import Iterator
from typing import Any

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

_MS = 1e-3
_KNOWN = {"text", "texts", "timestamp", "delay", "session_id", "output_length", "turns", "role", "type", "max_tokens"}


def _matches(head: Head) -> bool:
    return any(name in head.first for name in ("text", "texts", "turns")) and "chat_id" not in head.first


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
        for position, value in enumerate(turns):
            fields = {"text": value} if isinstance(value, str) else cursor.mapping(value, f"turns[{position}]")
            if position == 0 and "timestamp" in row:
                fields = {"timestamp": row["timestamp"], **fields}
            session, turn = counter.count(cursor, name)
            yield _request(cursor, fields, f"{number}/{position}", session, turn)


def _request(cursor: Cursor, row: dict[str, Any], name: str, session: str | None, turn: int | None) -> TraceRequest:
    arrival, delay, output = row.get("timestamp"), row.get("delay"), row.get("output_length")
    limit = row.get("max_tokens")
    return TraceRequest(
        id=name,
        arrival=None if arrival is None else cursor.seconds(arrival, "timestamp", unit_s=_MS),
        messages=[{"role": row.get("role") or "user", "content": _text(cursor, row)}],
        output_length=None if output is None else cursor.tokens(output, "output_length"),
        max_tokens=None if limit is None else cursor.tokens(limit, "max_tokens"),
        session=session,
        turn=turn,
        think_time=cursor.seconds(delay, "delay", unit_s=_MS) if turn and delay is not None else None,
        extra={key: value for key, value in row.items() if key not in _KNOWN},
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
    assumes="timestamps and delays are in milliseconds; texts of one turn are joined by line ends; images and audio "
    "are not sent",
    matches=_matches,
    read=_read,
)
