"""Mooncake's traces (FAST '25, https://github.com/kvcache-ai/Mooncake), and the extensions other tools gave them.

A line has ``timestamp`` (ms), ``input_length``, ``output_length`` and ``hash_ids``: one id for each block of 512 tokens
of the prompt, standing for the block and everything before it. In the wild ``text_input``, ``messages`` (with
``tools``) or ``payload`` (a whole request) may stand in place of ``input_length``, ``session_id`` and ``delay`` (ms)
may make turns of the lines, ``message_mode`` and ``extra`` (fields of the request) come from AIPerf, blocks may have 16
tokens (ServeGen, vLLM's timed traces), and ``timestamp`` may be a float, in seconds, or missing.
"""

from collections.abc import Iterator
from typing import Any

from kvload.workloads.traces.names import SESSIONS, TIMES
from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import REQUEST_FIELDS, extra_body, named_rest, sampling_of, split_request
from kvload.workloads.traces.trace import TraceRequest
from kvload.workloads.traces.turns import TurnCounter

BLOCK_TOKENS = 512
_ONLY_HERE = ("input_length", "text_input", "payload")
_BESIDE_MESSAGES = ("timestamp", "hash_ids", "delay", "session_id")
_KNOWN = {
    *_ONLY_HERE,
    *_BESIDE_MESSAGES,
    *SESSIONS,
    "output_length",
    "messages",
    "message_mode",
    "extra",
    "model",
    "max_tokens",
}


def _matches(head: Head) -> int:
    if head.knows(*_ONLY_HERE) or (head.knows("messages") and head.knows(*_BESIDE_MESSAGES)):
        return head.explained(_KNOWN | REQUEST_FIELDS)
    return 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    turns = TurnCounter()
    for number, row in enumerate(cursor.objects()):
        arrival, delay = row.get("timestamp"), row.get("delay")
        if arrival is None:
            _refuse_other_times(cursor, row)
        named = next((name for name in SESSIONS if row.get(name) is not None), SESSIONS[0])
        session, turn = turns.count(cursor, row.get(named), named)
        think_time = None if delay is None else cursor.pause(delay, "delay", unit="ms")
        yield TraceRequest(
            id=str(number),
            arrival=None if arrival is None else cursor.time(arrival, "timestamp", unit="ms", is_open=True),
            session=session,
            turn=turn,
            think_time=think_time if turn else None,
            **_content(cursor, row),
        )


def _refuse_other_times(cursor: Cursor, row: dict[str, Any]) -> None:
    """Complain about a time under a name that says nothing of its unit; without it all requests would come at once."""
    for name, value in row.items():
        plain = name.lower()
        is_time = name in TIMES or plain.startswith(("timestamp", "arrival", "arrived"))
        if is_time and name != "timestamp" and value is not None:
            raise cursor.error(
                f"the time stands in '{name}', where this format has 'timestamp'",
                hint="call it 'timestamp' and say its unit: --time-unit s or --time-unit ms",
            )


def _content(cursor: Cursor, row: dict[str, Any]) -> dict[str, Any]:
    if row.get("payload") is not None:
        found = split_request(cursor, cursor.mapping(row["payload"], "payload"))
        found["extra"] |= {key: value for key, value in row.items() if key not in _KNOWN}
    else:
        found = {"sampling": sampling_of(cursor, row), "extra": named_rest(cursor, row, _KNOWN)}
        found |= _prompt(cursor, row)
    for name in ("output_length", "max_tokens"):
        if row.get(name) is not None:
            found[name] = cursor.tokens(row[name], name)
    if row.get("model") is not None:
        found["model"] = cursor.text(row["model"], "model")
    if row.get("extra") is not None:
        found["sampling"] |= extra_body(cursor, row["extra"], "extra")
    return found


def _prompt(cursor: Cursor, row: dict[str, Any]) -> dict[str, Any]:
    if row.get("messages") is not None:
        mode = row.get("message_mode")
        if mode not in {None, "history", "delta"}:
            raise cursor.wrong("message_mode", mode, "history or delta")
        continues = None if mode is None else mode == "delta"
        return {"messages": cursor.messages(row["messages"], "messages"), "continues": continues}
    if row.get("text_input") is not None:
        return {"prompt": cursor.text(row["text_input"], "text_input")}
    length = cursor.tokens(cursor.needed(row, "input_length"), "input_length")
    if not row.get("hash_ids"):
        return {"input_length": length}
    ids, size = cursor.blocks(row["hash_ids"], "hash_ids", length=length, size=BLOCK_TOKENS)
    return {"input_length": length, "block_ids": ids, "block_size": size}


FORMAT = Format(
    name="mooncake",
    title="Mooncake (JSONL)",
    assumes=f"timestamps and delays are in milliseconds, and blocks have {BLOCK_TOKENS} tokens, unless the rows show "
    "otherwise",
    matches=_matches,
    read=_read,
)
