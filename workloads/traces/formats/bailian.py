"""Qwen-Bailian usage traces (https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon): JSONL.

``timestamp`` is in **seconds** and blocks have 16 tokens, unlike Mooncake's. ``parent_chat_id`` is -1 for the first
request of a session; the session is the root reached through the parents.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

BLOCK_TOKENS = 16


def _matches(head: Head) -> bool:
    return "chat_id" in head.first and "parent_chat_id" in head.first


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    roots: dict[int, int] = {}
    turns = TurnCounter()
    for row in cursor.objects():
        chat, parent = _chat(cursor, row, "chat_id"), _chat(cursor, row, "parent_chat_id")
        root = roots[chat] = chat if parent == -1 else roots.get(parent, parent)
        session, turn = turns.count(cursor, root, "chat_id")
        yield TraceRequest(
            id=str(chat),
            arrival=cursor.seconds(cursor.needed(row, "timestamp"), "timestamp"),
            input_length=cursor.tokens(cursor.needed(row, "input_length"), "input_length"),
            output_length=cursor.tokens(cursor.needed(row, "output_length"), "output_length"),
            block_ids=cursor.ids(cursor.needed(row, "hash_ids"), "hash_ids"),
            block_size=BLOCK_TOKENS,
            session=session,
            turn=turn,
            extra={name: row[name] for name in ("type", "turn", "parent_chat_id") if name in row},
        )


def _chat(cursor: Cursor, row: dict[str, object], name: str) -> int:
    value = cursor.needed(row, name)
    if type(value) is not int:
        raise cursor.wrong(name, value, "a whole number")
    return value


FORMAT = Format(
    name="bailian",
    title="Qwen-Bailian usage trace (JSONL)",
    assumes=f"timestamps are in seconds; blocks have {BLOCK_TOKENS} tokens; a request follows the one before it in its "
    "session",
    matches=_matches,
    read=_read,
)
