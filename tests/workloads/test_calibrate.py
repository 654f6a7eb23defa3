"""The calibration and the warm-up, against the mock server."""

from pathlib import Path

import pytest

from kvload.workloads.calibrate import Load, calibrate, load_of
from kvload.workloads.headers import child_environment, inherited_headers, request_headers
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.mock.truth import read_truth
from kvload.workloads.plan import ReplayPlan
from kvload.workloads.warmup import warm_up
from tests.workloads.test_dispatch import plan


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


def test_warming_up(tmp_path: Path) -> None:
    with MockProcess(MockSettings(ttft_s=0.01, itl_s=0.001), tmp_path / "truth") as server:
        planned = plan([0.0, 1.0, 2.0])
        assert warm_up(planned, server.url, 5, headers={}) == []
        broken = plan([0.0], prompt="fault:http_500")
        problems = warm_up(broken, server.url, 2, headers={})
    assert len(problems) == 2
    assert all("http_500" in problem for problem in problems)
    truth = list(read_truth(tmp_path / "truth"))
    assert len(truth) == 7
    assert all(answer.request_id.startswith("kvload-warm-up-") for answer in truth)


def test_headers_travel_in_the_environment() -> None:
    assert request_headers({}, {"KVLOAD_API_KEY": "k"}) == {"Authorization": "Bearer k"}
    assert request_headers({"authorization": "mine"}, {"KVLOAD_API_KEY": "k"}) == {"authorization": "mine"}
    environment = child_environment({"A": "b"}, {"LOCUST_HOST": "x", "PATH": "p"})
    assert set(environment) - {"PYTHONPATH"} == {"PATH", "KVLOAD_HEADERS"}
    assert inherited_headers(environment) == {"A": "b"}
    assert inherited_headers({"KVLOAD_API_KEY": "k"}) == {"Authorization": "Bearer k"}


def test_limits_on_concurrency_are_shared_out(tmp_path: Path) -> None:
    from kvload.errors import UsageError
    from kvload.workloads.plan import read_settings, spool

    planned = plan([0.0] * 4)
    folder = spool(ReplayPlan(planned=planned, url="http://h", workers=3, max_concurrency=8), tmp_path)
    settings = read_settings(folder)
    assert [settings.share(settings.max_concurrency, shard) for shard in range(3)] == [3, 3, 2]
    assert settings.share(None, 0) is None
    for wrong in ({"max_concurrency": 2}, {"concurrency": 0}, {"concurrency": 4, "max_concurrency": 4}, {"workers": 0}):
        with pytest.raises(UsageError):
            ReplayPlan(planned=planned, url="http://h", **{"workers": 3, **wrong})  # type: ignore[arg-type]
