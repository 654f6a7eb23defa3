"""Every format against its fixture: what is told from the content, and the traps of each."""

import gzip
from pathlib import Path

import pytest

from kvload.errors import TraceError, UsageError
from kvload.workloads.traces.formats import detect_format, find_format, read_trace, table
from kvload.workloads.traces.reader import Head
from kvload.workloads.traces.trace import TraceRequest

FIXTURES = Path(__file__).parents[1] / "fixtures"

EXPECTED = {
    "azure_2023.csv": ("azure", 6),
    "azure_2024.csv": ("azure", 4),
    "azure_2025.csv.gz": ("azure", 3),
    "vidur.csv": ("vidur", 6),
    "vidur_lengths.csv": ("vidur", 2),
    "mooncake.jsonl": ("mooncake", 8),
    "mooncake_sessions.jsonl": ("mooncake", 5),
    "burstgpt_v1.csv": ("burstgpt", 4),
    "burstgpt_v2.csv": ("burstgpt", 3),
    "sharegpt.json": ("sharegpt", 4),
    "bailian.jsonl": ("bailian", 5),
    "vllm_custom.jsonl": ("vllm-custom", 3),
    "openai.jsonl": ("openai", 2),
    "openai_batch.jsonl": ("openai", 2),
    "aiperf_single.jsonl": ("aiperf", 4),
    "aiperf_multi.jsonl": ("aiperf", 4),
    "aibrix.jsonl": ("aibrix", 3),
    "evalscope.jsonl": ("evalscope", 3),
    "gsm8k.jsonl": ("gsm8k", 2),
    "mtbench.jsonl": ("mtbench", 4),
    "ifeval.jsonl": ("ifeval", 3),
    "humaneval.jsonl": ("humaneval", 1),
    "lm_eval_generate.jsonl": ("lm-eval", 2),
    "lm_eval_choices.jsonl": ("lm-eval", 1),
    "litellm.jsonl": ("request-log", 3),
    "openai_pairs.jsonl": ("request-log", 2),
    "kvload.jsonl": ("kvload", 6),
}


def read(name: str) -> list[TraceRequest]:
    return list(read_trace(FIXTURES / name))


def shape(requests: list[TraceRequest]) -> list[tuple[float | None, int | None, int | None]]:
    return [(request.arrival, request.input_length, request.output_length) for request in requests]


def test_every_fixture_is_listed_and_every_format_has_one() -> None:
    on_disk = {path.name for path in FIXTURES.iterdir() if path.name != "README.md"}
    assert on_disk == set(EXPECTED)
    assert {name for name, _ in EXPECTED.values()} == set(table())


@pytest.mark.parametrize("name", EXPECTED)
def test_format_is_told_from_content_and_all_rows_are_read(name: str, tmp_path: Path) -> None:
    nameless = tmp_path / "trace"
    nameless.write_bytes((FIXTURES / name).read_bytes())
    assert detect_format(nameless) == EXPECTED[name][0]
    requests = list(read_trace(nameless))
    assert len(requests) == EXPECTED[name][1]
    assert len({request.id for request in requests}) == len(requests)
    assert next((request.arrival for request in requests if request.arrival is not None), 0) == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_gzip_makes_no_difference(name: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress((FIXTURES / name).read_bytes()))
    if not name.endswith(".gz"):
        assert list(read_trace(packed)) == read(name)


def test_azure_2023_and_vidur_give_the_same_trace() -> None:
    assert (FIXTURES / "azure_2023.csv").read_bytes().count(b"\r\n") == 6
    assert not (FIXTURES / "azure_2023.csv").read_bytes().endswith(b"\n")
    assert shape(read("azure_2023.csv")) == shape(read("vidur.csv"))
    assert shape(read("azure_2023.csv"))[:2] == [(0.0, 374, 44), (4.314579, 396, 109)]


def test_azure_2024_zone_and_missing_fraction() -> None:
    assert shape(read("azure_2024.csv")) == [
        (0.0, 2162, 5),
        (0.007405, 2399, 6),
        (0.99007, 76, 15),
        (1.24007, 2376, 4),
    ]


def test_azure_2025_is_unpacked_and_keeps_the_seventh_digit() -> None:
    requests = read("azure_2025.csv.gz")
    assert [request.arrival for request in requests] == [0.0, 0.25, 1.9000001]
    assert [request.extra for request in requests] == [{"images": 1}, {"images": 0}, {"images": 3}]


def test_vidur_lengths_have_no_times() -> None:
    assert shape(read("vidur_lengths.csv")) == [(None, 374, 44), (None, 396, 109)]


def test_mooncake_is_in_milliseconds_with_blocks_of_512() -> None:
    requests = read("mooncake.jsonl")
    assert shape(requests)[:3] == [(0.0, 6758, 500), (0.0, 7322, 490), (0.0, 7236, 794)]
    for request in requests:
        assert request.block_size == 512
        assert request.block_ids is not None
        assert request.input_length is not None
        assert (len(request.block_ids) - 1) * 512 < request.input_length <= len(request.block_ids) * 512
    assert requests[0].block_ids == list(range(14))


def test_mooncake_extensions() -> None:
    first, second, blocks, tools, payload = read("mooncake_sessions.jsonl")
    assert (first.prompt, first.session, first.turn, first.think_time, first.arrival) == (
        "Hello there.",
        "s1",
        0,
        None,
        0,
    )
    assert (second.prompt, second.turn, second.think_time, second.arrival) == ("Go on.", 1, 1.5, None)
    assert (blocks.arrival, blocks.block_ids, blocks.extra) == (26.74975, [1, 2], {})
    assert blocks.sampling == {"priority": 3}
    assert tools.messages == [{"role": "user", "content": "Weather?"}]
    assert tools.sampling["tools"][0]["function"]["name"] == "weather"
    assert (payload.messages, payload.max_tokens) == ([{"role": "user", "content": "Hi"}], 9)
    assert payload.sampling == {"temperature": 0.5}


def test_mooncake_blocks_must_fit_the_length(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text('{"timestamp": 0, "input_length": 513, "output_length": 4, "hash_ids": [1]}\n')
    with pytest.raises(TraceError, match=r"'hash_ids' has 1 blocks where a prompt of 513 tokens makes 2 of 512"):
        list(read_trace(path))


def test_burstgpt_v1_marks_failed_requests() -> None:
    requests = read("burstgpt_v1.csv")
    assert shape(requests) == [(0, 472, 18), (40, 1087, 230), (113, 417, 276), (180, 1360, 0)]
    assert requests[3].extra == {"model": "ChatGPT", "log_type": "API log", "failed": True}
    assert requests[0].extra == {"model": "ChatGPT", "log_type": "Conversation log"}


def test_burstgpt_v2_starts_anywhere_and_has_sessions_only_in_conversations() -> None:
    requests = read("burstgpt_v2.csv")
    assert shape(requests) == [(0, 906, 446), (42.5, 310, 120), (94, 1401, 180)]
    session = "1722ac82-0a46-4bf0-aa08-89794e7a2b3f"
    assert [(request.session, request.turn) for request in requests] == [(session, 0), (None, None), (session, 1)]


def test_sharegpt_turns_and_variants() -> None:
    requests = read("sharegpt.json")
    assert [(request.id, request.session, request.turn, request.arrival) for request in requests] == [
        ("c1/0", "c1", 0, None),
        ("c1/1", "c1", 1, None),
        ("c2/0", "c2", 0, None),
        ("c4/0", "c4", 0, None),
    ]
    assert requests[0].messages == [{"role": "user", "content": 'Name a colour. Say "]" or \\ if you like: {['}]
    assert requests[1].messages == [{"role": "user", "content": "Another one."}]
    assert requests[1].extra == {"recorded_answer": "Red."}
    assert requests[2].messages == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is 6 x 7?"},
    ]
    assert requests[3].messages == [{"role": "user", "content": "Grüße, 世界"}]


def test_sharegpt_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(
        '{"id": 7, "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]}\n'
    )
    assert [(request.id, request.session) for request in read_trace(path)] == [("7/0", "7")]


def test_bailian_is_in_seconds_with_blocks_of_16_and_sessions_by_root() -> None:
    requests = read("bailian.jsonl")
    assert [request.arrival for request in requests] == [0.0, 0.386, 14.136, 28.886, 29.886]
    assert [(request.session, request.turn) for request in requests] == [
        ("159", 0),
        ("160", 0),
        ("159", 1),
        ("159", 2),
        ("7", 0),
    ]
    assert requests[0].block_size == 16
    assert requests[0].extra == {"type": "text", "turn": 1, "parent_chat_id": -1}


def test_vllm_custom() -> None:
    requests = read("vllm_custom.jsonl")
    assert [request.output_length for request in requests] == [10, 1520, None]
    assert requests[0].prompt == "What is the capital of India?"


def test_openai_requests_and_batches() -> None:
    first, second = read("openai.jsonl")
    assert (first.max_tokens, first.sampling, first.extra) == (32, {"temperature": 0.7, "user": "u1"}, {})
    assert (second.max_tokens, second.sampling) == (64, {"stop": ["\n"]})
    one, two = read("openai_batch.jsonl")
    assert (one.id, one.messages, one.max_tokens) == ("req-1", [{"role": "user", "content": "Hi"}], 5)
    assert (two.id, two.prompt_token_ids, two.max_tokens) == ("req-2", [5, 6, 7], 6)


def test_aiperf_single_turns_with_sessions() -> None:
    plain, several, first, second = read("aiperf_single.jsonl")
    assert (plain.arrival, plain.output_length, plain.session) == (0.0, 50, None)
    assert several.messages == [{"role": "user", "content": "Compare these.\nAnd those."}]
    assert (first.arrival, first.session, first.turn, first.think_time) == (2.0, "s", 0, None)
    assert (second.arrival, second.session, second.turn, second.think_time) == (None, "s", 1, 0.75)


def test_aiperf_conversations() -> None:
    requests = read("aiperf_multi.jsonl")
    assert [(each.session, each.turn, each.arrival, each.think_time) for each in requests] == [
        ("a", 0, 0.0, None),
        ("a", 1, None, 2.5),
        ("a", 2, None, None),
        ("b", 0, 0.25, None),
    ]
    assert requests[2].messages == [{"role": "user", "content": "Plain"}]
    assert requests[3].messages == [{"role": "user", "content": "x\ny"}]


def test_aibrix_has_several_requests_a_line() -> None:
    lengths_only, text, session = read("aibrix.jsonl")
    assert (lengths_only.arrival, lengths_only.input_length, lengths_only.output_length) == (0.0, 101, 20)
    assert lengths_only.prompt is None
    assert (text.arrival, text.prompt, text.output_length) == (0.0, "Tell me.", None)
    assert (session.arrival, session.session, session.output_length) == (1.0, "0", 8)


def test_evalscope_mixes_clocks_and_drops_headers() -> None:
    requests = read("evalscope.jsonl")
    assert [request.arrival for request in requests] == [0.0, 0.75, 3.25]
    assert [request.id for request in requests] == ["r-1", "1", "2"]
    assert (requests[0].output_length, requests[0].max_tokens) == (9, 16)
    assert "not-a-key" not in repr(requests)


def test_kvload_keeps_what_it_does_not_know() -> None:
    requests = read("kvload.jsonl")
    assert [request.arrival for request in requests] == [0.0, 0.5, 0.75, None, 1.75, 1.75]
    scored = requests[1]
    assert (scored.expected, scored.scorer, scored.task) == ("42", "numeric", "sum")
    assert (scored.sampling, scored.extra) == ({"temperature": 0.5}, {"colour": "blue"})
    assert (requests[2].sampling, requests[2].extra) == ({"stop": ["."]}, {"from": "here"})
    assert (requests[3].turn, requests[3].think_time) == (1, 1.5)


def test_format_can_be_named() -> None:
    path = FIXTURES / "vllm_custom.jsonl"
    assert [request.prompt for request in read_trace(path, "openai")] == [
        request.prompt for request in read_trace(path)
    ]
    with pytest.raises(UsageError, match="no such trace format: 'parquet'"):
        find_format(path, "parquet")


def test_an_unknown_file_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(TraceError, match="no trace format that kvload knows; its first row has: a, b"):
        detect_format(path)
    path.write_text("")
    with pytest.raises(TraceError, match="the trace is empty"):
        detect_format(path)


def test_two_formats_that_fit_are_not_guessed_between(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text('{"text": "a", "conversations": []}\n')
    assert sum(each.matches(Head(first={"text": "a", "conversations": []})) for each in table().values()) == 2
    with pytest.raises(TraceError, match="several trace formats fit"):
        detect_format(path)
