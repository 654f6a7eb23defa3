"""Mooncake's traces (FAST '25, https://github.com/kvcache-ai/Mooncake), and the extensions other tools gave them.

A line has ``timestamp`` (ms), ``input_length``, ``output_length`` and ``hash_ids``: one id for each block of 512 tokens
of the prompt, standing for the block and everything before it. In the wild ``text_input``, ``messages`` (with
``tools``) or ``payload`` (a whole request) may stand in place of ``input_length``, ``session_id`` and ``delay`` (ms)
may make turns of the lines, and ``timestamp`` may be a float or missing.
"""

from collections.abc import Iterator
from typing import Any

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import split_request
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

BLOCK_TOKENS = 512
_MS = 1e-3
_CONTENT = ("input_length", "text_input", "messages", "payload")
_OTHERS = ("chat_id", "id", "arrival", "text", "texts", "turns", "body")
_KNOWN = {
    "timestamp",
    "input_length",
    "output_length",
    "hash_ids",
    "text_input",
    "messages",
    "payload",
    "tools",
    "delay",
}
_KNOWN |= {"session_id"}


def _matches(head: Head) -> bool:
    first = head.first
    if head.is_array or any(name in first for name in _OTHERS) or not any(name in first for name in _CONTENT):
        return False
    return "messages" not in first or any(name in first for name in ("timestamp", "hash_ids", "delay", "session_id"))


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    turns = TurnCounter()
    for number, row in enumerate(cursor.objects()):
        arrival, delay = row.get("timestamp"), row.get("delay")
        session, turn = turns.count(cursor, row.get("session_id"))
        think_time = None if delay is None else cursor.seconds(delay, "delay", unit_s=_MS)
        yield TraceRequest(
            id=str(number),
            arrival=None if arrival is None else cursor.seconds(arrival, "timestamp", unit_s=_MS),
            session=session,
            turn=turn,
            think_time=think_time if turn else None,
            **_content(cursor, row),
        )


def _content(cursor: Cursor, row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"extra": {key: value for key, value in row.items() if key not in _KNOWN}}
    if row.get("output_length") is not None:
        found["output_length"] = cursor.tokens(row["output_length"], "output_length")
    if row.get("payload") is not None:
        payload = cursor.mapping(row["payload"], "payload")
        fields = split_request(cursor, payload)
        fields["extra"] |= found.pop("extra")
        return found | fields
    if row.get("messages") is not None:
        found["messages"] = cursor.messages(row["messages"], "messages")
        if row.get("tools") is not None:
            found["sampling"] = {"tools": cursor.array(row["tools"], "tools")}
    elif row.get("text_input") is not None:
        found["prompt"] = cursor.text(row["text_input"], "text_input")
    else:
        found["input_length"] = cursor.tokens(cursor.needed(row, "input_length"), "input_length")
        if row.get("hash_ids"):
            found["block_ids"] = _blocks(cursor, row["hash_ids"], found["input_length"])
            found["block_size"] = BLOCK_TOKENS
    return found


def _blocks(cursor: Cursor, value: object, input_length: int) -> list[int]:
    ids = cursor.ids(value, "hash_ids")
    wanted = -(-input_length // BLOCK_TOKENS)
    if len(ids) != wanted:
        raise cursor.error(
            f"field 'hash_ids' has {len(ids)} blocks where input_length {input_length} makes {wanted} of "
            f"{BLOCK_TOKENS} tokens"
        )
    return ids


FORMAT = Format(
    name="mooncake",
    title="Mooncake (JSONL)",
    assumes=f"timestamps and delays are in milliseconds; blocks have {BLOCK_TOKENS} tokens",
    matches=_matches,
    read=_read,
)
