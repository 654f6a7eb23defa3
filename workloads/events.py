"""The events of an OpenAI-compatible answer: reading them, and telling tokens from chunks.

An event stream has ``data: JSON`` lines with empty lines between, ended by ``data: [DONE]`` (WHATWG HTML, 9.2, for the
lines). Chunks are not tokens: see :func:`count_tokens`.
"""

from typing import Any

import msgspec
import numpy as np

from kvload.workloads.wire import ResponseHead

MAX_ERROR_CHARS = 500
_DONE = b"[DONE]"
_SEPARATOR = b"\n\ndata: "
_SEPARATOR_BYTES = len(_SEPARATOR)


class Delta(msgspec.Struct):
    """What a chat chunk adds; ``message`` of a whole answer has the same form."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    """One answer of a chunk; only the first is looked at."""

    text: str | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Usage(msgspec.Struct):
    """The server's own count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Event(msgspec.Struct):
    """One chunk, as far as it matters here; ``error`` is kept as it came."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")
    metrics: dict[str, Any] | None = None


_EVENT = msgspec.json.Decoder(Event)
_EVENTS = msgspec.json.Decoder(list[Event])


def read_events(body: bytes, head: ResponseHead, complete: bool) -> tuple[list[Event], list[int], bool, str | None]:
    """Decode the events of a body.

    Returns:
        the events, where each one's data ends in the body, whether the answer says that it is done, and what was
        wrong with the first event that did not decode (the events before it are returned).
    """
    if head.content_type == "application/json":
        if not complete:
            return [], [], False, None
        try:
            return [_EVENT.decode(body)], [len(body)], True, None
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            return [], [], True, str(problem)
    datas, ends = _split_events(body)
    done = False
    if datas and datas[-1] == _DONE:
        done = True
        datas.pop()
        ends.pop()
    try:
        events = _EVENTS.decode(b"[" + b",".join(datas) + b"]")
        if len(events) == len(datas):
            return events, ends, done, None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    return _read_one_by_one(datas, ends, done)


def _read_one_by_one(
    datas: list[bytes], ends: list[int], done: bool
) -> tuple[list[Event], list[int], bool, str | None]:
    """Find the first event that is wrong, and keep those before it."""
    events: list[Event] = []
    for data in datas:
        try:
            events.append(_EVENT.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            return events, ends[: len(events)], done, f"{problem}: {data[:80]!r}"
    return events, ends, done, None


def _split_events(body: bytes) -> tuple[list[bytes], list[int]]:
    """The data of every whole event, and where it ends in the body."""
    if body.startswith(b"data: ") and body.endswith(b"\n\n") and b"\r" not in body and b"\n:" not in body:
        datas = body[6:-2].split(_SEPARATOR)
        if not any(b"\n" in data for data in datas):
            lengths = np.fromiter(map(len, datas), np.int64, len(datas))
            ends = np.cumsum(lengths + _SEPARATOR_BYTES) + (6 - _SEPARATOR_BYTES)
            return datas, ends.tolist()
    return _split_any_events(body)


def _split_any_events(body: bytes) -> tuple[list[bytes], list[int]]:
    """:func:`_split_events` for all line ends, comments, other fields, and a last event that came only in part."""
    datas: list[bytes] = []
    ends: list[int] = []
    parts: list[bytes] = []
    part_end = 0
    position = 0
    for line_with_end in body.splitlines(keepends=True):
        line = line_with_end.rstrip(b"\r\n")
        if not line:
            if parts:
                datas.append(b"\n".join(parts))
                ends.append(part_end)
                parts = []
        elif line.startswith(b"data:") and len(line) < len(line_with_end):
            parts.append(line[5:].removeprefix(b" "))
            part_end = position + len(line)
        position += len(line_with_end)
    if parts == [_DONE]:
        datas.append(_DONE)
        ends.append(part_end)
    return datas, ends


def count_tokens(events: list[Event]) -> tuple[list[int], bool]:
    """Tokens in every event, and whether the server said so itself.

    Taken from token ids where the server sends them, else from usage where it comes with every chunk, else one for
    each chunk with text. In the last case chunks of empty text are ambiguous: half a character waiting for its rest
    (a token), an end-of-sequence token, or a chunk that only names the role or the reason to stop (none). As many of
    them count as the final usage has tokens over those seen, those before the end first.
    """
    choices = [event.choices[0] if event.choices else None for event in events]
    if any(choice is not None and choice.token_ids is not None for choice in choices):
        return [len(choice.token_ids or ()) if choice is not None else 0 for choice in choices], True
    counts = [int(choice is not None and _has_text(choice)) for choice in choices]
    totals = [event.usage.completion_tokens if event.usage is not None else None for event in events]
    first = counts.index(1) if 1 in counts else None
    if first is not None and first < len(events) - 1 and totals[first] is not None:
        running = 0
        for number, total in enumerate(totals):
            if choices[number] is not None and total is not None:
                counts[number], running = max(0, total - running), max(total, running)
        return counts, True
    total = next((found for found in reversed(totals) if found is not None), None)
    missing = 0 if total is None else total - sum(counts)
    if missing > 0 and len(events) == 1:
        return [counts[0] + missing], False
    silent = [number for number, choice in enumerate(choices) if choice is not None and not counts[number]]
    silent = [number for number in silent if not _names_a_role(choices[number])]
    silent.sort(key=lambda number: getattr(choices[number], "finish_reason", None) is not None)
    for number in silent[: max(missing, 0)]:
        counts[number] = 1
    return counts, False


def _has_text(choice: Choice) -> bool:
    if choice.text:
        return True
    delta = choice.delta or choice.message
    if delta is None:
        return False
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


def _names_a_role(choice: Choice | None) -> bool:
    """The opening chunk of a chat, with nothing in it but the role."""
    return choice is not None and choice.delta is not None and choice.delta.role is not None


def server_times(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Queueing, prefill and decode time in seconds, from the ``metrics`` of the usage chunk."""

    def seconds(name: str) -> float | None:
        value = metrics.get(name)
        return value / 1e3 if isinstance(value, int | float) and value >= 0 else None

    queue, prefill, decode = seconds("queue_time_ms"), seconds("prefill_time_ms"), seconds("decode_time_ms")
    first = seconds("time_to_first_token_ms")
    if prefill is None and first is not None and queue is not None:
        prefill = max(0.0, first - queue)
    return {"queue_s": queue, "prefill_s": prefill, "decode_s": decode}


def error_text(body: bytes) -> str:
    """The message of an error body, as OpenAI-compatible servers write it, or the start of whatever came."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return body[:MAX_ERROR_CHARS].decode("utf-8", "replace")
    for _ in range(2):
        if isinstance(value, dict):
            value = value.get("error") or value.get("message") or value.get("detail") or value
    return (value if isinstance(value, str) else str(value))[:MAX_ERROR_CHARS]
