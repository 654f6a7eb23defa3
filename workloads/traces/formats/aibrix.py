"""AIBrix workload files (https://github.com/vllm-project/aibrix): JSONL, the requests of one moment a line.

``{"timestamp": ms, "requests": [{"prompt": ..., "prompt_length": ..., "output_length": ..., "session_id": ...}]}``;
older files spell the lengths ``Prompt Length`` and ``Output Length``.
"""

from collections.abc import Iterator
from typing import Any

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import named_rest, sampling_of
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

_INPUT = ("prompt_length", "Prompt Length")
_OUTPUT = ("output_length", "Output Length")
_KNOWN = {*_INPUT, *_OUTPUT, "prompt", "session_id", "model"}


def _matches(head: Head) -> int:
    is_one = "timestamp" in head.first and isinstance(head.first.get("requests"), list)
    return head.explained(("timestamp", "requests")) if is_one else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    turns = TurnCounter()
    number = 0
    for row in cursor.objects():
        arrival = cursor.time(cursor.needed(row, "timestamp"), "timestamp", unit="ms", is_open=True)
        for position, value in enumerate(cursor.array(cursor.needed(row, "requests"), "requests")):
            fields = cursor.mapping(value, f"requests[{position}]")
            session, turn = turns.count(cursor, fields.get("session_id"))
            yield _request(cursor, fields, str(number), arrival, session, turn)
            number += 1


def _request(
    cursor: Cursor, fields: dict[str, Any], name: str, arrival: float, session: str | None, turn: int | None
) -> TraceRequest:
    prompt = fields.get("prompt") or None
    input_length = _length(cursor, fields, _INPUT)
    if prompt is None and input_length is None:
        raise cursor.error("a request has neither 'prompt' nor a prompt length")
    return TraceRequest(
        id=name,
        arrival=arrival,
        prompt=None if prompt is None else cursor.text(prompt, "prompt"),
        input_length=input_length,
        output_length=_length(cursor, fields, _OUTPUT),
        session=session,
        turn=turn,
        model=None if fields.get("model") is None else cursor.text(fields["model"], "model"),
        sampling=sampling_of(cursor, fields),
        extra=named_rest(cursor, fields, _KNOWN),
    )


def _length(cursor: Cursor, fields: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        if fields.get(name) is not None:
            return cursor.tokens(fields[name], name)
    return None


FORMAT = Format(
    name="aibrix",
    title="AIBrix workload (JSONL)",
    assumes="timestamps are in milliseconds unless they show otherwise; all requests of a line arrive at once",
    matches=_matches,
    read=_read,
)
