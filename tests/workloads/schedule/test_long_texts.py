"""Texts that may be too long for the server: counted by the server, else estimated, and never sent without a word."""

from typing import Any

import pytest

from kvload.errors import TraceError
from kvload.workloads.schedule.build import Schedule, build_schedule
from kvload.workloads.traces.trace import TraceRequest

LIMIT = 1024


def text(name: str, words: int, **fields: Any) -> TraceRequest:
    return TraceRequest(id=name, arrival=0.0, messages=[{"role": "user", "content": "word " * words}], **fields)


def words(request: TraceRequest) -> int:
    """A tokenizer of words."""
    messages = request.messages or [{"content": request.prompt}]
    return sum(len(str(message["content"]).split()) for message in messages) + 5


def plan(*requests: TraceRequest, **options: Any) -> Schedule:
    return build_schedule(requests, model="m", max_model_len=LIMIT, **options)


def test_the_server_is_asked_about_long_texts_alone() -> None:
    asked: list[str] = []

    def count(request: TraceRequest) -> int:
        asked.append(request.id)
        return words(request)

    schedule = plan(text("short", 10), text("fits", 900), count_tokens=count)
    assert asked == ["fits"]
    short, fits = schedule.planned
    assert (short.input_tokens, fits.input_tokens) == (None, 905)
    # what the text leaves is the answer's
    assert fits.max_tokens == LIMIT - 905


def test_a_text_that_does_not_fit_is_refused_dropped_or_left_alone() -> None:
    rows = [text("short", 10), text("long", 3000)]
    with pytest.raises(TraceError, match=r"1 of 2 requests do not fit .*'long', is 3005"):
        plan(*rows, count_tokens=words)
    dropped = plan(*rows, count_tokens=words, too_long="drop")
    assert [request.request_id for request in dropped.planned] == ["short"]
    assert "dropped" in dropped.notes[0]
    with pytest.raises(TraceError, match="never cut"):
        plan(*rows, count_tokens=words, too_long="cap")


def test_the_answer_of_a_text_is_capped() -> None:
    row = text("tight", 1000, max_tokens=200)
    with pytest.raises(TraceError, match=r"is 1005 \+ 200"):
        plan(row, count_tokens=words)
    for policy in ("cap", "scale"):
        (request,) = plan(row, count_tokens=words, too_long=policy).planned
        assert request.max_tokens == LIMIT - 1005


def test_without_a_count_lengths_are_estimated_and_told() -> None:
    rows = [text("short", 10), text("long", 3000)]
    for count in (None, lambda _request: None):
        schedule = plan(*rows, count_tokens=count)
        assert len(schedule.planned) == 2
        assert schedule.notes[0].startswith("1 of 2 texts may not fit the server's 1024 tokens (the longest, 'long'")
        dropped = plan(*rows, count_tokens=count, too_long="drop")
        assert [request.request_id for request in dropped.planned] == ["short"]
        assert "estimated" in dropped.notes[0]


def test_later_turns_go_with_the_turn_they_need() -> None:
    schedule = plan(
        text("a1", 3000, session="a", turn=0),
        text("b1", 5, session="b", turn=0),
        text("a2", 5, session="a", turn=1),
        text("b2", 5, session="b", turn=1),
        count_tokens=words,
        too_long="drop",
    )
    assert [request.request_id for request in schedule.planned] == ["b1", "b2"]


def test_a_conversation_of_lengths_grows_until_it_does_not_fit() -> None:
    """Turns of new parts alone: 300 + 100, then 300 more and 100, and so on; the third makes 1,100 + 100."""
    turns = [
        TraceRequest(
            id=f"t{turn}",
            arrival=None if turn else 0.0,
            session="s",
            turn=turn,
            input_length=300,
            output_length=100,
            continues=bool(turn),
        )
        for turn in range(4)
    ]
    with pytest.raises(TraceError, match=r"2 of 4 requests do not fit .*'t3', is 1500 \+ 100"):
        plan(*turns, mode="forced")
    dropped = plan(*turns, mode="forced", too_long="drop")
    assert [request.request_id for request in dropped.planned] == ["t0", "t1"]
    last = TraceRequest(id="t2", session="s", turn=2, input_length=180, output_length=100, continues=True)
    for mode in ("forced", "free"):
        *_, capped = plan(*turns[:2], last, mode=mode, too_long="cap").planned
        assert capped.max_tokens == LIMIT - (300 + 100 + 300 + 100 + 180)
