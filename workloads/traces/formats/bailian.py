"""Qwen-Bailian usage traces (https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon): JSONL.

``timestamp`` is in **seconds** and blocks have 16 tokens, unlike Mooncake's. ``parent_chat_id`` is -1 for the first
request of a session; the session is the root reached through the parents.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

BLOCK_TOKENS = 16


_KNOWN = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids", "type", "turn")


def _matches(head: Head) -> int:
    return head.explained(_KNOWN) if "chat_id" in head.first and "parent_chat_id" in head.first else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    roots: dict[int, int] = {}
    turns = TurnCounter()
    for row in cursor.objects():
        chat, parent = _chat(cursor, row, "chat_id"), _chat(cursor, row, "parent_chat_id")
        root = roots[chat] = chat if parent == -1 else roots.get(parent, parent)
        session, turn = turns.count(cursor, root, "chat_id")
        length = cursor.tokens(cursor.needed(row, "input_length"), "input_length")
        blocks, size = cursor.blocks(cursor.needed(row, "hash_ids"), "hash_ids", length=length, size=BLOCK_TOKENS)
        yield TraceRequest(
            id=str(chat),
            arrival=cursor.time(cursor.needed(row, "timestamp"), "timestamp", unit="s"),
            input_length=length,
            output_length=cursor.tokens(cursor.needed(row, "output_length"), "output_length"),
            block_ids=blocks,
            block_size=size,
            session=session,
            turn=turn,
            continues=False,
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
    assumes=f"timestamps are in seconds; blocks have {BLOCK_TOKENS} tokens; a request holds the whole "
    "conversation and follows the one before it in its session",
    matches=_matches,
    read=_read,
)
