"""ShareGPT conversations: one JSON array, or an object a line.

``[{"id": ..., "conversations": [{"from": "human" | "gpt", "value": ...}]}]``, with the variants ``conversation``,
``role`` and ``content`` found in the wild. There are no times: a turn follows the former's answer at once.
"""

from collections.abc import Iterator
from typing import Any

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.request_fields import NOT_SENT, REQUEST_FIELDS
from kvload.workloads.traces.trace import TraceRequest

_LISTS = ("conversations", "conversation")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
    "developer": "developer",
    # datasets of conversations with tools
    "function_call": "assistant",
    "function-call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function-response": "tool",
}


_SYSTEM = ("system", "system_prompt", "system_message")
"""Where the system's prompt stands beside the messages."""

_ASKING = ("user", "tool")
"""Roles that an answer of the assistant follows: a question, or what a tool that it called gave back."""


def _matches(head: Head) -> int:
    is_one = any(isinstance(head.first.get(name), list) for name in _LISTS)
    return head.explained((*_LISTS, "id")) if is_one else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, item in enumerate(cursor.objects()):
        yield from _turns(cursor, item, number)


def _turns(cursor: Cursor, item: dict[str, Any], number: int) -> Iterator[TraceRequest]:
    """A request for every stretch of messages that an answer follows, or that ends the conversation."""
    name = next((name for name in _LISTS if name in item), _LISTS[0])
    session = str(item.get("id", number))
    asked: list[dict[str, Any]] = []
    for key in _SYSTEM:
        if item.get(key):
            asked.append({"role": "system", "content": cursor.text(item[key], key)})
            break
    for key in item.keys() & REQUEST_FIELDS:
        if item[key]:
            cursor.notes.group(NOT_SENT, key)
    turn = 0
    for position, message in enumerate(cursor.array(cursor.needed(item, name), name)):
        role, text = _message(cursor, message, f"{name}[{position}]")
        if role != "assistant":
            asked.append({"role": role, "content": text})
        elif any(each["role"] in _ASKING for each in asked):
            yield _request(session, turn, asked, {"recorded_answer": text})
            asked, turn = [], turn + 1
    if any(each["role"] in _ASKING for each in asked):
        yield _request(session, turn, asked, {})


def _request(session: str, turn: int, asked: list[dict[str, Any]], extra: dict[str, Any]) -> TraceRequest:
    return TraceRequest(id=f"{session}/{turn}", messages=asked, session=session, turn=turn, extra=extra)


def _message(cursor: Cursor, value: object, name: str) -> tuple[str, str]:
    message = cursor.mapping(value, name)
    role = message.get("from", message.get("role"))
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise cursor.wrong(f"{name}.from", role, f"one of {', '.join(_ROLES)}")
    return _ROLES[role.lower()], cursor.text(message.get("value", message.get("content")), f"{name}.value")


FORMAT = Format(
    name="sharegpt",
    title="ShareGPT (JSON array or JSONL)",
    assumes="no times; an answer of the assistant that nothing asked for is left out",
    matches=_matches,
    read=_read,
)
