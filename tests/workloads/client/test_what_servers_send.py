"""Answers of the kinds that real servers and proxies were seen to send, each against the times it was made with.

In every one the first token comes at 100 ms and then one every 20 ms, ten in all.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.workloads.client.answer import parse_answer
from tests.workloads.client.streams import DONE, ROLE, chat, data, parse, ten_words, timed, tpot_ms, ttft_ms, usage

TRUE_TEXT = "".join(f" w{number}" for number in range(10))


def with_total(total: Any) -> Any:
    """A chunk of a word with the server's running count beside it."""
    return lambda number: chat(content=f" w{number}") | {"usage": {"completion_tokens": total(number)}}


KEEP_ALIVE = data(chat(content=""))

COUNTS = {
    "right": (ten_words(), "usage"),
    "all 0": (ten_words(chat("stop"), usage(0)), "chunks"),
    "0 in every chunk": (ten_words(chat("stop"), usage(0), each=with_total(lambda _: 0)), "chunks"),
    "negative": (ten_words(chat("stop"), usage(-7)), "chunks"),
    "too few": (ten_words(chat("stop"), usage(4)), "chunks"),
    "more than any computer holds": (ten_words(chat("stop"), usage(10**30)), "chunks"),
    "many digits in every chunk": (ten_words(chat("stop"), usage(10**30), each=with_total(lambda _: 10**30)), "chunks"),
    "more than were asked for": (ten_words(chat("stop"), usage(55)), "chunks"),
    "none": (ten_words(chat("stop")), "chunks"),
    "null": (ten_words(chat("stop"), usage(None)), "chunks"),
    "as a float": (ten_words(chat("stop"), usage(10.0)), "usage"),
    "as text": (ten_words(chat("stop"), usage("10")), "usage"),
    "a list": (ten_words(chat("stop"), usage([10])), "chunks"),
    "in every chunk": (ten_words(chat("stop"), usage(10), each=with_total(lambda n: n + 1)), "usage"),
    "0 until the end": (ten_words(chat("stop"), usage(10), each=with_total(lambda n: 10 if n == 9 else 0)), "usage"),
    "lagging": (ten_words(chat("stop"), usage(10), each=with_total(lambda n: n)), "usage"),
    "falling": (ten_words(chat("stop"), usage(10), each=with_total(lambda n: 10 - n)), "usage"),
    "standing still": (ten_words(chat("stop"), usage(10), each=with_total(lambda n: n // 2 + 1)), "usage"),
    "with the end of the sequence": (ten_words(chat("stop", content=""), usage(11)), "usage"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_text_that_arrived_comes_before_what_the_server_counts(name: str) -> None:
    reads, source = COUNTS[name]
    answer = parse(reads, max_tokens=16)
    assert (answer.status, answer.text) == ("ok", TRUE_TEXT)
    assert (ttft_ms(answer), tpot_ms(answer)) == (100.0, 20.0)
    assert answer.output_tokens_source == source
    assert answer.output_tokens == (11 if "end of the sequence" in name else 10)
    impossible = source == "chunks" and name not in {"none", "null", "a list"}
    assert (answer.count_doubt is not None) == impossible


THINKING = [
    (1.0, data(ROLE)),
    *((100.0 + 20.0 * number, data(chat(reasoning_content=f" t{number}"))) for number in range(6)),
    *((220.0 + 20.0 * number, data(chat(content=f" w{number}"))) for number in range(4)),
]


def ended(*chunks: Any) -> list[tuple[float, bytes]]:
    return [*THINKING, (280.0, b"".join(map(data, chunks)) + DONE)]


@pytest.mark.parametrize(
    "ending",
    [
        (chat("stop"), usage(10)),
        (chat("stop"), usage(10, completion_tokens_details={"reasoning_tokens": 6})),
        (chat("stop"), usage(10, reasoning_tokens=6)),
        (chat("stop"), usage(4)),  # without the reasoning
        (chat("stop"),),
    ],
)
def test_reasoning_is_an_answer_too(ending: tuple[Any, ...]) -> None:
    answer = parse(ended(*ending))
    assert (answer.status, answer.text, answer.reasoning) == ("ok", " w0 w1 w2 w3", " t0 t1 t2 t3 t4 t5")
    assert (ttft_ms(answer), tpot_ms(answer), answer.output_tokens, answer.reasoning_tokens) == (100.0, 20.0, 10, 6)
    assert answer.t_answer_ns is not None
    assert answer.t_answer_ns - answer.t_send_ns == 220_000_000  # type: ignore[operator]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "reasoning_text", "thinking", "reasoning_details"])
def test_reasoning_has_many_names(name: str) -> None:
    def chunk(number: int) -> dict[str, Any]:
        text = f" t{number}"
        part: Any = [{"type": "reasoning.text", "text": text}] if name == "reasoning_details" else text
        return chat(**{name: part}) if number < 6 else chat(content=text)

    answer = parse(ten_words(each=chunk))
    assert (answer.reasoning, answer.text) == (" t0 t1 t2 t3 t4 t5", " t6 t7 t8 t9")
    assert (ttft_ms(answer), tpot_ms(answer), answer.reasoning_tokens) == (100.0, 20.0, 6)


UNFOUNDED = {
    "more than its bytes": ten_words(chat("stop"), usage(55)),
    "the same, running": ten_words(chat("stop"), usage(55), each=with_total(lambda n: 5 * (n + 1))),
    "a jump at the end": ten_words(chat("stop"), usage(30), each=with_total(lambda n: n + 1)),
}


@pytest.mark.parametrize("name", UNFOUNDED)
def test_a_count_that_no_text_bears_out_is_not_believed(name: str) -> None:
    answer = parse(UNFOUNDED[name], max_tokens=64)
    assert (answer.status, answer.output_tokens, answer.output_tokens_source) == ("ok", 10, "chunks")
    assert (tpot_ms(answer), answer.unproven_tokens) == (20.0, 0)
    assert answer.count_doubt is not None


def test_several_tokens_a_chunk_are_believed_and_said_to_rest_on_the_servers_word() -> None:
    answer = parse(ten_words(chat("stop"), usage(30)), max_tokens=64)
    assert (answer.output_tokens, answer.count_doubt, answer.unproven_tokens) == (30, None, 18)
    by_ids = ten_words(chat("stop"), usage(30), each=lambda n: chat(content=f" w{n}") | {"choices": [
        {"index": 0, "delta": {"content": f" w{n}"}, "token_ids": [1, 2, 3]}]})  # fmt: skip
    assert (parse(by_ids).output_tokens, parse(by_ids).unproven_tokens, tpot_ms(parse(by_ids))) == (30, 0, 180 / 27)


def test_reasoning_that_is_counted_but_not_shown_came_before_the_first_text() -> None:
    answer = parse(ten_words(chat("stop"), usage(510, completion_tokens_details={"reasoning_tokens": 500})))
    assert (answer.output_tokens, answer.first_chunk_tokens, tpot_ms(answer)) == (510, 501, 20.0)


def test_tool_calls_and_refusals_are_waited_for() -> None:
    pieces = [
        chat(tool_calls=[{"index": 0, "id": "c", "function": {"name": "look", "arguments": ""}}]),
        *(chat(tool_calls=[{"index": 0, "function": {"arguments": part}}]) for part in ('{"a"', ": 1", "}")),
    ]
    reads = [(100.0 + 20.0 * number, data(piece)) for number, piece in enumerate(pieces)]
    answer = parse([(1.0, data(ROLE)), *reads, (180.0, data(chat("tool_calls")) + data(usage(4)) + DONE)])
    assert (answer.status, ttft_ms(answer), tpot_ms(answer)) == ("ok", 100.0, 20.0)
    assert answer.tool_calls == [{"name": "look", "arguments": '{"a": 1}'}]
    refusal = parse([(100.0, data(chat(refusal="I will"))), (120.0, data(chat("stop", refusal=" not")) + DONE)])
    assert (refusal.status, refusal.text, ttft_ms(refusal)) == ("ok", "I will not", 100.0)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "function_call", "content_filter"])
def test_good_ends(reason: str) -> None:
    assert parse(ten_words(chat(reason), usage(10))).status == "ok"


@pytest.mark.parametrize(
    ("reads", "cause", "words"),
    [
        (ten_words(chat("abort"), usage(10)), "aborted", "abort"),
        (ten_words(chat("error"), usage(10)), "stream_error", "error"),
        (ten_words(chat(""), usage(10)), "truncated", "without a reason"),
        (ten_words(chat("null"), usage(10)), "truncated", "without a reason"),
        (ten_words(usage(10)), "truncated", "without a reason"),
        (ten_words(chat("because"), usage(10)), "unknown_end", "because"),
        (ten_words({"error": {"message": "out of pages", "code": 500}}), "stream_error", "out of pages"),
        (ten_words({"error": "out of pages"}, chat("stop")), "stream_error", "out of pages"),
        (ten_words({"object": "error", "message": "out of pages", "code": 500}), "stream_error", "out of pages"),
        (ten_words({"text": "out of pages", "error_code": 50001}), "stream_error", "out of pages"),
        (
            ten_words({"choices": [{"error": {"message": "out of pages"}, "finish_reason": "stop"}]}),
            "stream_error",
            "out of pages",
        ),
        ([(9.0, b'event: error\ndata: {"message": "out of pages"}\n\n')], "stream_error", "out of pages"),
        ([(9.0, b"event: error\ndata: out of pages\n\n" + DONE)], "stream_error", "out of pages"),
        ([(9.0, b'error: {"code": 500, "message": "out of pages"}\n\n')], "stream_error", "out of pages"),
        (
            [*ten_words()[:-1], (280.0, b'error: {"message": "out of pages"}\n\n')],
            "stream_error",
            "out",
        ),
        ([(9.0, DONE)], "empty", "no tokens"),
        ([(9.0, data(chat("stop", content="")) + data(usage(0)) + DONE)], "empty", "no tokens"),
        ([(9.0, b"<html>gateway</html>")], "malformed", "<html>"),
        ([(9.0, b'{"object": "error", "message": "out of pages"}')], "stream_error", "out of pages"),
        (ten_words(chat("Abort"), usage(10)), "aborted", "Abort"),
        (ten_words(chat("cancelled"), usage(10)), "aborted", "cancelled"),
        (ten_words(chat("internal_error"), usage(10)), "stream_error", "internal_error"),
        (ten_words(chat("abort"), chat("stop"), usage(10)), "aborted", "abort"),
        (ten_words(chat("stop"), usage(10), {"error": {"message": "out of pages"}}), "stream_error", "out of pages"),
        *(
            (ten_words(odd, chat("stop"), usage(10)), "stream_error", "out of pages")
            for odd in (
                {"code": 500, "message": "out of pages"},
                {"detail": "out of pages"},
                {"errors": ["out of pages"]},
                {"type": "error", "message": "out of pages"},
                {"status": "failed", "message": "out of pages"},
                {"success": False, "message": "out of pages"},
                {"choices": [{"delta": {"error": {"message": "out of pages"}}}]},
                {"choices": [{"message": {"error": "out of pages"}}]},
            )
        ),
        ([*ten_words()[:-1], (280.0, b"event: Error\ndata: out of pages\n\n" + DONE)], "stream_error", "out of pages"),
        ([*ten_words()[:-1], (280.0, b"event: error\n\n" + data(chat("stop")) + DONE)], "stream_error", "error"),
        (ten_words({"message": "out of pages"}), "truncated", "out of pages"),
        ([(9.0, data(chat("stop", content="")) + data(usage(10)) + DONE)], "empty", "10 tokens"),
    ],
)
def test_no_success_without_proof(reads: Any, cause: str, words: str) -> None:
    answer = parse(reads)
    assert (answer.status, answer.cause) == ("failed", cause)
    assert words in (answer.error or "")


@pytest.mark.parametrize("nothing", [None, "", {}, [], False, 0])
def test_an_empty_error_is_none(nothing: Any) -> None:
    answer = parse(ten_words(each=lambda number: chat(content=f" w{number}") | {"error": nothing, "error_code": 0}))
    assert (answer.status, answer.text) == ("ok", TRUE_TEXT)


@pytest.mark.parametrize(
    "before", [KEEP_ALIVE, KEEP_ALIVE * 3, data(chat()), b": ping\n\n", b"data:\n\n", b"data: \n\n"]
)
def test_nothing_before_the_first_text_starts_the_clock(before: bytes) -> None:
    reads = ten_words(chat("stop"), usage(12))
    answer = parse([(3.0, before), *reads, (290.0, b"")][:-1], max_tokens=16)
    assert (answer.status, ttft_ms(answer), len(answer.chunks)) == ("ok", 100.0, 10)


def test_a_silent_chunk_between_two_texts_is_a_token_where_one_is_missing() -> None:
    words = ten_words(chat("stop"), usage(10))
    words[5] = (words[5][0], KEEP_ALIVE)
    answer = parse(words)
    assert (answer.chunks["tokens"].tolist(), tpot_ms(answer)) == ([1] * 10, 20.0)
    words[-1] = (280.0, data(chat("stop")) + data(usage(9)) + DONE)
    assert len(parse(words).chunks) == 9


ODD = {
    "text behind [DONE]": [*ten_words()[:-1], (280.0, data(chat("stop")) + DONE + data(chat(content="!")) + b"bye")],
    "[DONE] twice": [*ten_words()[:-1], (280.0, data(chat("stop")) + DONE + DONE)],
    "[DONE] with spaces": [*ten_words()[:-1], (280.0, data(chat("stop")) + b"data:  [DONE] \r\n\r\n")],
    "[DONE] without an empty line": [*ten_words()[:-1], (280.0, data(chat("stop")) + b"data: [DONE]")],
    "a last event without an empty line": [*ten_words()[:-1], (280.0, data(chat("stop"))[:-1])],
    "a mark at the start": [(0.5, b"\xef\xbb\xbf"), *ten_words()],
    "numbers that are none": ten_words(each=lambda n: data(chat(content=f" w{n}"))[6:-3] + b', "x": -Infinity}'),
    "other types": ten_words(each=lambda n: chat(content=f" w{n}") | {"metrics": 5, "object": 7, "error_code": 0.0}),
    "lists of parts": ten_words(each=lambda n: chat(content=[{"type": "text", "text": f" w{n}"}])),
    "a number as an event": [(0.5, data(b"1") + data(b"null") + data(b'"x"')), *ten_words()],
}


@pytest.mark.parametrize("name", ODD)
def test_one_odd_event_does_not_end_the_reading(name: str) -> None:
    answer = parse(ODD[name])
    assert (answer.status, answer.cause, answer.text) == ("ok", None, TRUE_TEXT)
    assert (ttft_ms(answer), tpot_ms(answer), answer.output_tokens) == (100.0, 20.0, 10)


def test_damaged_text_keeps_its_times_and_is_marked() -> None:
    broken = ten_words(
        each=lambda n: data(chat(content="ab"))[6:-2].replace(b"b", b"\xe4") if n == 4 else chat(content="a")
    )
    answer = parse(broken)
    assert (answer.status, answer.damaged, ttft_ms(answer), tpot_ms(answer)) == ("ok", True, 100.0, 20.0)
    assert answer.text == "aaaaa\ufffdaaaaa"
    lone = ten_words(each=lambda _: b'{"choices":[{"delta":{"content":"\\ud83d"}}]}')
    assert parse(lone).damaged
    halves = [b"\\ud83d", b"\\ude00"] * 5
    joined = parse(ten_words(each=lambda n: b'{"choices":[{"delta":{"content":"%b"}}]}' % halves[n]))
    assert (joined.text, joined.damaged, tpot_ms(joined)) == ("\U0001f600" * 5, False, 20.0)
    bytes_apart = ["é".encode()[:1], "é".encode()[1:]] * 5
    joined = parse(ten_words(each=lambda n: b'{"choices":[{"delta":{"content":"%b"}}]}' % bytes_apart[n]))
    assert (joined.text, joined.damaged) == ("é" * 5, False)


DEEP = b"[" * 2000 + b"]" * 2000


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices":[{"delta":{"content":"x"}}],"extra":' + DEEP + b"}",
        b'{"error":' + DEEP + b"}",
        b'{"usage":{"completion_tokens":' + b"9" * 5000 + b"}}",
        b"{nonsense",
        b'{"choices": 3}',
    ],
)
def test_an_event_without_sense_fails_one_request_and_keeps_the_others_times(event: bytes) -> None:
    answer = parse(ten_words(each=lambda n: event if n == 5 else chat(content=f" w{n}")))
    assert (answer.status, answer.cause) == ("failed", "malformed")
    assert (ttft_ms(answer), len(answer.chunks)) == (100.0, 9)


@pytest.mark.parametrize("body", [DEEP, b'{"error":' + DEEP + b"}", b'{"error":{"message":' + b"9" * 5000 + b"}}"])
def test_error_bodies_of_any_form(body: bytes) -> None:
    raw = timed([(9.0, body)], kind="application/json")
    raw.head = raw.head and type(raw.head)(500, "close", 0, True, "application/json")
    answer = parse_answer(raw)
    assert (answer.status, answer.cause) == ("failed", "http_500")
    assert len(answer.error or "") <= 500


@pytest.mark.parametrize("value", ["9" * 400, "1e999", "-3", "NaN", '"x"', "null", "[]", "true"])
def test_times_that_a_server_cannot_mean_are_missing(value: str) -> None:
    last = b'{"choices":[],"usage":{"completion_tokens":10},"metrics":{"queue_time_ms":%b}}' % value.encode()
    answer = parse(ten_words(chat("stop"), last))
    assert (answer.status, answer.output_tokens, answer.queue_s) == ("ok", 10, None)


def test_bursts_are_told_and_never_a_time_of_zero() -> None:
    words = ten_words()
    gathered = parse([(280.0, b"".join(piece for _, piece in words))])
    assert (gathered.in_bursts, gathered.merged_reads, tpot_ms(gathered)) == (True, 9, None)
    two = [(190.0, b"".join(piece for _, piece in words[:6])), (280.0, b"".join(piece for _, piece in words[6:]))]
    assert parse(two).in_bursts
    held_back = parse([(180.0, b"".join(piece for _, piece in words[:6])), *words[6:]])
    assert (held_back.in_bursts, held_back.first_chunk_tokens, tpot_ms(held_back)) == (False, 5, 20.0)
    one_pair = [*words[:4], (words[4][0], words[4][1] + words[5][1]), *words[6:]]
    assert (parse(one_pair).in_bursts, parse(one_pair).merged_reads) == (False, 1)


def test_a_stream_of_more_than_71_minutes_has_true_gaps() -> None:
    hour_ms = 3_600_000.0
    reads = [(number * hour_ms, data(chat(content="a"))) for number in range(1, 5)]
    answer = parse([*reads, (4 * hour_ms, data(chat("stop")) + DONE)])
    gaps = [int(gap) * answer.chunk_tick_us for gap in answer.chunks["us"][1:] - answer.chunks["us"][:-1]]
    assert gaps == [3_600_000_000] * 3


def test_the_connection_may_break_behind_the_end() -> None:
    for cause in ("truncated", "reset", "timeout"):
        raw = timed(ten_words(), complete=False)
        raw.status, raw.cause, raw.error, raw.t_end_ns = "failed", cause, "gone", raw.t_end_ns + 10**9
        answer = parse_answer(raw)
        assert (answer.status, answer.cause, answer.t_end_ns) == ("ok", None, 5_280_000_000)


def test_a_whole_answer_in_one_piece_has_no_tpot() -> None:
    whole = {"choices": [{"message": {"content": TRUE_TEXT}, "finish_reason": "stop"}], **usage(10), "choices_": 1}
    whole["choices"] = [{"message": {"content": TRUE_TEXT}, "finish_reason": "stop"}]
    answer = parse([(280.0, json.dumps(whole).encode())], kind="application/json")
    assert (answer.status, answer.output_tokens, answer.first_chunk_tokens, tpot_ms(answer)) == ("ok", 10, 10, None)


PARTS = st.sampled_from(
    [
        *(b"data: ", b"data:", b"\n", b"\n\n", b"\r\n", b"{", b"}", b"[", b"]", b'"', b":", b",", b"[DONE]"),
        *(b'"choices"', b'"delta"', b'"content"', b'"text"', b'"usage"', b'"completion_tokens"', b'"finish_reason"'),
        *(b'"stop"', b"null", b"-7", b"1e400", b"10" * 200, b'"\\ud83d"', b"\xff\xfe", b'"error"', b'"token_ids"'),
        *(b"event: error\n", b'"metrics"', data(chat(content="a")), data(chat("stop")), data(usage(3))),
        *(data(usage(10**30)), DONE, b"[" * 3000, b'{"a":' * 3000),
    ]
)


@given(st.lists(PARTS | st.binary(max_size=20), max_size=30), st.sampled_from([200, 400, 500]), st.booleans())
def test_whatever_comes_becomes_a_status(parts: list[bytes], status: int, complete: bool) -> None:
    raw = timed([(1.0, part) for part in parts] or [(1.0, b"")], complete=complete)
    raw.head = raw.head and type(raw.head)(status, "close", 0, True, "text/event-stream")
    answer = parse_answer(raw)
    assert answer.status in {"ok", "failed", "refused"}
    assert answer.status != "ok" or answer.finish_reason is not None
    json.dumps([answer.text, answer.error, answer.cause, answer.finish_reason], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("said", "cached"),
    [
        ({}, None),
        ({"prompt_tokens_details": None}, None),
        ({"prompt_tokens_details": {}}, None),
        ({"prompt_tokens_details": {"cached_tokens": None, "audio_tokens": 0}}, None),
        ({"prompt_tokens_details": {"cached_tokens": 0}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 2}}, 2),
        ({"prompt_tokens_details": {"cached_tokens": 3}}, 3),
        ({"prompt_tokens_details": {"cached_tokens": 2.0}}, 2),
        ({"prompt_tokens_details": {"cached_tokens": "2"}}, 2),
        ({"prompt_tokens_details": "none"}, None),
        ({"prompt_tokens_details": [2]}, None),
        ({"prompt_cache_hit_tokens": 2, "prompt_cache_miss_tokens": 1}, 2),
    ],
)
def test_what_the_prefix_cache_held_is_what_the_server_says(said: dict[str, Any], cached: int | None) -> None:
    answer = parse(ten_words(chat("stop"), usage(10, **said)))
    assert (answer.status, answer.output_tokens, answer.count_doubt) == ("ok", 10, None)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.cached_doubt) == (3, cached, None)


@pytest.mark.parametrize("count", [-1, 4, 10**30])
def test_more_cached_tokens_than_the_prompt_has_are_none(count: int) -> None:
    answer = parse(ten_words(chat("stop"), usage(10, prompt_tokens_details={"cached_tokens": count})))
    assert (answer.status, answer.output_tokens, answer.count_doubt) == ("ok", 10, None)
    assert answer.cached_tokens is None
    assert "cached tokens of a prompt of 3" in (answer.cached_doubt or "")


def test_the_last_count_of_cached_tokens_is_the_one_that_counts() -> None:
    running = ten_words(
        chat("stop"),
        usage(10, prompt_tokens_details={"cached_tokens": 2}),
        each=lambda number: (
            chat(content=f" w{number}")
            | {"usage": {"completion_tokens": number + 1, "prompt_tokens_details": {"cached_tokens": 0}}}
        ),
    )
    assert parse(running).cached_tokens == 2


def two(texts: tuple[str, str], *, apart: bool = False) -> Any:
    """Chunks of two answers at once, or in turn."""
    choices = [{"index": number, "delta": {"content": text}} for number, text in enumerate(texts)]
    return lambda number: {"choices": [choices[number % 2]] if apart else choices}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("counted", [10, 20])
def test_two_answers_to_one_request_are_none(apart: bool, counted: int) -> None:
    answer = parse(ten_words(chat("stop"), usage(counted), each=two((" a", " b"), apart=apart)))
    assert (answer.status, answer.cause, answer.error) == ("failed", "malformed", "2 answers came to one request")


def test_one_answer_under_any_index_is_one() -> None:
    for index in ({}, {"index": None}, {"index": 1}, {"index": "0"}):
        answer = parse(ten_words(each=lambda _: {"choices": [{"delta": {"content": " w"}, **index}]}))  # noqa: B023
        assert (answer.status, answer.output_tokens, tpot_ms(answer)) == ("ok", 10, 20.0)


LISTED: dict[str, Any] = {
    "chat": lambda _: (
        chat(content=" a b c d")["choices"][0] | {"logprobs": {"content": [{"token": t} for t in "abcd"]}}
    ),
    "completion": lambda _: {"text": " a b c d", "logprobs": {"tokens": list("abcd"), "token_logprobs": [-1.0] * 4}},
    "with infinities": lambda _: json.dumps(
        {"delta": {"content": " a b c d"}, "logprobs": {"content": [{"logprob": float("-inf")}] * 4}}
    ),
}


@pytest.mark.parametrize("kind", LISTED)
@pytest.mark.parametrize("claim", [None, 10, 40])
def test_log_probabilities_show_how_many_tokens_a_chunk_holds(kind: str, claim: int | None) -> None:
    """Four tokens a chunk: a server that counts its chunks, or nothing, bends neither length nor TPOT."""

    def chunk(number: int) -> Any:
        choice = LISTED[kind](number)
        if isinstance(choice, str):
            return b'{"choices":[%b]}' % choice.encode()
        return {"choices": [choice]}

    answer = parse(ten_words(chat("stop"), *([usage(claim)] if claim else []), each=chunk), max_tokens=50)
    assert (answer.status, answer.output_tokens, answer.unproven_tokens) == ("ok", 40, 0)
    assert (ttft_ms(answer), tpot_ms(answer)) == (100.0, 5.0)
    assert (answer.count_doubt is not None) is (claim == 10)


@pytest.mark.parametrize("odd", [None, [], "none", {"content": None}, {"content": "x"}, {"tokens": None}, 3])
def test_log_probabilities_of_other_kinds_say_nothing(odd: Any) -> None:
    answer = parse(ten_words(each=lambda _: {"choices": [{"index": 0, "delta": {"content": " w"}, "logprobs": odd}]}))
    assert (answer.status, answer.output_tokens, tpot_ms(answer)) == ("ok", 10, 20.0)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'[{"error": {"code": 429, "message": "no quota"}}]', "application/json", "no quota"),
        (data({"type": "message_delta", "delta": {"text": "w"}}), "text/event-stream", "message_delta"),
    ],
)
def test_what_is_no_answer_is_told_in_the_servers_words(body: bytes, kind: str, words: str) -> None:
    answer = parse([(100.0, body)], kind=kind)
    assert answer.status == "failed"
    assert words in (answer.error or "")
