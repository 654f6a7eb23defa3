"""The events of an OpenAI-compatible answer: reading them, and telling tokens from chunks.

An event stream has ``data: JSON`` lines with empty lines between, ended by ``data: [DONE]`` (WHATWG HTML, 9.2, for the
lines). Chunks are not tokens: see :func:`count_tokens`.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.workloads.client.http1 import ResponseHead
from kvload.workloads.client.plain_run import find_run

MAX_ERROR_CHARS = 500
_DONE = b"[DONE]"
_SEPARATOR = b"\n\ndata: "
_SEPARATOR_BYTES = len(_SEPARATOR)
_LOOKED_AT_FOR_A_RUN = 3


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


@dataclass(slots=True)
class Reading:
    """The events of one body.

    Attributes:
        events: those decoded one by one.
        run, run_at: the texts of the plain chunks that stand before ``events[run_at]``, see
            :mod:`kvload.workloads.client.plain_run`.
        ends: where the data of each event ends, the run's among them.
        done: the answer says that it is done.
        problem: what was wrong with the first event that did not decode; those before it are there.
    """

    events: list[Event]
    ends: npt.NDArray[np.int64]
    done: bool = False
    problem: str | None = None
    run: list[str] = field(default_factory=list)
    run_at: int = 0


def read_events(body: bytes, head: ResponseHead, complete: bool) -> Reading:
    """Decode the events of a body, whole or as far as it came."""
    if head.content_type == "application/json":
        if not complete:
            return Reading([], np.empty(0, np.int64))
        try:
            return Reading([_EVENT.decode(body)], np.array([len(body)]), done=True)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            return Reading([], np.empty(0, np.int64), done=True, problem=str(problem))
    return _read_with_run(body) or _read(body, 0)


def _read_with_run(body: bytes) -> Reading | None:
    """The cheap way, where there is a long run of plain chunks at or near the start."""
    if not body.startswith(b"data: ") or b"\r" in body or b"\n:" in body:
        return None
    start = 6
    first_events: list[Event] = []
    first_ends: list[int] = []
    for _ in range(_LOOKED_AT_FOR_A_RUN):
        end = body.find(b"\n\n", start)
        if end < 0 or not body.startswith(_SEPARATOR, end):
            return None
        try:
            event = _EVENT.decode(body[start:end])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if is_plain(event):
            break
        first_events.append(event)
        first_ends.append(end)
        start = end + _SEPARATOR_BYTES
    else:
        return None
    run = find_run(body, start, body[start:end])
    if run is None:
        return None
    rest = _read(body, run.end - 6)
    ends = np.concatenate([np.asarray(first_ends, np.int64), run.ends, rest.ends])
    return Reading(first_events + rest.events, ends, rest.done, rest.problem, run.texts, len(first_events))


def decode_event(data: bytes) -> Event | None:
    """One event; None where it is none."""
    try:
        return _EVENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_plain(event: Event) -> bool:
    """Whether there is nothing in a chunk but text."""
    if not event.choices or len(event.choices) != 1 or event.usage or event.metrics or bytes(event.error) != b"null":
        return False
    choice = event.choices[0]
    if choice.token_ids is not None or choice.finish_reason is not None:
        return False
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content) and not (choice.text or delta.reasoning or delta.reasoning_content or delta.tool_calls)


def read_event_stream(body: bytes) -> Reading:
    """Decode the events of an event stream, each by itself."""
    return _read(body, 0)


def _read(body: bytes, start: int) -> Reading:
    datas, ends = _split_events(body[start:])
    done = False
    if datas and datas[-1] == _DONE:
        done = True
        datas.pop()
        ends.pop()
    places = np.asarray(ends, np.int64) + start
    try:
        events = _EVENTS.decode(b"[" + b",".join(datas) + b"]")
        if len(events) == len(datas):
            return Reading(events, places, done)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    events, problem = _read_one_by_one(datas)
    return Reading(events, places[: len(events)], done, problem)


def _read_one_by_one(datas: list[bytes]) -> tuple[list[Event], str | None]:
    """The events before the first that is wrong, and what is wrong with it."""
    events: list[Event] = []
    for data in datas:
        try:
            events.append(_EVENT.decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            return events, f"{problem}: {data[:80]!r}"
    return events, None


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


def count_tokens(reading: Reading) -> tuple[npt.NDArray[np.int64], bool]:
    """Tokens in every event, shape (events,), and whether the server said so itself.

    Taken from token ids where the server sends them, else from usage where it comes with every chunk, else one for
    each chunk with text. In the last case chunks of empty text are ambiguous: half a character waiting for its rest
    (a token), an end-of-sequence token, or a chunk that only names the role or the reason to stop (none). As many of
    them count as the final usage has tokens over those seen, those before the end first.
    """
    single, known = _count_single(reading.events, len(reading.run))
    at, run = reading.run_at, len(reading.run)
    counts = np.ones(len(single) + run, np.int64)
    counts[:at] = single[:at]
    counts[at + run :] = single[at:]
    return counts, known


def _count_single(events: list[Event], others: int) -> tuple[list[int], bool]:
    """:func:`count_tokens` of single events, beside ``others`` with one token each."""
    choices = [event.choices[0] if event.choices else None for event in events]
    if any(choice is not None and choice.token_ids is not None for choice in choices):
        return [len(choice.token_ids or ()) if choice is not None else 0 for choice in choices], True
    counts = [int(choice is not None and _has_text(choice)) for choice in choices]
    totals = [event.usage.completion_tokens if event.usage is not None else None for event in events]
    first = counts.index(1) if 1 in counts else None
    if not others and first is not None and first < len(events) - 1 and totals[first] is not None:
        running = 0
        for number, total in enumerate(totals):
            if choices[number] is not None and total is not None:
                counts[number], running = max(0, total - running), max(total, running)
        return counts, True
    total = next((found for found in reversed(totals) if found is not None), None)
    missing = 0 if total is None else total - sum(counts) - others
    if missing > 0 and len(events) + others == 1:
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
