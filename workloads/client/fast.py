"""From the bytes on the wire to events, and to the place in the wire where each of them was complete.

Most servers write every event as one chunk of HTTP's chunked transfer, and most events of an answer differ in nothing
but their text. Such a run of chunks is taken apart in one go, at a fifth of the cost of going through HTTP's chunks
and then through the events: it is split at the seams, the texts are cut out, and the wire is put together again from
the texts alone. Where that gives other bytes than came, it was no such run, and the general way is taken.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.untrusted import DECODE_ERRORS
from kvload.workloads.client.events import Event, decode_strictly
from kvload.workloads.client.http1 import ResponseHead, dechunk
from kvload.workloads.client.sse import Reading, read_event_stream, read_events

_MIN_CHUNKS = 8
_KEY = re.compile(rb'"(?:text|content)": ?"')
_REST_OF_STRING = re.compile(rb'(?:[^"\\]|\\.)*"', re.DOTALL)
_TEXTS = msgspec.json.Decoder(list[str])
_SEAM = b"\r\ndata: "
_END = b"\n\n\r\n"
_LOOKED_AT_FOR_A_RUN = 3
_MAX_AFTER_A_RUN = 6
_MAX_DIGITS = 4
"""Of a chunk's size in a run: 64 KiB of JSON are no plain chunk."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The JSON around the text of a plain chunk: what stands before it and behind it, its quotes included."""

    prefix: bytes
    suffix: bytes

    @classmethod
    def around_text(cls, event: bytes) -> Self | None:
        """The frame of a chunk with text and nothing else of interest; None where the text is not found for certain."""
        key = _KEY.search(event)
        if key is None:
            return None
        rest = _REST_OF_STRING.match(event, key.end())
        if rest is None or _KEY.search(event, rest.end()) is not None:
            return None
        return cls(event[: key.end()], event[rest.end() - 1 :])


@dataclass(frozen=True, slots=True)
class WireReading:
    """The events of an answer.

    Attributes:
        reading: the events; ``reading.ends`` are positions in the wire, of the byte with which each one's data ends.
        broken: what is wrong with the framing; None if nothing is.
    """

    reading: Reading
    broken: str | None = None


def read_wire(wire: bytes, head: ResponseHead, body_start: int, complete: bool) -> WireReading:
    """Read the events of an answer, whole or as far as it came.

    Args:
        wire: everything received, the head included.
        body_start: where the body begins.
    """
    if head.framing == "chunked" and complete and head.content_type == "text/event-stream":
        fast = _read_run(wire, body_start)
        if fast is not None:
            return fast
    body, places, broken = split_body(wire, head, body_start)
    reading = read_events(body, head, complete)
    reading.ends = _wire_positions(reading.ends, places, body_start)
    return WireReading(reading, broken)


def split_body(
    wire: bytes, head: ResponseHead, body_start: int
) -> tuple[bytes, npt.NDArray[np.int64] | None, str | None]:
    """The body's bytes, and what is wrong with its framing.

    For chunked transfer also two rows: where each chunk's content ends in the body, and where in the wire.
    """
    if head.framing != "chunked":
        return wire[body_start:], None, None
    contents, ends, broken = dechunk(wire, body_start)
    places = np.empty((2, len(contents)), np.int64)
    np.cumsum(np.fromiter(map(len, contents), np.int64, len(contents)), out=places[0])
    places[1] = ends
    return b"".join(contents), places, broken


def _wire_positions(
    ends: npt.NDArray[np.int64], places: npt.NDArray[np.int64] | None, body_start: int
) -> npt.NDArray[np.int64]:
    """For offsets just behind a byte of the body, the number of wire bytes before and without that byte."""
    if places is None:
        return ends + body_start - 1
    if places.shape[1] == 0:
        return ends
    which = np.searchsorted(places[0], ends)
    which = np.minimum(which, places.shape[1] - 1)
    positions: npt.NDArray[np.int64] = places[1][which] - (places[0][which] - ends) - 1
    return positions


def _read_run(wire: bytes, start: int) -> WireReading | None:
    """The cheap way, where a long run of plain chunks is at or near the start."""
    events: list[Event] = []
    positions: list[int] = []
    for _ in range(_LOOKED_AT_FOR_A_RUN):
        seam = wire.find(b"\r\n", start, start + _MAX_DIGITS + 2)
        if seam < 0 or not wire.startswith(_SEAM, seam):
            return None
        data_start = seam + len(_SEAM)
        data_end = wire.find(_END, data_start)
        data = wire[data_start:data_end]
        # one event, which fills its chunk
        if data_end < 0 or b"\n" in data or b"\r" in data or wire[start:seam] != _size_of(len(data)):
            return None
        event = decode_strictly(data)
        if event is None or event.failure(data) is not None:
            return None
        if _is_plain(event):
            break
        events.append(event)
        positions.append(data_end - 1)
        start = data_end + len(_END)
    else:
        return None
    run = _take_run_apart(wire, data_start, data)
    if run is None:
        return None
    texts, run_ends, rest_start = run
    index = event.choices[0].index if event.choices else None
    contents, ends, broken = dechunk(wire, rest_start)
    rest = read_event_stream(b"".join(contents))
    places = np.array([np.cumsum([len(content) for content in contents]), ends], np.int64).reshape(2, -1)
    rest_positions = _wire_positions(rest.ends, places, rest_start)
    ends_on_wire = np.concatenate([np.asarray(positions, np.int64), run_ends - 1, rest_positions])
    reading = Reading(
        events + rest.events, ends_on_wire, rest.done, rest.failure, rest.problem, rest.aside, texts, len(events), index
    )
    return WireReading(reading, broken)


def _take_run_apart(wire: bytes, start: int, first: bytes) -> tuple[list[str], npt.NDArray[np.int64], int] | None:
    """The texts of the run whose first event's JSON begins at ``start``; None where there is none.

    Returns:
        the texts, where each one's JSON ends in the wire, and where the size of the chunk behind the run begins.
    """
    frame = Frame.around_text(first)
    if frame is None:
        return None
    before, behind = len(frame.prefix), frame.suffix + _END
    # every piece: the frame's prefix, a text, the frame's suffix, the chunk's end, the size of the chunk behind it
    pieces = wire[start:].split(_SEAM)
    for _ in range(_MAX_AFTER_A_RUN):
        if not pieces or pieces[-1].find(behind, -len(behind) - _MAX_DIGITS) >= 0:
            break
        pieces.pop()
    if len(pieces) < _MIN_CHUNKS:
        return None
    digits = len(pieces[-1]) - pieces[-1].rfind(behind) - len(behind)
    cut = -len(behind) - digits
    strings = [piece[before:cut] for piece in pieces]
    lengths = list(map(len, strings))
    framed = before + len(frame.suffix)
    if not _is_whole(wire, start + before, strings, lengths, frame, framed):
        # sizes of different widths: each piece says how wide its own is
        strings = [piece[before : piece.rfind(behind)] for piece in pieces]
        lengths = list(map(len, strings))
        if not _is_whole(wire, start + before, strings, lengths, frame, framed):
            return None
    if 0 in lengths:
        return None
    texts = _decode_texts(strings)
    if texts is None:
        return None
    steps = np.fromiter(map(len, pieces), np.int64, len(pieces)) + len(_SEAM)
    ends = np.cumsum(steps)
    ends -= steps
    ends += np.array(lengths, np.int64)
    ends += start + framed
    return texts, ends, int(ends[-1]) + len(_END)


def _is_whole(wire: bytes, start: int, strings: list[bytes], lengths: list[int], frame: Frame, framed: int) -> bool:
    """Whether the wire from the first text to the end of the last chunk is what these texts make in this frame."""
    behind = frame.suffix + _END
    seams = {length: behind + _size_of(framed + length) + _SEAM + frame.prefix for length in set(lengths)}
    parts = [behind] * (2 * len(strings))
    parts[0::2] = strings
    parts[1:-1:2] = _all_of(seams, lengths[1:])
    return wire.startswith(b"".join(parts), start)


def _all_of(seams: dict[int, bytes], lengths: Iterable[int]) -> list[bytes]:
    return list(map(seams.__getitem__, lengths))


def _size_of(json_bytes: int) -> bytes:
    """The size line's digits of a chunk that holds one event with so much JSON."""
    return b"%x" % (json_bytes + 8)


def _is_plain(event: Event) -> bool:
    """Whether there is nothing in a chunk but text."""
    if not event.choices or len(event.choices) != 1 or event.usage or event.metrics:
        return False
    choice = event.choices[0]
    if choice.listed is not None or choice.finish_reason is not None:
        return False
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content) and not (
        choice.text or delta.thought or delta.refusal or delta.tool_calls or delta.function_call
    )


def _decode_texts(strings: list[bytes]) -> list[str] | None:
    """Decode the insides of JSON strings; None unless every one of them is that."""
    joined = b'","'.join(strings)
    if b'\\","' in joined:
        # a backslash at a string's end would take the separator's quote for its own
        return None
    try:
        texts = _TEXTS.decode(b'["' + joined + b'"]')
    except DECODE_ERRORS:
        return None
    return texts if len(texts) == len(strings) else None
