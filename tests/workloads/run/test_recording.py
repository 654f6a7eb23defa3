"""Which server a record says it came from."""

import pytest

from kvload.records import RequestRecord
from kvload.workloads.client.answer import Answer
from kvload.workloads.run.recording import build_record
from kvload.workloads.schedule.request import PlannedRequest

PLANNED = PlannedRequest(
    index=3, offset_s=0.0, request_id="r", path="/v1/completions", body=b"{}", prompt_digest="0" * 32, max_tokens=4
)


@pytest.mark.parametrize(
    ("said", "servers", "place", "name"),
    [
        ("fp8", ["", "full", "fp8"], 2, None),
        ("full", ["", "full", "fp8"], 1, None),
        (None, ["", "full", "fp8"], 0, None),
        ("new", ["", "full", "fp8"], 0, "new"),
        ("fp8", [], 0, "fp8"),
    ],
)
def test_the_server_that_answered_is_recorded(said: str | None, servers: list[str], place: int, name: str) -> None:
    answer = Answer(
        status="ok", cause=None, error=None, http_status=200, clock="user", t_send_ns=0, t_end_ns=1, server_name=said
    )
    record: RequestRecord = build_record(PLANNED, answer, due_ns=0, zero_ns=0, servers=servers)
    assert (record.server, record.server_name) == (place, name)
