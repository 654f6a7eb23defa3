"""Every kind of odd answer, from a real mock server through real sockets, against what is true of it."""

import threading
from collections.abc import Iterator

import pytest

from kvload.records import RequestRecord
from kvload.workloads.client.answer import parse_answer
from kvload.workloads.client.raw import RawStream
from kvload.workloads.mock.behaviour import ODDITIES, MockSettings
from kvload.workloads.mock.oddities import EXPECTED
from kvload.workloads.mock.server import MockServer
from kvload.workloads.run.live import meets
from kvload.workloads.run.recording import build_record
from tests.workloads.client.test_stream_client import Client
from tests.workloads.run.test_dispatch import plan

TOKENS = 6
TTFT_S, ITL_S = 0.1, 0.02


@pytest.fixture(scope="module", params=["/v1/completions", "/v1/chat/completions"])
def records(request: pytest.FixtureRequest) -> Iterator[dict[str, RequestRecord]]:
    """The record of each kind, all asked for at once."""
    server = MockServer(MockSettings(ttft_s=TTFT_S, itl_s=ITL_S))
    thread = threading.Thread(target=server.serve)
    thread.start()
    asking = Client(f"http://127.0.0.1:{server.port}", timeout_s=20.0)
    try:
        for name in ODDITIES:
            asking.start(f"fault:{name}", TOKENS, request.param)
        while len(asking.ended) < len(ODDITIES):
            asking.loop.turn(wait=True)
        yield {raw.key.removeprefix("fault:"): record_of(raw) for raw in asking.ended}
    finally:
        asking.loop.close()
        server.stop()
        thread.join(10)


def record_of(raw: RawStream) -> RequestRecord:
    planned = plan([0.0], tokens=TOKENS)[0]
    return build_record(planned, parse_answer(raw, TOKENS), due_ns=raw.t_start_ns, zero_ns=raw.t_start_ns)


def test_every_kind_is_expected_somehow() -> None:
    assert set(EXPECTED) == set(ODDITIES)


@pytest.mark.parametrize("name", ODDITIES)
def test_an_odd_answer_is_taken_for_what_it_is(records: dict[str, RequestRecord], name: str) -> None:
    record, expected = records[name], EXPECTED[name]
    assert (record.status, record.cause) == (expected.status, expected.cause), record.error
    if expected.counted:
        assert record.output_tokens == TOKENS
    assert (record.count_doubt is not None) == expected.doubted
    assert (record.cached_doubt is not None) == (name == "cached_absurd")
    assert record.cached_tokens is None
    if "out of pages" in ODDITIES[name] or (EXPECTED[name].cause == "stream_error" and name != "finish_error"):
        assert "out of pages" in (record.error or "")
    if expected.timed:
        assert record.ttft_s == pytest.approx(TTFT_S + expected.begun_late * ITL_S, abs=0.015)
        assert record.tpot_s == pytest.approx(ITL_S, abs=0.006)
    else:
        assert record.tpot_s is None
        assert not meets(record, {"tpot": 60.0})
