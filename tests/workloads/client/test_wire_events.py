"""Runs of plain chunks taken apart on the wire, against the general way through the same bytes."""

import itertools
import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvload.workloads.client.fast import read_wire
from kvload.workloads.client.http1 import ResponseHead, dechunk
from kvload.workloads.client.sse import read_events

HEAD = ResponseHead(200, "chunked", 0, True, "text/event-stream")
TEXTS = st.text(min_size=0, max_size=6) | st.sampled_from(
    ['","', "\\", '\\","', '"', "\n", "\r\ndata: ", " a", " bc", "x" * 90]
)


def http_chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(text: str, chat: bool, **more: Any) -> dict[str, Any]:
    content = {"delta": {"content": text}} if chat else {"text": text}
    return {"id": "cmpl-1", "choices": [{"index": 0, **content, "finish_reason": None, **more}]}


@st.composite
def answers(draw: st.DrawFn) -> list[bytes]:
    """The contents of an answer's HTTP chunks, mostly one event each."""
    chat = draw(st.booleans())
    contents = [event(chunk("", True) | {"role": "assistant"})] if chat else []
    contents += [event(chunk(text, chat)) for text in draw(st.lists(TEXTS, min_size=1, max_size=40))]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(contents)))
        odd = [
            b": ping\n\n",
            event({"error": {"message": "no"}}),
            b"data: {\n\n",
            event(chunk("z", chat, token_ids=[1, 2])),
        ]
        contents.insert(at, draw(st.sampled_from(odd)))
    contents.append(event(chunk("", chat, finish_reason="stop")))
    if draw(st.booleans()):
        contents.append(event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(contents)}}))
    contents.append(b"data: [DONE]\n\n")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(contents) - 2))
        contents[at : at + 2] = [contents[at] + contents[at + 1]]
    return contents


def plainly(wire: bytes) -> tuple[list[str], list[int], Any]:
    """Texts, the place of each event's last byte, and the rest, by the general way and byte by byte."""
    contents, ends, _ = dechunk(wire, 0)
    body = b"".join(contents)
    reading = read_events(body, HEAD, True)
    place_of = list(
        itertools.chain.from_iterable(
            range(int(end) - len(content), int(end)) for content, end in zip(contents, ends, strict=True)
        )
    )
    return texts_of(reading), [place_of[end - 1] for end in reading.ends], (reading.done, reading.problem)


def texts_of(reading: Any) -> list[str]:
    single = []
    for one in reading.events:
        choice = one.choices[0] if one.choices else None
        delta = choice.delta if choice else None
        single.append((choice.text if choice and choice.text is not None else delta.content if delta else None) or "")
    return [*single[: reading.run_at], *reading.run, *single[reading.run_at :]]


@given(answers())
def test_a_run_is_read_as_its_chunks_are(contents: list[bytes]) -> None:
    wire = b"".join(map(http_chunk, contents)) + b"0\r\n\r\n"
    found = read_wire(wire, HEAD, 0, True)
    texts, places, rest = plainly(wire)
    assert texts_of(found.reading) == texts
    assert found.reading.ends.tolist() == places
    assert (found.reading.done, found.reading.problem) == rest


@given(st.lists(st.sampled_from([" a", " longer", "x" * 70, "y" * 100]), min_size=20, max_size=60))
def test_a_long_run_goes_the_cheap_way_whatever_the_width_of_its_sizes(texts: list[str]) -> None:
    contents = [event(chunk(text, False)) for text in texts] + [event(chunk("", False, finish_reason="stop"))]
    wire = b"".join(map(http_chunk, [*contents, b"data: [DONE]\n\n"])) + b"0\r\n\r\n"
    reading = read_wire(wire, HEAD, 0, True).reading
    assert reading.run == texts
    assert np.all(np.diff(reading.ends) > 0)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_byte_that_is_wrong_is_noticed(place: int, value: int) -> None:
    contents = [event(chunk(" a", False)) for _ in range(20)] + [b"data: [DONE]\n\n"]
    wire = bytearray(b"".join(map(http_chunk, contents)) + b"0\r\n\r\n")
    wire[place] = value
    found = read_wire(bytes(wire), HEAD, 0, True)
    contents, _, broken = dechunk(bytes(wire), 0)
    general = read_events(b"".join(contents), HEAD, True)
    assert texts_of(found.reading) == texts_of(general)
    assert (found.reading.problem, found.broken) == (general.problem, broken)
