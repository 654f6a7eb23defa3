"""The mock server, looked at with a plain HTTP client and against its own account."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.address import Address
from kvload.errors import UsageError
from kvload.servers.watch.scrape import sample_once
from kvload.workloads.mock.answers import Request, steps
from kvload.workloads.mock.behaviour import FAULTS, HARMLESS, AnswerPlan, MockSettings, parse_faults, plan_answer
from kvload.workloads.mock.server import MockServer
from kvload.workloads.mock.truth import read_truth


@contextmanager
def running(settings: MockSettings, log: Path | None = None) -> Iterator[MockServer]:
    server = MockServer(settings, log_path=log)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)


def ask(server: MockServer, body: dict[str, Any], path: str = "/v1/completions") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"X-Request-Id": "r7"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def events(body: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_stream_has_every_token_and_usage(tmp_path: Path) -> None:
    body = {"prompt": [1, 2, 3], "max_tokens": 5, "stream": True, "return_token_ids": True}
    body["stream_options"] = {"include_usage": True}
    with running(MockSettings(ttft_s=0.01, itl_s=0.001, tokens_per_chunk=2), tmp_path / "log") as server:
        status, answer = ask(server, body)
    *chunks, usage = events(answer)
    assert status == 200
    assert [len(chunk["choices"][0]["token_ids"]) for chunk in chunks] == [2, 2, 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    (truth,) = read_truth(tmp_path / "log")
    assert (truth.request_id, truth.tokens, truth.whole, len(truth.writes_ns)) == ("r7", 5, True, 3)


def test_its_prefix_cache_tells_what_it_held_of_a_prompt_in_answers_and_in_its_metrics() -> None:
    shared = list(range(10))
    asked = [
        ([*shared, 90, 91], 0),
        ([*shared, 80, 81], 8),  # two blocks of four: the third differs
        (shared[:8], 4),  # never the whole prompt
        ([*shared[:4], 70, *shared[5:]], 4),
        ([7, *shared[1:]], 0),  # blocks that are the same behind another one are others
        ([*shared, 90, 91, 92], 12),
    ]
    with running(MockSettings(ttft_s=0.0, itl_s=0.0, prefix_block=4)) as server:
        for prompt, cached in asked:
            body = {"prompt": prompt, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
            *_, last = events(ask(server, body)[1])
            assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": cached}, prompt
        sample = sample_once(Address.parse(f"http://127.0.0.1:{server.port}"), "vllm")
    assert sample.prefix_queries == sum(len(prompt) for prompt, _ in asked)
    assert sample.prefix_hits == sum(cached for _, cached in asked)


def test_words_of_a_chat_are_cached_as_well() -> None:
    body = {"messages": [{"role": "user", "content": "a b c d e f g h i"}], "max_tokens": 2}
    with running(MockSettings(ttft_s=0.0, itl_s=0.0, prefix_block=4)) as server:
        said = [json.loads(ask(server, body, "/v1/chat/completions")[1])["usage"] for _ in range(2)]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in said] == [0, 8]


def test_the_log_keeps_the_promised_times(tmp_path: Path) -> None:
    with running(MockSettings(ttft_s=0.05, itl_s=0.02), tmp_path / "log") as server:
        before = time.monotonic_ns()
        ask(server, {"prompt": "a", "max_tokens": 4, "stream": True})
        after = time.monotonic_ns()
    (truth,) = read_truth(tmp_path / "log")
    # the client may see the end before the server has read its clock for it
    assert before < truth.arrival_ns < truth.writes_ns[0] < truth.writes_ns[-1] < after
    assert truth.writes_ns[-1] < truth.end_ns
    # never early: deadlines are absolute from the arrival on (the clock tie may be off by some microseconds)
    for number, written in enumerate(truth.writes_ns):
        assert written >= truth.arrival_ns + 50_000_000 + number * 20_000_000 - 100_000


def test_chat_starts_with_a_chunk_that_has_only_a_role() -> None:
    with running(MockSettings(ttft_s=0.001, itl_s=0.001)) as server:
        _, answer = ask(
            server,
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": True},
            "/v1/chat/completions",
        )
    first, *rest = events(answer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [bool(chunk["choices"][0]["delta"]["content"]) for chunk in rest] == [True, True]


def test_without_stream_the_answer_comes_whole() -> None:
    with running(MockSettings(ttft_s=0.001, itl_s=0.001)) as server:
        status, answer = ask(server, {"prompt": "a b", "max_tokens": 3})
        assert ask(server, {"prompt": [1] * 10, "max_tokens": 1 << 21})[0] == 400
        assert ask(server, {"prompt": "a", "max_tokens": "many"})[0] == 400
        assert ask(server, {}, "/nowhere")[0] == 404
    assert status == 200
    assert json.loads(answer)["usage"]["completion_tokens"] == 3


def test_slots_make_requests_wait(tmp_path: Path) -> None:
    with running(MockSettings(ttft_s=0.05, itl_s=0.0, slots=1), tmp_path / "log") as server:
        body = {"prompt": "a", "max_tokens": 1, "stream": True}
        threads = [threading.Thread(target=ask, args=(server, body)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    firsts = sorted(truth.writes_ns[0] for truth in read_truth(tmp_path / "log"))
    assert all(later - earlier >= 49_000_000 for earlier, later in itertools.pairwise(firsts))


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_shows_in_the_log(fault: str, tmp_path: Path) -> None:
    with running(MockSettings(ttft_s=0.002, itl_s=0.001), tmp_path / "log") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.3)
        whole = True
        try:
            body = json.dumps({"prompt": f"fault:{fault}", "max_tokens": 8, "stream": True})
            connection.request("POST", "/v1/completions", body)
            response = connection.getresponse()
            whole = response.status == 200 and response.read().endswith(b"data: [DONE]\n\n")
        except (http.client.HTTPException, OSError, ValueError):
            whole = False
        finally:
            connection.close()
    (truth,) = read_truth(tmp_path / "log")
    assert truth.fault == fault
    assert truth.whole == (fault in HARMLESS)
    # an error inside a stream that is otherwise whole is exactly what a careless client takes for success
    assert whole == (fault in HARMLESS or fault in {"stream_error", "garbage"})


@given(
    tokens=st.integers(1, 300),
    per_chunk=st.sampled_from([1, 2, 3, 7, 300]),
    chat=st.booleans(),
    ids=st.booleans(),
    usage=st.booleans(),
    first_word=st.integers(0, 1 << 32),
)
def test_the_cheap_way_to_plain_answers_is_the_general_one(
    tokens: int, per_chunk: int, chat: bool, ids: bool, usage: bool, first_word: int
) -> None:
    settings = MockSettings(tokens_per_chunk=per_chunk)
    request = Request(prompt="a b", stream=True, return_token_ids=ids, stream_options={"include_usage": usage})
    chunks = -(-tokens // per_chunk)
    exact = AnswerPlan(None, [1.0] * chunks, first_word)
    plain = AnswerPlan(None, None, first_word)
    assert list(steps(request, chat, tokens, plain, settings)) == list(steps(request, chat, tokens, exact, settings))


def test_the_same_request_is_always_treated_alike() -> None:
    settings = MockSettings(jitter=0.5, faults={"reset": 0.3, "stall": 0.3}, seed=5)
    plans = [plan_answer(settings, b"body %d" % number, 4) for number in range(400)]
    assert plans == [plan_answer(settings, b"body %d" % number, 4) for number in range(400)]
    resets = sum(plan.fault == "reset" for plan in plans)
    assert 80 < resets < 160
    assert any(plan.fault is None for plan in plans)


@pytest.mark.parametrize("text", ["nonsense=1", "reset=2", "reset=x", "reset=0.7,stall=0.7"])
def test_wrong_faults_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        MockSettings(faults=parse_faults(text))
