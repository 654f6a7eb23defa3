"""Files that were read wrongly somewhere: in another unit, as another kind of turn, or without what they ask for."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kvload.errors import TraceError, UsageError
from kvload.workloads.traces.formats import detect_format, read_trace
from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.samples import trace_path
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

LENGTHS = {"input_length": 100, "output_length": 10}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    file = path / "trace"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(path: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[list[TraceRequest], list[str]]:
    notes = Notes()
    requests = list(read_trace(write(path, rows), notes=notes, **options))
    return requests, notes.sentences()


def at(*times: object) -> list[dict[str, Any]]:
    return [{"timestamp": time, **LENGTHS} for time in times]


# --- units of time


@pytest.mark.parametrize(
    ("times", "arrivals", "is_told"),
    [
        ([0, 3000, 9000, 12000], [0, 3, 9, 12], False),  # Mooncake's own
        ([0, 105, 274], [0, 0.105, 0.274], False),  # AIPerf's example
        ([500.5, 27250.25, 30000], [0, 26.74975, 29.4995], False),  # float milliseconds
        ([0.0, 0.5, 1.25, 3.75], [0, 0.5, 1.25, 3.75], True),  # guidellm PR 948
        ([0.0, 10.5, 20.75], [0, 10.5, 20.75], True),
        (list(range(60)), list(range(60)), True),  # a trace within one "second"
        ([i // 4 for i in range(4000)], [i // 4 for i in range(4000)], True),  # whole seconds, many requests each
        ([1740830400, 1740830402, 1740830407], [0, 2, 7], True),  # seconds since 1970
        ([1740830400.25, 1740830402.5], [0, 2.25], True),
        ([1740830400000, 1740830402500], [0, 2.5], False),  # milliseconds since 1970
        ([1740830400000000, 1740830402500000], [0, 2.5], True),  # microseconds
        ([1740830400000000000, 1740830402500000100], [0, 2.5000001], True),  # nanoseconds, to the last tick
        ([7, 7, 7], [0, 0, 0], False),
        ([12.5], [0], False),
    ],
)
def test_mooncake_times_are_never_a_thousand_times_too_fast(
    tmp_path: Path, times: list[float], arrivals: list[float], is_told: bool
) -> None:
    requests, notes = read(tmp_path, at(*times))
    assert [request.arrival for request in requests] == arrivals
    assert any(note.startswith("times are read as") for note in notes) is is_told


def test_what_may_be_either_is_asked(tmp_path: Path) -> None:
    rows = at(*range(0, 1000, 10))  # 100 requests a second, or one every 10 s
    with pytest.raises(TraceError, match=r"may be seconds \(0\.1 .*or milliseconds \(100\)[\s\S]*--time-unit s"):
        read(tmp_path, rows)
    assert read(tmp_path, rows, time_unit="ms")[0][-1].arrival == 0.99
    assert read(tmp_path, rows, time_unit="s")[0][-1].arrival == 990
    with pytest.raises(UsageError, match="no such unit of time: 'min'"):
        read(tmp_path, rows, time_unit="min")


def test_a_named_unit_counts_for_pauses_too(tmp_path: Path) -> None:
    rows = [{"session_id": "s", "text": "a", "timestamp": 1}, {"session_id": "s", "text": "b", "delay": 2}]
    assert read(tmp_path, rows)[0][1].think_time == 0.002
    assert read(tmp_path, rows, time_unit="s")[0][1].think_time == 2


@pytest.mark.parametrize(
    ("times", "arrivals"),
    [
        ([0, 1500, 3000, 4500], [0, 1.5, 3, 4.5]),  # milliseconds in evalscope's log
        ([1740830400000, 1740830400500], [0, 0.5]),
        ([0, 2, 3], [0, 2, 3]),
        (["2025-03-01T12:00:00.250Z", 1740830401.25], [0, 1]),
    ],
)
def test_evalscope_may_count_milliseconds(tmp_path: Path, times: list[object], arrivals: list[float]) -> None:
    requests, _ = read(tmp_path, [{"timestamp": time, "body": {"prompt": "x"}} for time in times])
    assert [request.arrival for request in requests] == arrivals


# --- whole prompts and new parts


def turn(ids: list[int], length: int, **more: Any) -> dict[str, Any]:
    return {"session_id": "s", "input_length": length, "output_length": 100, "hash_ids": ids, **more}


@pytest.mark.parametrize(
    ("rows", "is_new"),
    [
        # the former's whole blocks come first: the whole prompt
        ([turn([1, 2, 3], 1500), turn([1, 2, 7, 8], 2000)], False),
        # other blocks: new in this turn, as AIPerf's sessions are
        ([turn([1, 2, 3], 1500), turn([7, 8], 900, delay=100)], True),
        ([turn([1, 2, 3], 1500), turn([7, 8, 9, 10], 2000, delay=100)], True),
        # too short to tell by blocks: told by the length
        ([turn([1], 300), turn([2, 3], 700)], False),
        ([turn([1], 300), turn([2], 350)], True),
        # one block more than the turn before, at the same place
        ([turn([1], 512), turn([1, 2], 1024)], False),
    ],
)
@pytest.mark.parametrize("times", [None, (0, 5000)])
def test_turns_that_do_not_begin_with_the_former_are_new_parts(
    tmp_path: Path, rows: list[dict[str, Any]], is_new: bool, times: tuple[int, int] | None
) -> None:
    if times:
        rows = [{**row, "timestamp": time} for row, time in zip(rows, times, strict=True)]
    (_, later), notes = read(tmp_path, rows)
    assert continues_conversation(later) is is_new
    assert any("read as what is new in them" in note for note in notes) is is_new


def test_a_text_that_repeats_the_turn_before_is_whole(tmp_path: Path) -> None:
    first = "User: What is the capital of France?\n"
    rows = [
        {"session_id": "s", "text_input": first, "output_length": 5},
        {"session_id": "s", "text_input": first + "Assistant: Paris.\nUser: And of Spain?\n", "output_length": 5},
        {"session_id": "s", "text_input": "Thanks.", "output_length": 5},
    ]
    (_, whole, new), notes = read(tmp_path, rows)
    assert (continues_conversation(whole), continues_conversation(new)) == (False, True)
    assert notes == ["1 row: later turns that repeat the turn before: read as whole prompts"]


def test_a_short_beginning_is_no_repetition(tmp_path: Path) -> None:
    rows = [{"session_id": "s", "text_input": text, "output_length": 5} for text in ("Hi", "Hit the lights")]
    assert continues_conversation(read(tmp_path, rows)[0][1])


def test_aiperf_says_which_messages_are_new(tmp_path: Path) -> None:
    def rows(mode: str) -> list[dict[str, Any]]:
        texts = ("Hello", "How are you?")
        return [
            {"session_id": "s", "message_mode": mode, "messages": [{"role": "user", "content": text}], "timestamp": 0}
            for text in texts
        ]

    assert continues_conversation(read(tmp_path, rows("delta"))[0][1])
    assert not continues_conversation(read(tmp_path, rows("history"))[0][1])
    with pytest.raises(TraceError, match="'message_mode' is 'both', not history or delta"):
        read(tmp_path, rows("both"))


# --- blocks


@pytest.mark.parametrize("size", [16, 64, 256, 1024])
def test_block_size_is_found_by_the_lengths(tmp_path: Path, size: int) -> None:
    lengths = (10 * size + 1, 3 * size, 25 * size - 1)
    rows = [
        {"timestamp": 1000 * i, "input_length": length, "output_length": 4, "hash_ids": list(range(-(-length // size)))}
        for i, length in enumerate(lengths)
    ]
    requests, notes = read(tmp_path, rows)
    assert {request.block_size for request in requests} == {size}
    assert notes == [f"blocks are read as {size} tokens, as the lengths show: every begun block has an id"]


def test_whole_blocks_only(tmp_path: Path) -> None:
    counts = {40: 2, 100: 6, 30: 1, 5: 0}
    rows = [{"input_length": length, "hash_ids": list(range(count))} for length, count in counts.items()]
    requests, notes = read(tmp_path, rows)
    assert requests[0].block_size == 16
    assert notes == ["blocks are read as 16 tokens, as the lengths show: whole blocks only have ids"]
    assert read(tmp_path, rows, block_tokens=16)[1] == []
    with pytest.raises(TraceError, match="--block-tokens"):
        read(tmp_path, rows, block_tokens=8)


# --- fields of the request


def test_what_a_row_asks_for_is_sent(tmp_path: Path) -> None:
    asked = {
        "ignore_eos": True,
        "min_tokens": 3,
        "stop_token_ids": [2],
        "structured_outputs": {"choice": ["a"]},
        "chat_template_kwargs": {"enable_thinking": False},
        "priority": 1,
        "guided_json": {"type": "object"},
    }
    row = {"messages": [{"role": "user", "content": "x"}], **asked, "extra_body": {"anything": 1}, "n": 1}
    for more in ({}, {"id": "r"}, {"timestamp": 1}):
        (request,), notes = read(tmp_path, [{**row, **more}])
        assert request.sampling == {**asked, "anything": 1}
        assert notes == []


def test_what_is_not_sent_is_named_once(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "x"}], "colour": "red", "stream": False}
    _, notes = read(tmp_path, [row, {**row, "shape": 1}])
    assert notes == ["fields that are not sent: colour (2), shape (1)"]


@pytest.mark.parametrize(
    "more", [{"n": 4}, {"best_of": 2}, {"extra_body": {"n": 2}}, {"n": "2"}, {"use_beam_search": True}]
)
def test_several_answers_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    for row in ({"prompt": "x"}, {"id": "a", "prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}):
        with pytest.raises(TraceError, match=r"trace:1: field '(n|best_of|use_beam_search)' is"):
            read(tmp_path, [{**row, **more}])


def test_an_extra_body_cannot_exchange_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="'extra_body' has 'messages', which is not for it to say"):
        read(tmp_path, [{"prompt": "x", "extra_body": {"messages": []}}])
    with pytest.raises(TraceError, match="'sampling' has 'prompt'"):
        read(tmp_path, [{"id": "a", "prompt": "x", "sampling": {"prompt": "y"}}])


def test_a_misspelt_key_is_named_once(tmp_path: Path) -> None:
    row = {"prompt": "x", "max_token": 5, "maxTokens": 5, "expcted": "y", "colour": "blue"}
    requests, notes = read(tmp_path, [{"id": "a", **row}, {"id": "b", **row}])
    assert notes == [
        "2 rows: 'max_token' is no field of a kvload trace and is ignored; is 'max_tokens' meant?",
        "2 rows: 'maxTokens' is no field of a kvload trace and is ignored; is 'max_tokens' meant?",
        "2 rows: 'expcted' is no field of a kvload trace and is ignored; is 'expected' meant?",
    ]
    assert requests[0].extra["colour"] == "blue"


# --- other names for the same things


def test_a_litellm_log(tmp_path: Path) -> None:
    path = Path(__file__).parent / "fixtures" / "litellm.jsonl"
    notes = Notes()
    text, lengths, failed = read_trace(path, notes=notes)
    assert (text.id, text.arrival, text.output_length, text.model) == ("chatcmpl-1", 0, 31, "gpt-4o")
    assert text.messages == [{"role": "user", "content": "Hello?"}]
    assert (lengths.arrival, lengths.input_length, lengths.output_length) == (1.25, 1200, 80)
    assert lengths.messages is None
    assert failed.extra == {"failed": True}
    assert notes.sentences() == ["1 row: the log says that the request failed"]


def test_openai_pairs_of_request_and_answer(tmp_path: Path) -> None:
    first, second = read_trace(Path(__file__).parent / "fixtures" / "openai_pairs.jsonl")
    assert (first.arrival, first.messages) == (0, [{"role": "user", "content": "Hi"}])
    assert (first.max_tokens, first.output_length, first.sampling) == (20, 3, {"temperature": 0.5})
    assert (second.arrival, second.input_length, second.output_length) == (2, 800, 300)


@pytest.mark.parametrize(
    "row",
    [
        {"created": 1740830400, "messages": [{"role": "user", "content": "x"}], "usage": {"completion_tokens": 7}},
        {"id": "a", "startTime": "2025-06-01 10:00:00", "prompt": "x", "completion_tokens": 7},
        {"start_time": 1740830400.5, "prompt": "x", "completion_tokens": 7, "endTime": 1740830409},
        {"timestamp": 1740830400, "messages": [{"role": "user", "content": "x"}], "usage": {"completion_tokens": 7}},
    ],
)
def test_logs_keep_their_times_and_lengths(tmp_path: Path, row: dict[str, Any]) -> None:
    (request,), _ = read(tmp_path, [row])
    assert (request.arrival, request.output_length) == (0, 7)


@pytest.mark.parametrize("name", ["output_tokens", "output_len", "completion_tokens", "expected_output_len"])
def test_answer_lengths_of_datasets(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, [{"prompt": "x", name: 9}])[0][0].output_length == 9


# --- ids


def test_ids_that_come_twice_are_numbered(tmp_path: Path) -> None:
    names = ["a", "b", "a", "a#2", "a", "3", "3"]
    requests, notes = read(tmp_path, [{"id": name, "prompt": "x"} for name in names])
    assert [request.id for request in requests] == ["a", "b", "a#2", "a#2#2", "a#3", "3", "3#2"]
    assert notes == ["4 rows: ids that other rows had before: numbered ('x', 'x#2' ...)"]


def test_row_numbers_and_given_ids_do_not_collide(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"timestamp": 1, "body": {"prompt": "x"}} for _ in range(4)]
    rows[3]["request_id"] = "1"
    assert [request.id for request in read(tmp_path, rows)[0]] == ["0", "1", "2", "1#2"]


# --- what the file is packed in


def zstd(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress, zstd])
def test_packed_files_are_read(tmp_path: Path, pack: Any) -> None:
    plain = b"".join(b'{"id": "%d", "prompt": "%s"}\n' % (i, b"word " * 50) for i in range(400))
    path = tmp_path / "packed"
    path.write_bytes(pack(plain))
    assert len(list(read_trace(path))) == 400
    path.write_bytes(pack(plain)[:-5])
    with pytest.raises(TraceError, match="cannot be read"):
        list(read_trace(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"PAR1rest", "is a Parquet file"),
        ('{"id": "a", "prompt": "x"}'.encode("utf-16"), "is UTF-16"),
        ('{"id": "a", "prompt": "x"}'.encode("utf-16-le"), "is UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "is an HTML page"),
        (gzip.compress(b"PK\x03\x04rest", mtime=0), "is a zip archive"),
        (b'{\n  "id": "a",\n  "prompt": "x"\n}\n', "spread over several lines"),
        (b'{"id": "a", "prompt": "x"}\n{\n  "id": "b"\n}\n', "trace:2: the JSON is spread over several lines"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        list(read_trace(path))


def test_an_array_is_read_as_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    rows = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}]
    path.write_text(json.dumps(rows, indent=2))
    assert detect_format(path) == "kvload"
    assert [request.id for request in read_trace(path)] == ["a", "b"]


def test_a_trace_comes_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"id": "a", "prompt": "x"}\n',))
    writer.start()
    assert [request.id for request in read_trace(trace_path(str(pipe)))] == ["a"]
    writer.join()
    done = subprocess.run(
        [sys.executable, "-m", "kvload", "traces", "convert", "-"],
        input=b'{"prompt": "x", "colour": 1}\n' * 2,
        capture_output=True,
        check=True,
    )
    assert done.stdout.count(b'"prompt":"x"') == 2
    assert b"fields that are not sent: colour (2)" in done.stderr


# --- more of what was met


def test_several_prompts_in_one_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="'prompt' holds 2 prompts"):
        read(tmp_path, [{"prompt": ["a", "b"]}])
    assert read(tmp_path, [{"prompt": ["a"]}])[0][0].prompt == "a"
    assert read(tmp_path, [{"prompt": [[1, 2]]}])[0][0].prompt_token_ids == [1, 2]


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert read(tmp_path, [{"prompt": "a", "max_tokens": -1}])[0][0].max_tokens is None


def test_sglangs_own_requests(tmp_path: Path) -> None:
    sampling = {"temperature": 0.5, "max_new_tokens": 9, "ignore_eos": True}
    (text, ids), notes = read(
        tmp_path, [{"text": "Hi", "sampling_params": sampling}, {"input_ids": [1, 2], "sampling_params": {}}]
    )
    assert (text.prompt, text.max_tokens) == ("Hi", 9)
    assert text.sampling == {"temperature": 0.5, "ignore_eos": True}
    assert (ids.prompt_token_ids, notes) == ([1, 2], [])


def test_pictures_are_named_as_not_sent(tmp_path: Path) -> None:
    _, notes = read(tmp_path, [{"text": "Hi", "image": "a.png"}])
    assert notes == ["fields that are not sent: image (1)"]
    found = Notes()
    assert len(list(read_trace(Path(__file__).parent / "fixtures" / "azure_2025.csv.gz", notes=found))) == 3
    assert found.sentences() == ["fields that are not sent: images of a request (2)"]


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    turns = [
        ("human", "Weather?"),
        ("function_call", '{"name": "weather"}'),
        ("observation", "rain"),
        ("gpt", "It rains."),
    ]
    requests, _ = read(
        tmp_path, [{"id": "c", "conversations": [{"from": role, "value": text} for role, text in turns]}]
    )
    assert [each.messages for each in requests] == [
        [{"role": "user", "content": "Weather?"}],
        [{"role": "tool", "content": "rain"}],
    ]


@pytest.mark.parametrize("value", [10**400, 1e300, -1, True, None, [], "soon", "nan"])
def test_no_time_is_told(tmp_path: Path, value: object) -> None:
    with pytest.raises(TraceError, match="field 'arrival' is"):
        read(tmp_path, [{"id": "a", "arrival": value, "prompt": "x"}] if value is not None else [{"arrival": [1]}])


def test_block_ids_of_any_size(tmp_path: Path) -> None:
    ids = [2**63, 2**64 + 1, 10**30]
    (request, later), _ = read(tmp_path, [turn(ids, 1500), turn(ids, 1536)])
    assert request.block_ids == ids
    assert not continues_conversation(later)


def test_date_times_of_logs(tmp_path: Path) -> None:
    times = ["2025-06-01 10:00:00,250", "2025-06-01T12:00:01.5+02:00", "2025-06-01T10:00:02.123456789Z"]
    requests, _ = read(tmp_path, [{"timestamp": time, "body": {"prompt": "x"}} for time in times])
    assert [request.arrival for request in requests] == [0, 1.25, 1.8734567]


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ("2025-06-01T10:00", "2025-06-01T10:01", 60),
        ("20250601T100000Z", "20250601T100001Z", 1),
        ("2025-06-01T10:00:00+02", "2025-06-01T08:00:01Z", 1),
        ("2025-06-01t10:00:00z", "2025-06-01t10:00:01.5z", 1.5),
        ("2025-06-01 10:00:00 UTC", "2025-06-01 10:00:02 GMT", 2),
        ("2025-06-01 10:00:00 +0000", "2025-06-01 12:00:03 +0200", 3),
        ("2025-06-01 10:00:00", "2025-06-01T12:00:01+02:00", 1),
    ],
)
def test_date_times_in_other_spellings(tmp_path: Path, first: str, second: str, apart: float) -> None:
    requests, _ = read(tmp_path, at(first, second))
    assert [request.arrival for request in requests] == [0, apart]


@pytest.mark.parametrize("time", ["2025-06-01T10:00.5", "2025-06-01T24:00:01", "2025-13-01T10:00:00", "10:00:00"])
def test_what_is_no_date_time_is_refused(tmp_path: Path, time: str) -> None:
    with pytest.raises(TraceError, match="not a time"):
        read(tmp_path, at(time))


def test_microseconds_are_asked_about(tmp_path: Path) -> None:
    rows = at(0, 3_000_000, 6_000_000, 9_100_000)
    with pytest.raises(TraceError, match=r"milliseconds .* or microseconds"):
        read(tmp_path, rows)
    requests, _ = read(tmp_path, rows, time_unit="us")
    assert [request.arrival for request in requests] == [0, 3, 6, 9.1]
    assert read(tmp_path, at(0, 3_000_000))[0][1].arrival == 3000


def test_a_fixed_unit_is_told_where_it_makes_an_odd_rate(tmp_path: Path) -> None:
    rows = [{"arrival": 1000.0 * number, "input_length": 5} for number in range(4)]
    requests, told = read(tmp_path, rows)
    assert requests[1].arrival == 1000
    assert any("read as seconds" in sentence and "--time-unit ms" in sentence for sentence in told)
    assert read(tmp_path, rows, time_unit="ms")[0][1].arrival == 1


@pytest.mark.parametrize("name", ["arrival_time", "timestamp_ms", "ts", "startTime", "arrived_at"])
def test_a_time_under_another_name_is_not_left_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match=f"'{name}', where this format has 'timestamp'"):
        read(tmp_path, [{name: 0, **LENGTHS}], format="mooncake")


@pytest.mark.parametrize("name", ["session_id", "sessionId", "conversation_id", "conversationId", "thread_id"])
def test_sessions_under_other_names(tmp_path: Path, name: str) -> None:
    requests, _ = read(tmp_path, [{**row, name: "a"} for row in at(0, 900)])
    assert [(request.session, request.turn) for request in requests] == [("a", 0), ("a", 1)]


@pytest.mark.parametrize("session", [[1], {"a": 1}, True, 1.5])
def test_a_session_that_is_no_name_is_refused(tmp_path: Path, session: object) -> None:
    with pytest.raises(TraceError, match="a session's name"):
        read(tmp_path, [{**row, "session_id": session} for row in at(0)])


def test_turns_behind_a_new_part_are_new_parts_too(tmp_path: Path) -> None:
    lengths = (1000, 100, 150, 2000)
    rows = [
        {"timestamp": 900 * turn, "session_id": "a", "input_length": length, "output_length": 10}
        for turn, length in enumerate(lengths)
    ]
    requests, told = read(tmp_path, rows)
    assert [continues_conversation(request) for request in requests[1:]] == [True, True, True]
    assert any("read as new as well" in sentence for sentence in told)


def test_what_a_conversation_says_for_all_its_turns(tmp_path: Path) -> None:
    row = {
        "session_id": "a",
        "temperature": 0.5,
        "model": "m",
        "system_message": "Be brief",
        "turns": [{"text": "x"}, {"text": "y", "temperature": 1}],
    }
    requests, told = read(tmp_path, [row])
    assert [request.sampling for request in requests] == [{"temperature": 0.5}, {"temperature": 1}]
    assert {request.model for request in requests} == {"m"}
    assert any("system_message" in sentence for sentence in told)


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_prompt_beside_the_messages(tmp_path: Path, name: str) -> None:
    turns = [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}, {"from": "human", "value": "r"}]
    requests, told = read(tmp_path, [{"id": "a", name: "Be brief", "tools": "[1]", "conversations": turns}])
    first, second = (request.messages for request in requests)
    assert first == [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "q"}]
    assert second == [{"role": "user", "content": "r"}]
    assert any("tools" in sentence for sentence in told)


def test_a_full_row_of_evalscopes_is_known(tmp_path: Path) -> None:
    row = {"timestamp": 1, "body": {"prompt": "x"}, "request_id": "r", "completion_tokens": 7}
    requests, _ = read(tmp_path, [row])
    assert detect_format(tmp_path / "trace") == "evalscope"
    assert (requests[0].id, requests[0].output_length) == ("r", 7)


def test_a_log_whose_requests_are_written_as_texts(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "x"}]
    body = {"messages": messages, "response_format": {"type": "json_object"}, "max_tokens": 5}
    log = {"startTime": "2024-05-01 10:00:00+00:00", "prompt_tokens": 5, "completion_tokens": 6, "model": "m"}
    rows = [
        {**log, "messages": {}, "proxy_server_request": json.dumps(body)},
        {**log, "messages": json.dumps(messages)},
    ]
    requests, _ = read(tmp_path, rows)
    assert [request.messages for request in requests] == [messages, messages]
    assert requests[0].sampling == {"response_format": {"type": "json_object"}}
    assert requests[0].max_tokens == 5


@pytest.mark.parametrize("asked", [{"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}])
def test_a_time_that_no_request_waits_for_is_told(tmp_path: Path, asked: dict[str, Any]) -> None:
    requests, told = read(tmp_path, [{**asked, "arrival_time": number} for number in range(3)])
    assert [request.arrival for request in requests] == [None] * 3
    assert any("'arrival_time' looks like a time" in sentence for sentence in told)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("sampling_params", "sampling"), ("output_tokens", "output_length"), ("conversation_id", "session")],
)
def test_other_formats_names_in_kvloads_own(tmp_path: Path, key: str, meant: str) -> None:
    _, told = read(tmp_path, [{"id": "a", "arrival": 0, "prompt": "x", key: {}}])
    assert any(f"'{key}' is no field" in sentence and f"is '{meant}' meant?" in sentence for sentence in told)


@pytest.mark.parametrize("pack", [dict, json.dumps])
def test_usage_within_a_logged_answer(tmp_path: Path, pack: Any) -> None:
    answer = pack({"usage": {"prompt_tokens": 5, "completion_tokens": 3}})
    requests, _ = read(tmp_path, [{"created": 1700000000, "request": {"prompt": "x"}, "response": answer}])
    assert (requests[0].input_length, requests[0].output_length) == (5, 3)
