"""From the bytes of one answer and their arrival times to what was answered and when, after the stream has ended.

The event stream is that of OpenAI-compatible servers: ``data: JSON`` lines with empty lines between, ended by
``data: [DONE]`` (WHATWG HTML, 9.2, for the lines). Chunks are not tokens: see :func:`_count_tokens`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.records import Status
from kvload.rundir import CHUNK_DTYPE
from kvload.workloads.clock import TIMESPEC
from kvload.workloads.wire import ResponseHead, dechunk

MAX_ERROR_CHARS = 500
_DONE = b"[DONE]"
_SEPARATOR = b"\n\ndata: "
_SEPARATOR_BYTES = len(_SEPARATOR)


@dataclass(slots=True)
class RawStream:
    """One request as the streaming client leaves it: bytes, stamps and how it ended.

    Attributes:
        key: whatever the caller gave with the request.
        pieces: what each read gave.
        stamps: the kernel's receive stamp of each piece (raw ``struct timespec``), None where there was none.
        seen_ns: when user space learnt of each piece (monotonic).
        tie_offset_ns: ``CLOCK_REALTIME`` minus ``CLOCK_MONOTONIC`` while it ran, None if wall time was stepped then.
        t_send_ns: just before its first byte was handed to the kernel; None if that never happened.
        complete: the answer ended as its framing says.
        cause, error: why it ended otherwise.
        retries: times it was sent again after a stale connection.
    """

    key: Any
    t_start_ns: int
    pieces: list[bytes] = field(default_factory=list)
    stamps: list[bytes | None] = field(default_factory=list)
    seen_ns: list[int] = field(default_factory=list)
    tie_offset_ns: int | None = None
    t_send_ns: int | None = None
    t_end_ns: int = 0
    head: ResponseHead | None = None
    body_start: int = 0
    complete: bool = False
    status: Status = "ok"
    cause: str | None = None
    error: str | None = None
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome; times are monotonic nanoseconds, fields as in :class:`kvload.records.RequestRecord`.

    Attributes:
        chunks: ``CHUNK_DTYPE`` rows, one for each token-carrying chunk.
    """

    status: Status
    cause: str | None
    error: str | None
    http_status: int | None
    clock: Literal["kernel", "user"]
    t_send_ns: int | None
    t_end_ns: int
    t_headers_ns: int | None = None
    t_first_ns: int | None = None
    t_last_ns: int | None = None
    chunks: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, CHUNK_DTYPE))
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_source: Literal["usage", "token_ids", "chunks"] | None = None
    first_chunk_tokens: int | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    retries: int = 0
    merged_reads: int = 0


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")
    metrics: dict[str, Any] | None = None


_EVENT = msgspec.json.Decoder(_Event)
_EVENTS = msgspec.json.Decoder(list[_Event])


def parse_answer(raw: RawStream) -> Answer:
    """Take one answer apart. Never raises for anything a server may send: what is wrong becomes status and cause."""
    arrivals, clock = _arrivals(raw)
    wire = b"".join(raw.pieces)
    status, cause, error = raw.status, raw.cause, raw.error
    base: dict[str, Any] = {
        "http_status": raw.head.status if raw.head else None,
        "clock": clock,
        "t_send_ns": raw.t_send_ns,
        "t_end_ns": int(arrivals[-1]) if raw.complete and len(arrivals) else raw.t_end_ns,
        "t_headers_ns": int(arrivals[0]) if len(arrivals) else None,
        "retries": raw.retries,
    }
    if raw.head is None:
        return Answer(status=status, cause=cause, error=error, **base)
    body, contents_ends, broken = _body(raw, raw.head, wire)
    if raw.head.status != 200:
        if status == "ok":
            status = "refused" if 400 <= raw.head.status < 500 else "failed"
            cause, error = f"http_{raw.head.status}", _error_text(body)
        return Answer(status=status, cause=cause, error=error, **base)
    piece_ends = np.cumsum([len(piece) for piece in raw.pieces])
    events, ends, done, problem_text = _events(body, raw.head, raw.complete)
    rows = np.searchsorted(piece_ends, _wire_positions(np.asarray(ends, np.int64), contents_ends, raw.body_start))
    times = arrivals[np.minimum(rows, len(arrivals) - 1)] if len(ends) else np.empty(0, np.int64)
    content = _content(events, times, raw.t_send_ns or raw.t_start_ns)
    failed = _failure(events, content, done=done, problem=broken or problem_text, complete=raw.complete)
    if status == "ok" and failed is not None:
        status, cause, error = "failed", failed[0], failed[1]
    if cause == "timeout" and content["t_last_ns"] is not None:
        # tokens had come, then nothing for more than half of all the time it had
        quiet_ns = raw.t_end_ns - content["t_last_ns"]
        cause = "stall" if quiet_ns > (raw.t_end_ns - (raw.t_send_ns or raw.t_start_ns)) / 2 else "timeout"
    merged = int(len(rows) - len(np.unique(rows)))
    return Answer(status=status, cause=cause, error=error, merged_reads=merged, **base, **content)


def _arrivals(raw: RawStream) -> tuple[npt.NDArray[np.int64], Literal["kernel", "user"]]:
    """Arrival of each piece in monotonic nanoseconds, and whose clock it is."""
    seen = np.asarray(raw.seen_ns, np.int64)
    if not len(seen) or raw.tie_offset_ns is None:
        return seen, "user"
    stamps = raw.stamps
    if None in stamps:
        return seen, "user"
    joined = b"".join(stamps)  # type: ignore[arg-type]
    if len(joined) != TIMESPEC.size * len(seen):
        return seen, "user"
    fields = np.frombuffer(joined, np.int64).reshape(-1, 2)
    kernel = fields[:, 0] * 1_000_000_000 + fields[:, 1] - raw.tie_offset_ns
    return kernel, "kernel"


def _body(raw: RawStream, head: ResponseHead, wire: bytes) -> tuple[bytes, npt.NDArray[np.int64] | None, str | None]:
    """The body's bytes, and what is wrong with its framing.

    For chunked transfer also two rows: where each chunk's content ends in the body, and where in the wire.
    """
    if head.framing != "chunked":
        return wire[raw.body_start :], None, None
    contents, ends, broken = dechunk(wire, raw.body_start)
    places = np.empty((2, len(ends)), np.int64)
    places[0] = np.cumsum([len(content) for content in contents])
    places[1] = ends
    return b"".join(contents), places, broken


def _wire_positions(
    ends: npt.NDArray[np.int64], contents_ends: npt.NDArray[np.int64] | None, body_start: int
) -> npt.NDArray[np.int64]:
    """For offsets just behind a byte of the body, the number of wire bytes before and without that byte."""
    if contents_ends is None:
        return ends + body_start - 1
    if contents_ends.shape[1] == 0:
        return ends
    which = np.searchsorted(contents_ends[0], ends)
    which = np.minimum(which, contents_ends.shape[1] - 1)
    positions: npt.NDArray[np.int64] = contents_ends[1][which] - (contents_ends[0][which] - ends) - 1
    return positions


def _events(body: bytes, head: ResponseHead, complete: bool) -> tuple[list[_Event], list[int], bool, str | None]:
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
        return _EVENTS.decode(b"[" + b",".join(datas) + b"]"), ends, done, None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        events: list[_Event] = []
        for data in datas:
            try:
                events.append(_EVENT.decode(data))
            except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
                return events, ends[: len(events)], done, f"{problem}: {data[:80]!r}"
        # each decodes alone but not together: something in one of them closed the list early
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


def _content(events: list[_Event], times: npt.NDArray[np.int64], t_send_ns: int) -> dict[str, Any]:
    """Tokens, text and the server's own figures, from the events and their arrival times."""
    tokens, known = _count_tokens(events)
    texts: list[str] = []
    token_ids: list[int] = []
    finish_reason: str | None = None
    usage: _Usage | None = None
    metrics: dict[str, Any] = {}
    for event in events:
        if event.usage is not None:
            usage = event.usage
        if event.metrics:
            metrics = event.metrics
        if not event.choices:
            continue
        choice = event.choices[0]
        if choice.finish_reason is not None:
            finish_reason = choice.finish_reason
        if choice.token_ids:
            token_ids += choice.token_ids
        if choice.text is not None:
            texts.append(choice.text)
        else:
            delta = choice.delta or choice.message
            if delta is not None and delta.content:
                texts.append(delta.content)
    counts = np.asarray(tokens, np.int64)
    carrying = np.flatnonzero(counts)
    chunks = np.empty(len(carrying), CHUNK_DTYPE)
    at = times[carrying]
    chunks["us"] = np.clip((at - t_send_ns + 500) // 1000, 0, 0xFFFFFFFF)
    chunks["tokens"] = np.minimum(counts[carrying], 0xFFFF)
    total = usage.completion_tokens if usage else None
    source: str | None = "usage"
    if total is None:
        total = int(counts.sum())
        source = ("token_ids" if known else "chunks") if events else None
        total = total if events else None
    return {
        "t_first_ns": int(at[0]) if len(at) else None,
        "t_last_ns": int(at[-1]) if len(at) else None,
        "chunks": chunks,
        "first_chunk_tokens": int(counts[carrying[0]]) if len(carrying) else None,
        "text": "".join(texts) if events else None,
        "token_ids": token_ids or None,
        "finish_reason": finish_reason,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "output_tokens": total,
        "output_tokens_source": source,
        **_server_times(metrics),
    }


def _count_tokens(events: list[_Event]) -> tuple[list[int], bool]:
    """Tokens in every event, and whether the server said so itself.

    Taken from token ids where the server sends them, else from usage where it comes with every chunk, else one for
    each chunk with text. In the last case chunks of empty text are ambiguous: half a character waiting for its rest
    (a token), an end-of-sequence token, or a chunk that only names the role or the reason to stop (none). As many of
    them count as the final usage has tokens over those seen, those before the end first.
    """
    counts = [0] * len(events)
    by_ids = False
    running = 0
    by_usage = False
    for number, event in enumerate(events):
        if not event.choices:
            continue
        choice = event.choices[0]
        if choice.token_ids is not None:
            by_ids = True
            counts[number] = len(choice.token_ids)
        elif _has_text(choice):
            counts[number] = 1
        if event.usage is not None and event.usage.completion_tokens is not None:
            by_usage = True
            if not by_ids:
                counts[number] = max(0, event.usage.completion_tokens - running)
            running = event.usage.completion_tokens
    if by_ids or (by_usage and len(events) > 1):
        return counts, True
    total = next((event.usage.completion_tokens for event in reversed(events) if event.usage), None)
    missing = 0 if total is None else total - sum(counts)
    if missing > 0:
        if len(events) == 1:
            counts[0] += missing
            return counts, False
        empty = [number for number, event in enumerate(events) if event.choices and not counts[number]]
        silent = [number for number in empty if not _names_a_role(events[number])]
        silent.sort(key=lambda number: events[number].choices[0].finish_reason is not None)  # type: ignore[index]
        for number in silent[:missing]:
            counts[number] = 1
    return counts, False


def _has_text(choice: _Choice) -> bool:
    if choice.text:
        return True
    delta = choice.delta or choice.message
    if delta is None:
        return False
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


def _names_a_role(event: _Event) -> bool:
    """The opening chunk of a chat, with nothing in it but the role."""
    choice = event.choices[0] if event.choices else None
    return choice is not None and choice.delta is not None and choice.delta.role is not None


def _server_times(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Queueing, prefill and decode time in seconds, from the ``metrics`` of the usage chunk."""

    def seconds(name: str) -> float | None:
        value = metrics.get(name)
        return value / 1e3 if isinstance(value, int | float) and value >= 0 else None

    queue, prefill, decode = seconds("queue_time_ms"), seconds("prefill_time_ms"), seconds("decode_time_ms")
    first = seconds("time_to_first_token_ms")
    if prefill is None and first is not None and queue is not None:
        prefill = max(0.0, first - queue)
    return {"queue_s": queue, "prefill_s": prefill, "decode_s": decode}


def _failure(
    events: list[_Event], content: dict[str, Any], *, done: bool, problem: str | None, complete: bool
) -> tuple[str, str] | None:
    """What is wrong with a stream whose transport did not fail: cause and message; None if nothing is."""
    for event in events:
        if bytes(event.error) != b"null":
            return "stream_error", _error_text(b'{"error":' + bytes(event.error) + b"}")
    if problem is not None:
        return "malformed", problem
    if not complete:
        return "truncated", "the answer broke off"
    if done or content["finish_reason"] is not None:
        if content["finish_reason"] is None and not content["output_tokens"]:
            return "empty", "the answer has no tokens and no reason to stop"
        return None
    return "truncated", "the answer ended without [DONE] and without a reason to stop"


def _error_text(body: bytes) -> str:
    """The message of an error body, as OpenAI-compatible servers write it, or the start of whatever came."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return body[:MAX_ERROR_CHARS].decode("utf-8", "replace")
    for _ in range(2):
        if isinstance(value, dict):
            value = value.get("error") or value.get("message") or value.get("detail") or value
    return (value if isinstance(value, str) else str(value))[:MAX_ERROR_CHARS]
