"""The dispatcher: what is sent when, and that every planned request leaves exactly one record."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from kvload.address import Address
from kvload.records import RequestRecord
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.mock.server import MockServer
from kvload.workloads.mock.truth import read_truth
from kvload.workloads.run.dispatch import Dispatcher, Limits
from kvload.workloads.schedule.build import build_schedule
from kvload.workloads.schedule.request import PlannedRequest
from kvload.workloads.traces.trace import TraceRequest


@contextmanager
def mock(settings: MockSettings, log: Path | None = None) -> Iterator[str]:
    server = MockServer(settings, log_path=log)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()
        thread.join(10)


def plan(offsets: list[float], tokens: int = 4, prompt: str = "a") -> list[PlannedRequest]:
    return [
        PlannedRequest(
            index=index,
            offset_s=offset,
            request_id=f"r{index}",
            path="/v1/completions",
            body=json.dumps({"prompt": f"{prompt} {index}", "max_tokens": tokens, "stream": True}).encode(),
            prompt_digest="d",
            max_tokens=tokens,
        )
        for index, offset in enumerate(offsets)
    ]


class Recorded:
    """A dispatcher with what it recorded."""

    def __init__(self, planned: list[PlannedRequest], url: str, limits: Limits | None = None) -> None:
        self.records: dict[int, RequestRecord] = {}
        self.chunks: dict[int, npt.NDArray[np.void]] = {}
        zero = time.monotonic_ns() + 50_000_000
        self.dispatcher = Dispatcher(planned, Address.parse(url), zero_ns=zero, sink=self._take, limits=limits)

    def _take(self, record: RequestRecord, chunks: npt.NDArray[np.void]) -> None:
        assert record.index not in self.records
        self.records[record.index] = record
        self.chunks[record.index] = chunks

    def run(self) -> dict[int, RequestRecord]:
        self.dispatcher.run()
        self.dispatcher.close()
        return self.records


def test_absolute_times() -> None:
    offsets = [0.0, 0.05, 0.05, 0.2]
    with mock(MockSettings(ttft_s=0.02, itl_s=0.001)) as url:
        records = Recorded(plan(offsets), url).run()
    assert [records[index].t_sched_s for index in range(4)] == offsets
    for record in records.values():
        assert record.status == "ok"
        assert record.t_send_s is not None
        assert record.t_first_s is not None
        assert record.t_sched_s <= record.t_send_s < record.t_first_s
        assert record.output_tokens == 4


def test_a_limit_on_requests_in_flight_delays_but_never_drops(tmp_path: Path) -> None:
    with mock(MockSettings(ttft_s=0.03, itl_s=0.0), tmp_path / "log") as url:
        records = Recorded(plan([0.0] * 6), url, Limits(max_concurrency=2)).run()
    spans = [(truth.arrival_ns, truth.end_ns) for truth in read_truth(tmp_path / "log")]
    assert max(sum(start <= at < end for start, end in spans) for at, _ in spans) == 2
    assert all(record.status == "ok" and record.t_sched_s == 0.0 for record in records.values())
    lags = sorted((record.t_send_s or 0.0) for record in records.values())
    assert lags[-1] > 0.05


def test_closed_loop_is_due_when_a_place_is_free(tmp_path: Path) -> None:
    with mock(MockSettings(ttft_s=0.02, itl_s=0.0), tmp_path / "log") as url:
        records = Recorded(plan([0.0] * 7), url, Limits(concurrency=3)).run()
    spans = [(truth.arrival_ns, truth.end_ns) for truth in read_truth(tmp_path / "log")]
    assert max(sum(start <= at < end for start, end in spans) for at, _ in spans) <= 3
    assert len(records) == 7
    assert max(record.t_sched_s for record in records.values()) > 0.03


def sessions() -> list[PlannedRequest]:
    def turn(name: str, number: int, text: str, **more: Any) -> TraceRequest:
        message = [{"role": "user", "content": text}]
        return TraceRequest(id=f"{name}{number}", session=name, turn=number, messages=message, max_tokens=3, **more)

    trace = [
        turn("s", 0, "one", arrival=0.0),
        turn("t", 0, "fault:http_500", arrival=0.01),
        turn("s", 1, "two", think_time=0.05),
        turn("t", 1, "never"),
        turn("s", 2, "three", think_time=0.0),
        turn("t", 2, "never"),
    ]
    return build_schedule(trace, model="mock").planned


def test_turns_wait_for_the_real_answer(tmp_path: Path) -> None:
    planned = sessions()
    bodies: list[bytes] = []
    with mock(MockSettings(ttft_s=0.02, itl_s=0.001), tmp_path / "log") as url:
        recorded = Recorded(planned, url)
        start = recorded.dispatcher.loop.start

        def spy(key: Any, path: str, body: bytes, request_id: str) -> Any:
            bodies.append(body)
            return start(key, path, body, request_id)

        recorded.dispatcher.loop.start = spy  # type: ignore[method-assign]
        records = recorded.run()
    by_id = {record.request_id: record for record in records.values()}
    first, second, third = by_id["s0"], by_id["s1"], by_id["s2"]
    assert [first.status, second.status, third.status] == ["ok", "ok", "ok"]
    assert second.t_sched_s == pytest.approx((first.t_end_s or 0) + 0.05, abs=1e-6)
    assert third.t_sched_s == pytest.approx(second.t_end_s, abs=1e-6)
    conversation = json.loads(bodies[-1])["messages"]
    assert [message["role"] for message in conversation] == ["user", "assistant", "user", "assistant", "user"]
    assert [conversation[1]["content"], conversation[3]["content"]] == [first.text, second.text]
    assert first.text
    # the other session's first turn failed: the later ones were never sent, and say why
    assert by_id["t0"].cause == "http_500"
    assert [(by_id[name].status, by_id[name].cause) for name in ("t1", "t2")] == [("unsent", "former_turn")] * 2


def test_what_is_not_done_after_the_drain_is_censored() -> None:
    with mock(MockSettings(ttft_s=0.01, itl_s=0.05)) as url:
        records = Recorded(plan([0.0, 0.0], tokens=1000), url, Limits(drain_s=0.2)).run()
    assert [(record.status, record.cause) for record in records.values()] == [("censored", "cut")] * 2
    assert all(0 < (record.output_tokens or 0) < 1000 for record in records.values())


@pytest.mark.parametrize("cut", [False, True])
def test_stopping(cut: bool) -> None:
    with mock(MockSettings(ttft_s=0.05, itl_s=0.01)) as url:
        recorded = Recorded(plan([0.0, 0.0, 5.0, 60.0], tokens=10), url)
        dispatcher = recorded.dispatcher
        dispatcher.begin()
        while dispatcher.counts.sent < 2:
            dispatcher.turn(wait=True)
        dispatcher.stop("interrupted", cut=cut)
        while not dispatcher.finished:
            dispatcher.turn(wait=True)
        dispatcher.close()
    statuses = [recorded.records[index].status for index in range(4)]
    assert statuses == (["censored"] * 2 if cut else ["ok"] * 2) + ["unsent"] * 2
    assert recorded.records[3].cause == "interrupted"
    assert recorded.records[3].t_send_s is None


def test_an_empty_share_is_finished() -> None:
    with mock(MockSettings()) as url:
        assert Recorded([], url).run() == {}


def test_answers_are_taken_apart_in_groups_and_a_turn_does_not_wait_for_its_group(tmp_path: Path) -> None:
    others = plan([number * 0.005 for number in range(80)], tokens=60, prompt="b")
    first, second = (request for request in sessions() if request.session == "s" and request.turn in {0, 1})
    first = msgspec.structs.replace(first, index=80)
    second = msgspec.structs.replace(second, index=81, previous=80)
    with MockProcess(MockSettings(ttft_s=0.2, itl_s=0.008)) as server:
        recorded = Recorded([*others, first, second], server.url)
        groups: list[int] = []
        parse = recorded.dispatcher._parse_some

        def spy() -> None:
            before = len(recorded.records)
            parse()
            groups.append(len(recorded.records) - before)

        gathers = recorded.dispatcher._gathers
        waited: list[bool] = []

        def spy_on_waiting() -> bool:
            found = gathers()
            if any(raw.key.planned.index == 80 for raw in recorded.dispatcher._raws):
                waited.append(found)
            return found

        recorded.dispatcher._parse_some = spy  # type: ignore[method-assign]
        recorded.dispatcher._gathers = spy_on_waiting  # type: ignore[method-assign]
        records = recorded.run()
    assert sorted(records) == list(range(82))
    assert {record.status for record in records.values()} == {"ok"}
    assert max(groups) > 2
    # its due time is counted from the end of the answer before, which was never left lying with others
    assert waited
    assert not any(waited)
    assert records[81].t_sched_s == pytest.approx((records[80].t_end_s or 0) + second.think_time_s, abs=1e-6)
    assert (records[81].t_send_s or 0) >= records[81].t_sched_s
