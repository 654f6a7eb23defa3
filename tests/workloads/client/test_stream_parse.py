"""Answers taken apart: recorded streams of real servers, cut into reads in every way, against a plain reading."""

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.client.http1 import ResponseHead
from kvload.workloads.client.raw import RawStream

STREAMS = Path(__file__).parents[2] / "fixtures" / "streams"
RECORDED = sorted(path.stem for path in STREAMS.glob("*.txt") if "error" not in path.stem)
SECOND = 1_000_000_000
WALL_OFFSET_NS = 1_700_000_000 * SECOND


def raw_stream(
    pieces: list[bytes], *, framing: Any = "chunked", status: int = 200, kind: str = "text/event-stream"
) -> RawStream:
    """A stream whose piece ``i`` arrived ``i + 1`` ms after the request was sent at 5 s."""
    raw = RawStream("key", 5 * SECOND)
    raw.t_send_ns = 5 * SECOND
    arrivals = [5 * SECOND + (number + 1) * 1_000_000 for number in range(len(pieces))]
    stamps = [struct.pack("@qq", *divmod(at + WALL_OFFSET_NS, SECOND)) for at in arrivals]
    for piece, stamp, at in zip(pieces, stamps, arrivals, strict=True):
        raw.reads += (piece, stamp, at + 300_000)
    raw.tie_offset_ns = WALL_OFFSET_NS
    raw.head = ResponseHead(status, framing, 0, True, kind)
    raw.complete = True
    raw.t_end_ns = raw.seen_ns[-1] if pieces else raw.t_send_ns
    return raw


def parse(body: bytes, **how: Any) -> Answer:
    return parse_answer(raw_stream([body], framing="close", **how))


def events(*values: Any, done: bool = True) -> bytes:
    lines = [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def token(text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}


@given(st.sampled_from(RECORDED), st.data())
def test_recorded_streams_however_they_are_cut(name: str, data: st.DataObject) -> None:
    body = (STREAMS / f"{name}.txt").read_bytes()
    chunk_cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=12)))
    contents = [body[start:end] for start, end in itertools.pairwise([0, *chunk_cuts, len(body)])]
    wire = b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents) + b"0\r\n\r\n"
    read_cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=12)))
    pieces = [wire[start:end] for start, end in itertools.pairwise([0, *read_cuts, len(wire)])]
    answer = parse_answer(raw_stream(pieces))

    values = [json.loads(line[6:]) for line in body.split(b"\n\n") if line and line != b"data: [DONE]"]
    choices = [value["choices"][0] for value in values if value["choices"]]
    assert answer.status == "ok"
    texts = [choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices]
    assert answer.text == "".join(texts)
    assert answer.finish_reason == choices[-1]["finish_reason"]
    ids = [identifier for choice in choices for identifier in choice.get("token_ids") or []]
    assert answer.token_ids == (ids or None)
    reported = [value["usage"]["completion_tokens"] for value in values if value.get("usage")]
    if reported:
        assert (answer.output_tokens, answer.output_tokens_source) == (reported[-1], "usage")
    if ids:
        assert answer.chunks["tokens"].sum() == len(ids)
    if name == "vllm_stop_at_once":
        # the end of the sequence alone: one token that nobody could wait for
        assert (answer.t_first_ns, answer.text, answer.output_tokens) == (None, "", 1)
        return
    # the first token arrived with the read that holds the last byte of the first event that carries one
    carrying = (
        next(c for c in choices if c.get("token_ids") or c.get("text") or c.get("delta", {}).get("content"))
        if "stop_at_once" not in name
        else choices[0]
    )
    line = next(line for line in body.split(b"\n\n") if line and json.loads(line[6:])["choices"][:1] == [carrying])
    end_in_body = body.index(line) + len(line)
    assert answer.t_first_ns == arrival_of(end_in_body, contents, pieces)


def arrival_of(end_in_body: int, contents: list[bytes], pieces: list[bytes]) -> int:
    """Byte by byte: where in the wire is the body's byte before ``end_in_body``, and in which read?"""
    position, seen = 0, 0
    for content in contents:
        position += len(b"%x\r\n" % len(content))
        if seen + len(content) >= end_in_body:
            position += end_in_body - seen - 1
            break
        seen += len(content)
        position += len(content) + 2
    for number, piece in enumerate(pieces):
        if position < len(piece):
            return 5 * SECOND + (number + 1) * 1_000_000
        position -= len(piece)
    raise AssertionError("behind the end")


def test_kernel_stamps_are_used_and_their_absence_is_said() -> None:
    raw = raw_stream([b"%x\r\n" % len(events(token(" a", "stop"))), events(token(" a", "stop")) + b"\r\n0\r\n\r\n"])
    answer = parse_answer(raw)
    assert (answer.clock, answer.t_first_ns, answer.t_headers_ns) == ("kernel", 5_002_000_000, 5_001_000_000)
    assert answer.chunks["us"].tolist() == [2000]
    first = raw.reads[1]
    raw.reads[1] = None
    answer = parse_answer(raw)
    assert (answer.clock, answer.t_first_ns) == ("user", 5_002_300_000)
    raw.reads[1], raw.tie_offset_ns = first, None
    assert parse_answer(raw).clock == "user"


def test_role_only_chunk_carries_no_token() -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    text = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    answer = parse(events(role, text, usage(1)))
    assert (answer.first_chunk_tokens, len(answer.chunks), answer.text) == (1, 1, "hi")


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ([token("a"), token(""), token("b", "stop"), usage(3)], [1, 1, 1]),  # half a character waits for its rest
        ([token("a"), token("b"), token("", "stop"), usage(2)], [1, 1]),  # only the reason to stop
        (
            [token("a"), token("b"), token("", "stop"), usage(3)],
            [1, 1],
        ),  # the end of the sequence has no time of its own
        ([token("", "stop"), usage(1)], []),
        ([token(""), token("", "length"), usage(2)], [1, 1]),  # special tokens up to the cap
        ([token("a", token_ids=[1, 2]), token("", token_ids=[3]), token("", "stop", token_ids=[])], [2, 1]),
        (
            [
                token("a") | {"usage": {"completion_tokens": 2}},
                token("b", "stop") | {"usage": {"completion_tokens": 5}},
            ],
            [2, 3],
        ),
        ([token("a"), token("b", "stop") | {"usage": {"completion_tokens": 2}}], [1, 1]),
    ],
)
def test_tokens_of_chunks(values: list[Any], tokens: list[int]) -> None:
    assert parse(events(*values)).chunks["tokens"].tolist() == tokens


def test_source_of_the_token_count() -> None:
    assert parse(events(token("a"), token("b", "stop"))).output_tokens_source == "chunks"
    by_ids = parse(events(token("a", token_ids=[5, 6]), token("", "stop", token_ids=[7])))
    assert (by_ids.output_tokens, by_ids.output_tokens_source) == (3, "token_ids")


def test_the_servers_own_times() -> None:
    last = usage(1) | {"metrics": {"queue_time_ms": 2.0, "prefill_time_ms": 30.0, "decode_time_ms": 400.0}}
    answer = parse(events(token("a", "stop"), last))
    assert (answer.queue_s, answer.prefill_s, answer.decode_s) == (0.002, 0.03, 0.4)
    last = usage(1) | {"metrics": {"queue_time_ms": 2.0, "time_to_first_token_ms": 30.0}}
    assert parse(events(token("a", "stop"), last)).prefill_s == pytest.approx(0.028)
    assert parse(events(token("a", "stop"), usage(1))).queue_s is None


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        (events(token("a"), {"error": {"message": "dead", "code": 500}}), "failed", "stream_error"),
        (events(token("a"), {"error": "dead"}, done=False), "failed", "stream_error"),
        (events(token("a")), "failed", "truncated"),
        (b"data: {nonsense\n\ndata: [DONE]\n\n", "failed", "malformed"),
        (b'data: {"choices": 3}\n\n', "failed", "malformed"),
        (events(token("a"), done=False), "failed", "truncated"),
        (events(token("a", "stop"), done=False), "ok", None),
        (events(), "failed", "empty"),
        (b'data: {"choices":[]},{"choices":[]}\n\ndata: [DONE]\n\n', "failed", "malformed"),
    ],
)
def test_what_is_wrong_with_a_stream(body: bytes, status: str, cause: str | None) -> None:
    answer = parse(body)
    assert (answer.status, answer.cause) == (status, cause)


def test_what_came_before_a_failure_is_kept() -> None:
    answer = parse(events(token(" a"), token(" b"), done=False) + b"data: {\xff\n\n")
    assert (answer.status, answer.text, answer.output_tokens) == ("failed", " a b", 2)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("vllm_error_400", 400),
        ("vllm_error_404", 404),
        ("sglang_error_400", 400),
        ("sglang_error_400_chat_token_ids", 400),
    ],
)
def test_recorded_refusals(name: str, status: int) -> None:
    body = (STREAMS / f"{name}.txt").read_bytes()
    said = json.loads(body)
    answer = parse(body, status=status, kind="application/json")
    assert (answer.status, answer.cause, answer.http_status) == ("refused", f"http_{status}", status)
    assert answer.error == said.get("error", said)["message"]


def test_server_errors_and_whole_answers() -> None:
    assert parse(b"<html>", status=502, kind="text/html").cause == "http_502"
    whole = token(" a b", "length") | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    answer = parse(json.dumps(whole).encode(), kind="application/json")
    assert (answer.status, answer.text, answer.output_tokens, answer.first_chunk_tokens) == ("ok", " a b", 2, 2)


@pytest.mark.parametrize(
    "body",
    [
        b": ping\n\ndata: {0}\n\n: ping\n\ndata: {1}\n\ndata: [DONE]\n\n",
        b"data: {0}\r\n\r\ndata: {1}\r\n\r\ndata: [DONE]\r\n\r\n",
        b"event: token\ndata: {0}\nid: 5\n\ndata:{1}\n\ndata: [DONE]\n",
    ],
)
def test_other_ways_to_write_an_event_stream(body: bytes) -> None:
    first, second = (json.dumps(value).encode() for value in (token(" a"), token(" b", "stop")))
    answer = parse(body.replace(b"{0}", first).replace(b"{1}", second))
    assert (answer.status, answer.text, len(answer.chunks)) == ("ok", " a b", 2)


@given(st.binary(max_size=300))
def test_nothing_a_server_sends_is_an_exception(body: bytes) -> None:
    parse(b"data: " + body)
    parse(body, kind="application/json")
    parse(body, status=400)
    parse_answer(raw_stream([body, b"x"]))


def test_a_recorded_engine_that_died() -> None:
    body = (STREAMS / "vllm_error_after_200.txt").read_bytes()
    answer = parse(body)
    assert (answer.status, answer.cause, answer.http_status) == ("failed", "stream_error", 200)
    assert answer.error
    assert answer.error in body.decode()
    assert answer.output_tokens
    assert answer.text
