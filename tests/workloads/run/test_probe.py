"""One request before the run: what is fatal, what is told, and what the server sees of it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvload.address import Address
from kvload.errors import ServerError
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.server import MockServer
from kvload.workloads.run.probe import probe
from kvload.workloads.run.warmup import likeness
from tests.workloads.run.test_dispatch import plan


@contextmanager
def serving(settings: MockSettings) -> Iterator[Address]:
    server = MockServer(settings)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield Address("http", "127.0.0.1", server.port)
    finally:
        server.stop()
        thread.join(10)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (None, None),
        ("usage_zero", "counted by chunks"),
        ("whole_json", "did not stream"),
        ("bursts", "in bursts"),
        ("event_error", "out of pages"),
        ("http_503", "not ready"),
    ],
)
def test_what_is_odd_is_told(fault: str | None, words: str | None) -> None:
    settings = MockSettings(ttft_s=0.01, itl_s=0.01, faults={} if fault is None else {fault: 1.0})
    with serving(settings) as address:
        found = probe(plan([0.0]), address, headers={})
    assert bool(found) == (words is not None)
    assert words is None or words in " ".join(found)


@pytest.mark.parametrize("fault", ["http_400"])
def test_what_is_refused_for_certain_ends_it(fault: str) -> None:
    with serving(MockSettings(faults={fault: 1.0})) as address, pytest.raises(ServerError, match="the mock refuses"):
        probe(plan([0.0]), address, headers={})


def test_nobody_there_ends_it() -> None:
    with pytest.raises(ServerError, match="no answer"):
        probe(plan([0.0]), Address("http", "127.0.0.1", 1), headers={})


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"model": "m", "prompt": list(range(100, 200)), "max_tokens": 50, "stream": True}, [100, 101, 102, 103]),
        ({"model": "m", "prompt": "long " * 50, "max_tokens": 50, "min_tokens": 50}, "Hello"),
        ({"model": "m", "messages": [{"role": "system", "content": "x" * 99}], "max_tokens": 9}, None),
    ],
)
def test_it_is_short_and_of_the_runs_kind(body: dict[str, object], prompt: object) -> None:
    from kvload.workloads.run.probe import small_body

    small = json.loads(small_body(json.dumps(body).encode(), 0))
    assert small["max_tokens"] == 4
    assert small["model"] == "m"
    assert "min_tokens" not in small
    assert small.get("prompt") == prompt
    if prompt is None:
        assert small["messages"] == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"prompt": "abc", "max_tokens": 3}, {"prompt": "~bc", "max_tokens": 3}),
        ({"prompt": "~bc"}, {"prompt": "+bc"}),
        ({"prompt": [5, 5, 7]}, {"prompt": [7, 5, 7]}),
        ({"prompt": [5]}, {"prompt": [5]}),
        ({"messages": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "user", "content": "~i"}]}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, None),
    ],
)
def test_a_warm_up_is_like_its_request_and_shares_no_prefix_with_it(
    asked: dict[str, object], sent: dict[str, object] | None
) -> None:
    assert json.loads(likeness(json.dumps(asked).encode())) == (sent or asked)
