"""The event stream around the chunks of an answer (WHATWG HTML, 9.2), and a whole answer in its place.

An event stream has ``data: JSON`` lines with empty lines between, ended by ``data: [DONE]``. The first ``[DONE]`` ends
it, whatever follows; an event that makes no sense is noted and the reading goes on.
"""

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.workloads.client.events import MAX_ERROR_CHARS, NO_ERROR, Event, decode, decode_all
from kvload.workloads.client.http1 import ResponseHead

_DONE = b"[DONE]"
_SEPARATOR = b"\n\ndata: "
_SEPARATOR_BYTES = len(_SEPARATOR)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ERROR_EVENTS = frozenset({b"error", b"exception", b"failure"})
_LINE_STARTS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")
_QUOTED_CHARS = 80
_LOOKED_AT_FOR_ASIDES = 4


@dataclass(slots=True)
class Reading:
    """The events of one body.

    Attributes:
        events: those decoded one by one; one that made no sense is an empty :class:`Event`.
        aside: the start of the last event that is no chunk, if one of the last few is none.
        run, run_at, run_index: the texts of the plain chunks that stand before ``events[run_at]``, and the index of
            their choices, see :mod:`kvload.workloads.client.fast`.
        ends: where the data of each event ends, the run's among them.
        done: the answer says that it is done.
        failure: what the server says went wrong, in its own words.
        problem: what was wrong with the first event that made no sense.
    """

    events: list[Event]
    ends: npt.NDArray[np.int64]
    done: bool = False
    failure: str | None = None
    problem: str | None = None
    aside: str | None = None
    run: list[str] = field(default_factory=list)
    run_at: int = 0
    run_index: int | None = None

    @property
    def answers(self) -> int:
        """How many answers it has, by the indices of the choices that carry something; mostly 1."""
        found = {
            choice.index or 0 for event in self.events if event.choices for choice in event.choices if choice.carries
        }
        return len(found | {self.run_index or 0} if self.run else found)


def read_events(body: bytes, head: ResponseHead, complete: bool) -> Reading:
    """Decode the events of a body, whole or as far as it came."""
    start = body[:512].removeprefix(_BYTE_ORDER_MARK).lstrip()
    if start.startswith(_LINE_STARTS):
        return read_event_stream(body, complete)
    if start.startswith(b"{") or head.content_type == "application/json":
        return _read_whole(body, complete)
    if complete and start:
        shown = start[:_QUOTED_CHARS].decode("utf-8", "replace")
        return Reading([], np.empty(0, np.int64), problem=f"no event stream: {shown!r}")
    return Reading([], np.empty(0, np.int64))


def _read_whole(body: bytes, complete: bool) -> Reading:
    """An answer that is not streamed: one event, which came when its last byte did."""
    if not complete:
        return Reading([], np.empty(0, np.int64))
    try:
        event = decode(body)
    except ValueError as problem:
        return Reading([], np.empty(0, np.int64), done=True, problem=str(problem))
    return Reading([event], np.array([len(body)]), done=True, failure=event.failure(body))


def read_event_stream(body: bytes, complete: bool = True) -> Reading:
    """Decode the events of an event stream."""
    datas, ends = _split_events(body, complete)
    done = False
    if datas and datas[-1] == _DONE:
        done = True
        del datas[-1], ends[-1]
    if any(data[-1:] != b"}" for data in datas):
        # an empty "data:" keeps the connection alive
        kept = [(data, end) for data, end in zip(datas, ends, strict=True) if data.strip()]
        for number, (data, _) in enumerate(kept):
            if data.strip() == _DONE:
                done = True
                del kept[number:]
                break
        datas, ends = [data for data, _ in kept], [end for _, end in kept]
    places = np.asarray(ends, np.int64)
    events = decode_all(datas)
    problem = None
    if events is None:
        events, problem = _one_by_one(datas)
    failures = (event.failure(data) for event, data in zip(events, datas, strict=True))
    return Reading(events, places, done, next(filter(None, failures), None), problem, _aside(events, datas))


def _aside(events: list[Event], datas: list[bytes]) -> str | None:
    """What the server says in one of the last events that is no chunk."""
    last = list(zip(events, datas, strict=True))[-_LOOKED_AT_FOR_ASIDES:]
    found = (data for event, data in reversed(last) if event.choices is None and event.usage is None)
    data = next((data for data in found if len(data) > len(b"{}")), None)
    return None if data is None else data[:_QUOTED_CHARS].decode("utf-8", "replace")


def _one_by_one(datas: list[bytes]) -> tuple[list[Event], str | None]:
    """Every event, and what is wrong with the first that makes no sense."""
    events: list[Event] = []
    first_problem: str | None = None
    for data in datas:
        try:
            events.append(decode(data))
        except ValueError as problem:
            events.append(Event())
            first_problem = first_problem or str(problem)
    return events, first_problem


def _split_events(body: bytes, complete: bool) -> tuple[list[bytes], list[int]]:
    """The data of every event, and where it ends in the body."""
    if body.startswith(b"data: ") and body.endswith(b"\n\n") and b"\r" not in body and b"\n:" not in body:
        datas = body[6:-2].split(_SEPARATOR)
        if not any(b"\n" in data for data in datas):
            lengths = np.fromiter(map(len, datas), np.int64, len(datas))
            ends = np.cumsum(lengths + _SEPARATOR_BYTES) + (6 - _SEPARATOR_BYTES)
            return datas, ends.tolist()
    return _split_any_events(body, complete)


def _split_any_events(body: bytes, complete: bool) -> tuple[list[bytes], list[int]]:
    """:func:`_split_events` for all line ends, comments, other fields, and a last event without an empty line.

    Errors that a server writes as a field of the stream's own (``event: error``, or llama.cpp's ``error: JSON``) become
    an event with an ``error``, as they are elsewhere.
    """
    datas: list[bytes] = []
    ends: list[int] = []
    parts: list[bytes] = []
    part_end = 0
    is_error = False
    position = len(_BYTE_ORDER_MARK) if body.startswith(_BYTE_ORDER_MARK) else 0

    def event_over() -> None:
        nonlocal parts, is_error
        if parts or is_error:
            data = b"\n".join(parts)
            datas.append(_as_error(data) if is_error else data)
            ends.append(part_end)
        parts, is_error = [], False

    for line_with_end in body[position:].splitlines(keepends=True):
        line = line_with_end.rstrip(b"\r\n")
        whole = len(line) < len(line_with_end)
        if not line:
            event_over()
        elif not whole and not complete:
            break
        elif line.startswith(b"data:"):
            parts.append(line[5:].removeprefix(b" "))
            part_end = position + len(line)
        elif line.startswith(b"event:"):
            is_error = is_error or line[6:].strip().lower() in _ERROR_EVENTS
            part_end = part_end if parts else position + len(line)
        elif line.startswith(b"error:"):
            parts.append(line[6:].strip())
            part_end = position + len(line)
            is_error = True
        position += len(line_with_end)
    if complete or parts == [_DONE]:
        event_over()
    return datas, ends


def _as_error(data: bytes) -> bytes:
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        data = msgspec.json.encode(data[:MAX_ERROR_CHARS].decode("utf-8", "replace"))
    return b'{"error":' + (b'"the server says error"' if data in NO_ERROR else data) + b"}"
