"""Schedules: every request's body and moment, conversations, limits, shards."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import TraceError
from kvload.records import prompt_digest
from kvload.workloads.run.plan import shard_of
from kvload.workloads.schedule.arrivals import ArrivalSpec
from kvload.workloads.schedule.build import Schedule, build_schedule
from kvload.workloads.schedule.prompts import PromptSpec, token_ids
from kvload.workloads.schedule.request import PlannedRequest, next_turn
from kvload.workloads.traces.trace import TraceRequest


def plan(*requests: TraceRequest, **options: Any) -> Schedule:
    return build_schedule(requests, model="m", **options)


def body(request: PlannedRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.body)
    return found


def lengths(*pairs: tuple[int, int]) -> list[TraceRequest]:
    return [
        TraceRequest(id=f"r{i}", arrival=float(i), input_length=n, output_length=m) for i, (n, m) in enumerate(pairs)
    ]


CHAT = TraceRequest(id="c", arrival=0.0, messages=[{"role": "user", "content": "Hi"}])


def test_a_length_only_request_becomes_token_ids() -> None:
    schedule = plan(*lengths((20, 5)), prompts=PromptSpec(seed=3))
    (request,) = schedule.planned
    found = body(request)
    assert found["prompt"] == token_ids(lengths((20, 5))[0], PromptSpec(seed=3))
    assert (request.path, request.input_tokens, request.index, request.offset_s) == ("/v1/completions", 20, 0, 0.0)
    assert request.prompt_digest == prompt_digest(found["prompt"])
    del found["prompt"]
    assert found == {
        "model": "m",
        "max_tokens": 256,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_goes_to_the_chat_endpoint_with_its_sampling() -> None:
    asked = TraceRequest(id="c", messages=[{"role": "user", "content": "Hi"}], sampling={"temperature": 0.7, "seed": 5})
    (request,) = plan(asked, arrivals=ArrivalSpec(kind="once")).planned
    assert request.path == "/v1/chat/completions"
    assert (request.temperature, request.top_p, request.seed) == (0.7, 1.0, 5)
    assert body(request)["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body(request)["temperature"], body(request)["seed"]) == (0.7, 5)
    (overridden,) = plan(asked, arrivals=ArrivalSpec(kind="once"), sampling={"temperature": 0}).planned
    assert (overridden.temperature, body(overridden)["temperature"]) == (0.0, 0)


def test_forced_lengths() -> None:
    schedule = plan(*lengths((8, 40), (8, 0)), mode="forced")
    first, second = schedule.planned
    assert (first.max_tokens, first.min_tokens, first.ignore_eos) == (40, 40, True)
    assert {"max_tokens": 40, "min_tokens": 40, "ignore_eos": True}.items() <= body(first).items()
    assert (second.max_tokens, second.min_tokens) == (1, 1)
    assert schedule.notes == ["1 row: a recorded length of 0 asks for 1 token"]
    with pytest.raises(TraceError, match="'c' has no output_length to force"):
        plan(CHAT, mode="forced")


def test_free_caps_are_generous_unless_told() -> None:
    one, other, told = lengths((8, 10), (8, 100), (8, 100))
    told = TraceRequest(id="told", arrival=5.0, input_length=8, output_length=100, max_tokens=30)
    assert [request.max_tokens for request in plan(one, other, told).planned] == [256, 400, 30]
    assert [request.max_tokens for request in plan(one, other, told, default_max_tokens=64).planned] == [64, 64, 30]
    assert plan(CHAT).planned[0].max_tokens == 1024
    assert plan(CHAT, max_model_len=1000).planned[0].max_tokens == 500
    clipped = plan(*lengths((900, 50)), max_model_len=1000)
    assert clipped.planned[0].max_tokens == 100
    assert clipped.notes == ["1 row: max_tokens is cut to what the server's limit leaves"]


def test_too_long_is_an_error_unless_chosen_otherwise() -> None:
    requests = lengths((900, 50), (990, 50), (2000, 700), (10, 5000))
    with pytest.raises(TraceError, match=r"3 of 4 requests do not fit the server's 1000 tokens .*'r3', is 10 \+ 5000"):
        plan(*requests, max_model_len=1000)
    dropped = plan(*requests, max_model_len=1000, too_long="drop")
    assert [request.request_id for request in dropped.planned] == ["r0"]
    capped = plan(*requests, max_model_len=1000, too_long="cap", mode="forced")
    assert [(request.input_tokens, request.max_tokens) for request in capped.planned] == [
        (900, 50),
        (950, 50),
        (500, 500),
        (10, 990),
    ]
    assert "capped" in capped.notes[0]
    with pytest.raises(TraceError, match="no request is left to send"):
        plan(*lengths((990, 50)), max_model_len=1000, too_long="drop")


def test_scaling_takes_one_factor_for_all_and_keeps_shared_blocks() -> None:
    requests = [
        TraceRequest(
            id="a", arrival=0, input_length=8000, output_length=100, block_ids=list(range(16)), block_size=512
        ),
        TraceRequest(id="b", arrival=1, input_length=1024, output_length=100, block_ids=[0, 99], block_size=512),
    ]
    schedule = plan(*requests, max_model_len=900, too_long="scale", mode="forced")
    first, second = schedule.planned
    assert (first.input_tokens, second.input_tokens) == (800, 102)
    assert body(first)["prompt"][:52] == body(second)["prompt"][:52]
    assert body(first)["prompt"][52:102] != body(second)["prompt"][52:102]
    assert "2 prompts scaled by 0.1" in schedule.notes[0]


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3000)), min_size=1, max_size=12),
    st.integers(2, 2000),
    st.sampled_from(["cap", "scale"]),
    st.sampled_from(["free", "forced"]),
)
def test_what_is_made_to_fit_fits(pairs: list[tuple[int, int]], limit: int, policy: Any, mode: Any) -> None:
    schedule = plan(*lengths(*pairs), max_model_len=limit, too_long=policy, mode=mode)
    assert len(schedule.planned) == len(pairs)
    for request in schedule.planned:
        assert request.input_tokens is not None
        assert request.input_tokens == len(body(request)["prompt"]) >= 1
        assert request.max_tokens >= 1
        assert request.input_tokens + request.max_tokens <= limit


def test_a_text_is_never_cut() -> None:
    long = TraceRequest(id="t", arrival=0, prompt="words", input_length=2000, max_tokens=10)
    with pytest.raises(TraceError, match="never cut"):
        plan(long, max_model_len=1000, too_long="cap")


def test_slices_start_at_zero_and_read_no_further() -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield TraceRequest(id=str(number), arrival=number * 0.5, input_length=4, output_length=2)
            number += 1

    schedule = build_schedule(endless(), model="m", arrivals=ArrivalSpec(start_s=100, end_s=102))
    assert [(request.request_id, request.offset_s) for request in schedule.planned] == [
        ("200", 0.0),
        ("201", 0.5),
        ("202", 1.0),
        ("203", 1.5),
    ]
    assert (schedule.trace.rows, schedule.trace.used) == (205, 4)
    limited = build_schedule(endless(), model="m", limit=3)
    assert (limited.trace.rows, limited.trace.used) == (3, 3)


def test_sampling_takes_whole_sessions() -> None:
    requests = [
        TraceRequest(
            id=f"{n}",
            arrival=n * 0.1,
            input_length=3,
            output_length=2,
            session=f"s{n % 100}",
            block_ids=[1],
            block_size=4,
        )
        for n in range(1000)
    ]
    schedule = plan(*requests, sample=0.3)
    kept = [request.session for request in schedule.planned]
    assert all(kept.count(session) == 10 for session in kept)
    # 100 sessions, each kept with 0.3: four standard deviations
    assert abs(len(set(kept)) - 30) <= 18
    other = plan(*requests, sample=0.3, arrivals=ArrivalSpec(seed=1))
    assert {request.session for request in other.planned} != set(kept)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(TraceError, match="id 'c' is given to 2 requests"):
        plan(CHAT, CHAT)


CONVERSATION = [
    TraceRequest(id="t0", arrival=0.0, messages=[{"role": "user", "content": "One?"}], session="s", turn=0),
    TraceRequest(id="other", arrival=0.5, input_length=3, output_length=2),
    TraceRequest(id="t1", messages=[{"role": "user", "content": "Two?"}], session="s", turn=1, think_time=1.5),
    TraceRequest(id="t2", messages=[{"role": "user", "content": "Three?"}], session="s", turn=2),
]


def test_a_conversation_is_built_from_the_real_answers() -> None:
    first, other, second, third = plan(*CONVERSATION).planned
    assert [request.previous for request in (first, other, second, third)] == [None, None, 0, 2]
    assert (second.body, second.think_time_s, second.offset_s, third.think_time_s) == (b"", 1.5, 0.0, 0.0)
    second = next_turn(second, first, text="Answer one.")
    third = next_turn(third, second, text="Answer two.")
    assert body(third)["messages"] == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Answer one."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Answer two."},
        {"role": "user", "content": "Three?"},
    ]
    assert {key: value for key, value in body(third).items() if key != "messages"} == {
        key: value for key, value in body(first).items() if key != "messages"
    }
    assert next_turn(other, first, text="x") is other


def test_the_digest_of_a_turn_is_that_of_what_is_sent() -> None:
    planned = plan(*CONVERSATION).planned
    built = next_turn(planned[2], planned[0], text="x")
    assert built.prompt_digest == prompt_digest(body(built)["messages"])
    assert next_turn(planned[2], planned[0], text="y").prompt_digest != built.prompt_digest
    unsent = [TraceRequest(id="t0", arrival=0.0, messages=[{"role": "user", "content": "Uno?"}], session="s", turn=0)]
    assert plan(*unsent, *CONVERSATION[1:]).planned[3].prompt_digest != planned[3].prompt_digest


def test_text_and_token_conversations() -> None:
    texts = plan(
        TraceRequest(id="a", arrival=0.0, prompt="Once", session="s"), TraceRequest(id="b", prompt=" more", session="s")
    ).planned
    assert body(next_turn(texts[1], texts[0], text=" upon"))["prompt"] == "Once upon more"
    first, second = plan(
        TraceRequest(id="a", arrival=0.0, input_length=4, output_length=3, session="s", turn=0),
        TraceRequest(id="b", input_length=2, output_length=3, session="s", turn=1),
    ).planned
    assert body(first)["return_token_ids"] is True
    assert second.follow_up is not None
    known = body(next_turn(second, first, text="", token_ids=[7, 8, 9]))["prompt"]
    assert known == [*body(first)["prompt"], 7, 8, 9, *second.follow_up.token_ids]
    unknown = body(next_turn(second, first, text="", output_tokens=3))["prompt"]
    assert len(unknown) == 9
    assert unknown == body(next_turn(second, first, text="", output_tokens=3))["prompt"]


def test_turns_that_hold_the_whole_conversation_are_sent_as_they_are() -> None:
    whole = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    first, second, third = plan(
        TraceRequest(id="a", arrival=0.0, messages=[{"role": "user", "content": "a"}], session="s"),
        TraceRequest(id="b", messages=whole, session="s"),
        TraceRequest(id="c", arrival=9.0, input_length=5, output_length=1, session="s"),
    ).planned
    assert body(second)["messages"] == whole
    assert (second.previous, second.follow_up, third.previous, third.offset_s) == (0, None, 1, 9.0)
    assert first.turn == 0
    assert (second.turn, third.turn) == (1, 2)


def test_turns_must_count_up_and_keep_their_kind() -> None:
    with pytest.raises(TraceError, match="turn 1 of 's' comes after turn 2"):
        plan(CONVERSATION[0], CONVERSATION[3], CONVERSATION[2])
    with pytest.raises(TraceError, match="its session changes between chat, text and token ids"):
        plan(CONVERSATION[0], TraceRequest(id="x", prompt="text", session="s", turn=1))


def test_turns_whose_beginning_is_cut_off_are_left_out_and_told() -> None:
    late = TraceRequest(id="late", arrival=20.0, input_length=3, output_length=2)
    schedule = plan(*CONVERSATION, late, arrivals=ArrivalSpec(start_s=10))
    assert [request.request_id for request in schedule.planned] == ["late"]
    assert schedule.notes == ["2 later turns left out: their conversation begins outside the part that is used"]


@given(st.integers(1, 40), st.integers(1, 7), st.randoms(use_true_random=False))
def test_shards_make_the_whole_and_keep_conversations_together(count: int, workers: int, random: Any) -> None:
    requests = [
        TraceRequest(
            id=str(n), arrival=float(n), input_length=2, output_length=1, session=random.choice([None, "a", "b"])
        )
        for n in range(count)
    ]
    planned = plan(*requests).planned
    whose = shard_of(planned, workers)
    shards = [[request for request in planned if whose[request.index] == worker] for worker in range(workers)]
    assert sorted(request.index for part in shards for request in part) == list(range(count))
    for part in shards:
        own = {request.index for request in part}
        assert all(request.previous in own for request in part if request.previous is not None)
        assert [request.index for request in part] == sorted(own)
    singles = [sum(request.session is None for request in part) for part in shards]
    assert np.sum(singles) == sum(request.session is None for request in requests)
