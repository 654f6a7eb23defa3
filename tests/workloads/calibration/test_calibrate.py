"""The calibration and the warm-up, against the mock server."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.address import Address
from kvload.errors import ServerError
from kvload.workloads.bench.floor import measure, readers
from kvload.workloads.calibration.cache import calibrate_once, rounded
from kvload.workloads.calibration.calibrate import MAX_RATE, Calibration, Load, calibrate, lateness_s, load_of
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.mock.truth import TrueAnswer, read_truth
from kvload.workloads.run.headers import child_environment, inherited_headers, request_headers
from kvload.workloads.run.plan import ReplayPlan, Sending
from kvload.workloads.run.warmup import warm_up
from tests.workloads.run.test_dispatch import plan

pytestmark = pytest.mark.slow


def test_the_client_is_checked_against_the_mocks_account() -> None:
    found = calibrate(Load(rate=20, tokens=16, ttft_s=0.05, itl_s=0.005, duration_s=1.0))
    assert (found.requests, found.failed, found.chunks, found.clock) == (20, 0, 320, "kernel")
    assert found.streams == pytest.approx(20 * 0.125)
    assert found.achieved_rate == pytest.approx(20, rel=0.2)
    figures = found.as_dict()
    # both witnesses agree to far better than the times they measured, however busy the machine is
    assert 0 <= figures["ttft_error_p50_s"] < 0.025
    assert 0 <= figures["itl_error_p50_s"] < 0.0025
    assert all(figures[name] is not None for name in figures if name != "limit")
    assert figures["mock_processes"] == 1


def test_the_load_of_a_schedule() -> None:
    load = load_of(plan([0.0, 0.5, 1.0, 1.5, 2.0], tokens=40), None)
    assert (load.rate, load.tokens) == (2.0, 40)
    assert load_of(plan([0.0] * 4, tokens=101), 10).streams == pytest.approx(10)
    assert load_of(plan([0.0]), None).rate >= 1


def measured(**changes: Any) -> Calibration:
    names = [field.name for field in dataclasses.fields(Calibration)]
    values: dict[str, Any] = dict.fromkeys(names, 0.0) | {"rate": 5.0, "workers": 1, "clock": "kernel"}
    return Calibration(**values | changes)


@pytest.mark.parametrize(
    ("shares", "limit"),
    [
        ({"cpu_share": 0.5, "mock_cpu_share": 0.5, "machine_cpu_share": 0.6}, None),
        ({"cpu_share": 0.95, "mock_cpu_share": 0.5, "machine_cpu_share": 0.6}, "client"),
        ({"cpu_share": 0.95, "mock_cpu_share": 0.95, "machine_cpu_share": 0.6}, "mock"),
        ({"cpu_share": 0.5, "mock_late_p99_s": 0.02}, "mock"),
        ({"cpu_share": 0.95, "mock_cpu_share": 0.95, "machine_cpu_share": 0.99}, "machine"),
        ({"cpu_share": None, "mock_cpu_share": None}, None),
    ],
)
def test_what_was_at_its_end(shares: dict[str, Any], limit: str | None) -> None:
    assert measured(**shares).as_dict()["limit"] == limit


def test_lateness_of_the_mock() -> None:
    load = Load(tokens=3, ttft_s=0.05, itl_s=0.01)
    answer = TrueAnswer(request_id="a", arrival_ns=1000, end_ns=0, writes_ns=[50_001_000, 62_001_000, 70_001_500])
    assert lateness_s([answer], load).tolist() == pytest.approx([0.0, 0.002, 5e-7])


@given(st.floats(1, MAX_RATE), st.integers(1, 256))
def test_loads_near_by_share_a_calibration(rate: float, tokens: int) -> None:
    load = rounded(Load(rate=rate, tokens=tokens))
    assert rate * 0.999999 <= load.rate <= max(rate * 1.11, 1.0)
    assert tokens <= load.tokens < tokens + 32
    assert rounded(load) == load


def test_a_load_is_calibrated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path))
    asked: list[tuple[Load, int]] = []

    def measure(load: Load, *, workers: int) -> Calibration:
        asked.append((load, workers))
        return measured(rate=load.rate, workers=workers)

    first = calibrate_once(Load(rate=10.1), workers=1, measure=measure)
    assert calibrate_once(Load(rate=10.9), workers=1, measure=measure) == first
    assert asked == [(Load(rate=11.0), 1)]
    assert calibrate_once(Load(rate=10.9), workers=2, measure=measure)["workers"] == 2
    assert calibrate_once(Load(rate=20.0), workers=1, measure=measure)["rate"] == 20.0
    (path,) = [path for path in tmp_path.rglob("*.json") if json.loads(path.read_text()) == first]
    # yesterday's is measured again, and so is what is no calibration
    for text in (json.dumps(first | {"measured_at": time.time() - 90_000}), "[]", "{", '{"measured_at": "x"}'):
        path.write_text(text)
        before = len(asked)
        assert calibrate_once(Load(rate=10.9), workers=1, measure=measure)["rate"] == 11.0
        assert len(asked) == before + 1
    monkeypatch.setenv("KVLOAD_STATE_DIR", "/proc/nowhere")
    assert calibrate_once(Load(rate=10.9), workers=1, measure=measure)["rate"] == 11.0


def test_a_mock_server_in_several_processes(tmp_path: Path) -> None:
    with MockProcess(MockSettings(ttft_s=0.01, itl_s=0.001), tmp_path / "truth", 3) as server:
        used = server.cpu_s()
        assert warm_up(plan([0.0]), server.address, 60, headers={}, at_once=30) == []
        pids = list(used)
    assert len(pids) == 3
    assert len(list(read_truth(tmp_path / "truth"))) == 60
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(ServerError):
        MockProcess(MockSettings(slots=2), processes=2)


def test_the_bare_readers_read_everything() -> None:
    load = Load(rate=40, tokens=16, ttft_s=0.01, itl_s=0.005, duration_s=0.5)
    with readers() as found:
        floors = [measure(name, command, load) for name, command in found.items()]
    assert "bare Python" in found
    for floor in floors:
        assert floor is not None
        assert 0 < floor.cpu_us_per_chunk < 10_000
        assert 0 <= floor.shared_reads < 1


def test_warming_up(tmp_path: Path) -> None:
    with MockProcess(MockSettings(ttft_s=0.01, itl_s=0.001), tmp_path / "truth") as server:
        planned = plan([0.0, 1.0, 2.0])
        assert warm_up(planned, server.address, 5, headers={}) == []
        broken = plan([0.0], prompt="a fault:http_500")
        problems = warm_up(broken, server.address, 2, headers={})
    assert len(problems) == 2
    assert all("http_500" in problem for problem in problems)
    truth = list(read_truth(tmp_path / "truth"))
    assert len(truth) == 7
    assert all(answer.request_id.startswith("kvload-warm-up-") for answer in truth)


def test_headers_travel_in_the_environment() -> None:
    assert request_headers({}, {"KVLOAD_API_KEY": "k"}) == {"Authorization": "Bearer k"}
    assert request_headers({"authorization": "mine"}, {"KVLOAD_API_KEY": "k"}) == {"authorization": "mine"}
    environment = child_environment({"A": "b"}, {"LOCUST_HOST": "x", "PATH": "p"})
    assert set(environment) - {"PYTHONPATH"} == {"PATH", "KVLOAD_HEADERS", "KVLOAD_WORKER_TOKEN"}
    assert inherited_headers(environment) == {"A": "b"}
    assert inherited_headers({"KVLOAD_API_KEY": "k"}) == {"Authorization": "Bearer k"}


def test_limits_on_concurrency_are_shared_out(tmp_path: Path) -> None:
    from kvload.errors import UsageError
    from kvload.workloads.run.plan import read_settings, spool

    planned = plan([0.0] * 4)
    folder = spool(
        ReplayPlan(planned=planned, address=Address.parse("http://h"), sending=Sending(workers=3, max_concurrency=8)),
        tmp_path,
    )
    settings = read_settings(folder)
    assert [settings.part_of(settings.sending.max_concurrency, shard) for shard in range(3)] == [3, 3, 2]
    assert settings.part_of(None, 0) is None
    for sending in (
        Sending(workers=3, max_concurrency=2),
        Sending(workers=3, concurrency=0),
        Sending(workers=3, concurrency=4, max_concurrency=4),
        Sending(workers=0),
    ):
        with pytest.raises(UsageError):
            ReplayPlan(planned=planned, address=Address.parse("http://h"), sending=sending)
