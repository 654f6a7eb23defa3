"""A run over several equal servers: who gets what, and that nothing is lost, against mock servers and their logs."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.address import Address
from kvload.balancing import Policy
from kvload.records import RequestRecord
from kvload.servers.simulator.cluster import Load, serve
from kvload.step_model import StepModel
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.run.dispatch import Dispatcher
from kvload.workloads.run.plan import ReplayPlan, Sending, decode_share, places_of, shard_path, spool
from kvload.workloads.schedule.request import PlannedRequest

COUNT = 24


def planned(sessions: int = 0, *, gap_s: float = 0.01, lengths: Sequence[int] = (4,) * COUNT) -> list[PlannedRequest]:
    return [
        PlannedRequest(
            index=index,
            offset_s=gap_s * index,
            request_id=f"r{index}",
            path="/v1/completions",
            body=b'{"model":"mock","prompt":[5,6,7],"max_tokens":%d,"stream":true,"stream_options":{"include_usage":true}}'
            % length,
            prompt_digest="0" * 32,
            max_tokens=length,
            session=f"s{index % sessions}" if sessions else None,
        )
        for index, length in enumerate(lengths)
    ]


def run_over(
    servers: int, requests: list[PlannedRequest], tmp_path: Path, slow: int | None = None, *, itl_s: float = 0.002
) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    with ExitStack() as stack:
        urls = []
        for number in range(servers):
            settings = MockSettings(ttft_s=1.0 if number == slow else 0.02, itl_s=itl_s)
            urls.append(stack.enter_context(MockProcess(settings, tmp_path / f"log{number}")).url)
        addresses = [Address.parse(url) for url in urls]
        dispatcher = Dispatcher(
            requests,
            addresses[0],
            others=addresses[1:],
            zero_ns=time.monotonic_ns() + 50_000_000,
            sink=lambda record, _: records.append(record),
        )
        try:
            dispatcher.run()
        finally:
            dispatcher.close()
    return records


@pytest.mark.parametrize("policy", ["round-robin", "sticky"])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_told_beforehand_is_the_same_for_any_number_of_workers(
    policy: Policy, workers: int, tmp_path: Path
) -> None:
    addresses = [Address.parse(f"http://h{number}") for number in range(3)]
    plan = ReplayPlan(
        planned=planned(sessions=5),
        address=addresses[0],
        others=addresses[1:],
        sending=Sending(workers=workers, policy=policy),
    )
    folder = spool(plan, tmp_path)
    told: dict[int, Any] = {}
    for shard in range(workers):
        told |= {one.index: one.server for one in decode_share(shard_path(folder, shard).read_bytes())}
    assert told == places_of(plan)
    if policy == "round-robin":
        assert told == {index: index % 3 for index in range(COUNT)}
    else:
        assert told == {index: index % 5 % 3 for index in range(COUNT)}


def test_requests_go_where_the_plan_says_and_records_name_the_server(tmp_path: Path) -> None:
    import msgspec

    requests = [msgspec.structs.replace(one, server=one.index % 3) for one in planned()]
    records = run_over(3, requests, tmp_path)
    assert {record.index: record.server for record in records} == {index: index % 3 for index in range(COUNT)}
    assert {record.status for record in records} == {"ok"}
    for number in range(3):
        text = (tmp_path / f"log{number}").read_text()
        seen = {index for index in range(COUNT) if f'"kvload-{index}"' in text}
        assert seen == {index for index in range(COUNT) if index % 3 == number}


def test_the_least_loaded_server_gets_the_next_request(tmp_path: Path) -> None:
    """A server that takes a second to answer keeps its requests under way, and so gets few more."""
    records = run_over(2, planned(), tmp_path, slow=0)
    assert {record.status for record in records} == {"ok"}
    counts = Counter(record.server for record in records)
    assert counts[1] > counts[0] > 0


def test_a_light_load_is_shared_as_the_simulator_says(tmp_path: Path) -> None:
    """Three servers with 20 ms a token; two answers take longer than four gaps between arrivals, the others a sixth."""
    lengths = [56, 2, 2, 2, 2, 56, 2, 2, 2, 2, 2, 2]
    records = run_over(3, planned(gap_s=0.25, lengths=lengths), tmp_path, itl_s=0.02)
    load = Load(np.linspace(0.0, 2.75, 12), np.full(12, 3), np.array(lengths))
    step_model = StepModel(
        method="none",
        coefficients=(0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        draws=[],
        hull={},
        steps=1,
        error_p50=0.0,
        error_p90=0.0,
        pool_tokens=1 << 16,
    )
    simulated = serve(load, step_model, replicas=3, policy="least-loaded").server.tolist()
    assert [record.server for record in sorted(records, key=lambda record: record.index)] == simulated
    assert simulated == [0, 1, 2, 1, 2, 0, 1, 2, 1, 2, 0, 1]  # the first server is left alone while it is busy
