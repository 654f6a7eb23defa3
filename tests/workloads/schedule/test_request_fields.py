"""What a trace asks for reaches the request: its mode, its fields, its model, its tools."""

import json
from typing import Any

import pytest

from kvload.errors import TraceError
from kvload.workloads.schedule.build import Schedule, build_schedule
from kvload.workloads.schedule.request import PlannedRequest, next_turn
from kvload.workloads.traces.trace import TraceRequest


def plan(*requests: TraceRequest, **options: Any) -> Schedule:
    return build_schedule(requests, model="m", **options)


def body(request: PlannedRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.body)
    return found


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


LENGTHS = TraceRequest(id="l", arrival=0.0, input_length=8, output_length=20)
UNKNOWN = TraceRequest(id="u", arrival=0.0, input_length=8)
TEXT = TraceRequest(id="t", arrival=0.0, messages=user("Hi"), output_length=20)
IDS = TraceRequest(id="i", arrival=0.0, prompt_token_ids=[1, 2], output_length=20)


@pytest.mark.parametrize(
    ("requests", "mode", "why"),
    [
        ([LENGTHS], "forced", "lengths and no texts"),
        ([TEXT], "free", "the trace has its prompts"),
        ([IDS], "free", "the trace has its prompts"),
        ([LENGTHS, TEXT], "free", "1 of 2 prompts are given"),
        ([LENGTHS, UNKNOWN], "free", "1 of 2 requests have no recorded length"),
    ],
)
def test_the_mode_is_what_the_trace_is_made_for(requests: list[TraceRequest], mode: str, why: str) -> None:
    schedule = plan(*requests, mode="auto")
    assert schedule.mode == mode
    assert schedule.mode_reason.startswith(f"mode {mode}: ")
    assert why in schedule.mode_reason
    assert all(request.ignore_eos is (mode == "forced") for request in schedule.planned)


def test_a_mode_that_was_asked_for_is_kept() -> None:
    for mode in ("free", "forced"):
        schedule = plan(LENGTHS, mode=mode)
        assert schedule.mode == mode
        assert schedule.mode_reason.startswith(f"mode {mode}, as asked")


def test_fields_reach_the_body_and_the_record() -> None:
    asked = {"ignore_eos": True, "min_tokens": 12, "stop_token_ids": [2], "chat_template_kwargs": {"x": 1}}
    (request,) = plan(TraceRequest(id="a", arrival=0.0, messages=user("x"), output_length=20, sampling=asked)).planned
    assert asked.items() <= body(request).items()
    # an answer that may not end by itself is as long as it was recorded
    assert (request.ignore_eos, request.min_tokens, request.max_tokens) == (True, 12, 20)


def test_at_least_and_at_most_agree() -> None:
    long = TraceRequest(id="a", arrival=0.0, prompt="x", sampling={"min_tokens": 2000})
    assert plan(long).planned[0].max_tokens == 2000
    with pytest.raises(TraceError, match="'b' wants at least 9 tokens and at most 5"):
        plan(TraceRequest(id="b", arrival=0.0, prompt="x", max_tokens=5, sampling={"min_tokens": 9}))


@pytest.mark.parametrize("field", [{"min_tokens": -1}, {"seed": "x"}, {"ignore_eos": "yes"}, {"min_tokens": 1.5}])
def test_a_field_of_another_kind_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match="request 'a': sampling field"):
        plan(TraceRequest(id="a", arrival=0.0, prompt="x", sampling=field))


def test_a_rows_model_is_asked_for_where_it_is_served() -> None:
    rows = [
        TraceRequest(id=str(i), arrival=0.0, prompt="x", model=name)
        for i, name in enumerate(["lora-a", "gpt-4", None, "m", "gpt-4"])
    ]
    calls: list[int] = []

    def served() -> list[str]:
        calls.append(1)
        return ["m", "lora-a"]

    schedule = plan(*rows, served_models=served)
    assert [body(request)["model"] for request in schedule.planned] == ["lora-a", "m", "m", "m", "m"]
    assert schedule.notes == ["models that the server does not serve, asked as 'm': gpt-4 (2)"]
    assert calls == [1]
    assert {body(request)["model"] for request in plan(*rows).planned} == {"m"}


def test_tools_stay_said_and_results_refer_to_the_calls_that_were_made() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    result = {"role": "tool", "tool_call_id": "recorded-1", "content": "rain"}
    schedule = plan(
        TraceRequest(id="a", arrival=0.0, session="s", turn=0, messages=user("Weather?"), sampling={"tools": tools}),
        TraceRequest(id="b", session="s", turn=1, messages=[result, *user("And now?")]),
    )
    first, second = schedule.planned
    calls = [{"id": "made-7", "name": "weather", "arguments": '{"city": "Oslo"}'}]
    sent = body(next_turn(second, first, text="", tool_calls=calls))
    assert sent["tools"] == tools
    assert sent["messages"] == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "made-7",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "made-7", "content": "rain"},
        {"role": "user", "content": "And now?"},
    ]
    named = body(next_turn(second, first, text="", tool_calls=[{"name": "weather", "arguments": "{}"}]))
    assert named["messages"][2]["tool_call_id"] == named["messages"][1]["tool_calls"][0]["id"]
    plain = body(next_turn(second, first, text="It rains."))
    assert plain["messages"][1] == {"role": "assistant", "content": "It rains."}


def test_recorded_tool_calls_are_sent_as_they_are() -> None:
    history = [
        *user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "w"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    (request,) = plan(TraceRequest(id="a", arrival=0.0, messages=history)).planned
    assert body(request)["messages"] == history


def test_a_new_part_of_made_up_tokens_follows_the_conversation() -> None:
    whole = TraceRequest(id="a", arrival=0.0, session="s", turn=0, input_length=6, output_length=3)
    new = TraceRequest(
        id="b", session="s", turn=1, input_length=4, output_length=2, block_ids=[9], block_size=16, continues=True
    )
    first, second = plan(whole, new, mode="auto").planned
    sent = body(next_turn(second, first, text="", token_ids=[5, 6, 7]))["prompt"]
    assert sent[:6] == body(first)["prompt"]
    assert sent[6:9] == [5, 6, 7]
    assert len(sent) == 13
