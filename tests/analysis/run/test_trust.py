"""When a run is the client's own doing."""

from pathlib import Path
from typing import Any

import pytest

from kvload.analysis.records.loading import load
from kvload.analysis.run.trust import Trust, judge, saturated, worker_cpu
from tests.analysis.synthetic import arm


def judged(folder: Path, lag_s: float, ttft_s: float = 1.0, **manifest: Any) -> Trust:
    def sent(index: int) -> dict[str, float]:
        sched = index * 0.05
        return {"t_send_s": sched + lag_s, "t_first_s": sched + lag_s + ttft_s, "t_last_s": sched + lag_s + ttft_s + 1}

    run = arm(folder / "run", [10] * 50, change=sent, **manifest)
    return judge(load(run), run.manifest())


@pytest.mark.parametrize(
    ("lag_s", "ttft_s", "manifest", "bound"),
    [
        (0.009, 1.0, {}, False),
        (0.011, 1.0, {}, True),  # over 10 ms
        (0.004, 0.1, {}, False),
        (0.006, 0.1, {}, True),  # over 5 % of the median TTFT
        (0.001, 1.0, {"client": {"cpu_share": {"0": 0.5, "1": 0.95}}}, True),
        (0.001, 1.0, {"client": {"cpu_share": {"0": 0.5, "1": 0.85}}}, False),
        (0.500, 1.0, {"max_concurrency": 4}, False),  # waiting for a slot is not the client's lateness
    ],
)
def test_limits(tmp_path: Path, lag_s: float, ttft_s: float, manifest: dict[str, Any], bound: bool) -> None:
    found = judged(tmp_path, lag_s, ttft_s, **manifest)
    assert found.client_bound is bound
    assert bool(found.reasons) is bound
    assert found.lag_p99_s == pytest.approx(lag_s)


def test_a_busy_worker_is_named(tmp_path: Path) -> None:
    found = judged(tmp_path, 0.001, client={"cpu_share": {"0": 0.5, "1": 0.95}})
    assert found.reasons == ["worker 1 used 95 % of a core, over 90 %: raise --workers"]


@pytest.mark.parametrize(
    ("calibration", "bound"),
    [
        ({"ttft_error_p99_s": 0.002, "mock_cpu_share": 0.5, "limit": None}, False),
        ({"ttft_error_p99_s": 0.02, "mock_cpu_share": 0.5, "limit": "client"}, True),
        ({"ttft_error_p99_s": 0.02, "mock_cpu_share": 0.5, "limit": "mock"}, False),
        ({"ttft_error_p99_s": 0.02, "mock_cpu_share": 0.95}, False),
        ({"ttft_error_p99_s": 0.02, "mock_cpu_share": 0.5, "limit": "machine"}, False),
        ({"ttft_error_p99_s": None}, False),
    ],
)
def test_the_clients_own_error(tmp_path: Path, calibration: dict[str, Any], bound: bool) -> None:
    found = judged(tmp_path, 0.001, 0.2, calibration=calibration)
    assert found.client_bound is bound
    assert any("own TTFT error" in reason for reason in found.reasons) is bound


def test_what_a_calibration_was_limited_by() -> None:
    assert saturated({"limit": "client", "mock_cpu_share": 0.2}) is None
    assert saturated({"limit": None, "mock_cpu_share": 0.95}) == "the mock server"
    assert saturated({"limit": "machine", "mock_cpu_share": 0.2}) == "the machine"


def test_cpu_shares_as_the_manifest_has_them() -> None:
    assert worker_cpu({"cpu_share": [0.5, 0.25]}) == {"0": 0.5, "1": 0.25}
    assert worker_cpu({"workers": 2}) == {}


def test_nothing_sent_is_nothing_to_judge(tmp_path: Path) -> None:
    run = arm(tmp_path / "run", [])
    assert judge(load(run), run.manifest()).client_bound is None


@pytest.mark.parametrize(("late", "bound"), [(2, False), (20, True)])
def test_a_few_late_requests_do_not_brand_a_run(tmp_path: Path, late: int, bound: bool) -> None:
    def sent(index: int) -> dict[str, float]:
        lag_s = 0.05 if index < late else 0.0005
        start = index * 0.05 + lag_s
        return {"t_send_s": start, "t_first_s": start + 1.0, "t_last_s": start + 2.0}

    run = arm(tmp_path / "run", [10] * 200, change=sent)
    assert judge(load(run), run.manifest()).client_bound is bound


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"cpu_share": {"0": 0.05}}, "more of them would not help"),
        ({"cpu_share": {"0": 0.05}, "machine_busy_share": 0.97, "stolen_share": 0.0}, "cores were 97 % busy"),
        ({"cpu_share": {"0": 0.05}, "machine_busy_share": 0.5, "stolen_share": 0.2}, "taken by others"),
        ({"cpu_share": {"0": 0.8}, "machine_busy_share": 0.5, "stolen_share": 0.0}, "raise --workers"),
        ({}, "not measured"),
    ],
)
def test_advice_names_what_was_busy(tmp_path: Path, client: dict[str, Any], words: str) -> None:
    found = judged(tmp_path, 0.5, client=client)
    assert found.client_bound
    assert all(words in reason for reason in found.reasons)
    assert words == "raise --workers" or not any("raise --workers" in reason for reason in found.reasons)
