"""The walk of a sweep: by its rules alone, and against two mock servers, one with more slots than the other."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.analysis.sweep.model import Point
from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.experiment.options import RunOptions
from kvload.experiment.plan import make_arms
from kvload.experiment.sweep_plan import SweepPlan, check, needed, next_level
from kvload.experiment.sweep_results import points_of
from kvload.servers.engines.base import LaunchRequest
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.schedule.options import ScheduleOptions


def plan(**changes: Any) -> SweepPlan:
    values: dict[str, Any] = {
        "trace": "trace.jsonl",
        "trace_sha256": "0" * 64,
        "rows": 1000,
        "arms": make_arms(["none", "int8"], {}, floor="none"),
        "axis": "rate",
        "launch": LaunchRequest(engine="embedded"),
        "run": RunOptions(slo={"ttft": 0.5}),
    }
    return SweepPlan(**(values | changes))


def point(level: float, sent: int, met: int) -> Point:
    nothing: dict[float, float | None] = {50.0: None, 99.0: None}
    return Point(
        arm="none",
        level=level,
        repeat=0,
        run="r",
        sent=sent,
        met=met,
        kept_pace=1.0,
        answered_rps=level,
        output_tokens_per_s=1.0,
        good_tokens=1.0,
        ttft_s=nothing,
        tpot_s=nothing,
        e2e_s=nothing,
        duration_s=1.0,
    )


@pytest.mark.parametrize(("target", "requests"), [(0.99, 381), (0.9, 35), (0.5, 4), (1.0, 1)])
def test_a_target_needs_so_many_requests_to_be_proved(target: float, requests: int) -> None:
    from kvload.analysis.statistics.estimates import wilson

    assert needed(target) == requests
    if target < 1:
        low, just_short = wilson(requests, requests).low, wilson(requests - 1, requests - 1).low
        assert low is not None
        assert just_short is not None
        assert low >= target - 1e-9 > just_short


def test_a_rate_is_kept_up_for_the_duration_where_the_trace_allows() -> None:
    swept = plan(duration_s=30.0)
    assert swept.requests_at(4.0) == 120
    assert swept.requests_at(0.5) == 35  # what the target needs
    assert swept.requests_at(100.0) == 1000  # all there are
    assert plan(duration_s=30.0, run=RunOptions(schedule=ScheduleOptions(limit=60))).requests_at(4.0) == 60


def test_what_finds_an_empty_server_is_sent_beside_what_counts() -> None:
    swept = plan(duration_s=30.0, warm_up_s=10.0)
    assert swept.requests_at(4.0) == 160
    assert swept.requests_at(0.5) == 40
    closed = plan(axis="concurrency", warm_up_s=10.0)
    assert closed.requests_at(8.0) == 8 * 16 + 8


def test_the_warm_up_is_in_no_point(tmp_path: Path) -> None:
    from kvload.analysis.sweep.points import point_of
    from tests.analysis.synthetic import answer, write

    rng = np.random.default_rng(1)
    slow = [answer(rng, n, tokens=5, ttft_s=3.0 if n < 20 else 0.1) for n in range(60)]  # 20 requests a second
    run = write(tmp_path / "run", slow, slo={"ttft": 0.5})
    assert (point_of(run, 20.0).met, point_of(run, 20.0).sent) == (40, 60)
    warm = point_of(run, 20.0, warm_up_s=1.0)
    assert (warm.met, warm.sent, warm.warm_up) == (40, 40, 20)
    assert point_of(run, 20.0, first_left_out=20).met == point_of(run, 20.0, first_left_out=20).sent == 40
    assert point_of(run, 20.0, warm_up_s=60.0, at_least=35).sent == 35


def test_a_walk_over_given_rates_stops_where_attainment_is_gone() -> None:
    swept = plan(levels=(1.0, 2.0, 4.0, 8.0))
    assert next_level(swept, [], []) == 1.0
    assert next_level(swept, [point(1, 100, 100), point(2, 100, 30)], []) == 4.0
    assert next_level(swept, [point(1, 100, 100), point(2, 100, 30), point(4, 100, 2)], []) is None


def test_a_search_doubles_and_closes_in_and_its_repeats_walk_the_same_rates() -> None:
    swept = plan(start=1.0, tolerance=0.2)
    done: list[Point] = []
    while (level := next_level(swept, done, [])) is not None:
        done.append(point(level, 100, 100 if level <= 5 else 20))
    levels = [each.level for each in done]
    assert levels[:4] == [1.0, 2.0, 4.0, 8.0]
    best, worst = max(x for x in levels if x <= 5), min(x for x in levels if x > 5)
    assert worst / best <= 1.2
    again: list[Point] = []
    while (level := next_level(swept, again, levels)) is not None:
        again.append(point(level, 100, 0))
    assert [each.level for each in again] == sorted(levels)


def test_a_search_over_concurrency_tries_whole_numbers_once() -> None:
    swept = plan(axis="concurrency", start=1.0, tolerance=0.01)
    done: list[Point] = []
    while (level := next_level(swept, done, [])) is not None:
        done.append(point(level, 100, 100 if level <= 5 else 0))
    levels = [each.level for each in done]
    assert len(levels) == len(set(levels))
    assert {5.0, 6.0} <= set(levels)
    assert all(level == int(level) for level in levels)


def test_every_repeat_starts_one_arm_later() -> None:
    walks = plan(repeats=3).walks()
    assert [(arm.name, repeat) for arm, repeat in walks] == [
        ("none", 0), ("int8", 0), ("int8", 1), ("none", 1), ("none", 2), ("int8", 2)
    ]  # fmt: skip


def test_what_cannot_work_is_found_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="it takes 381"):
        check(plan(target=0.99, rows=100))
    with pytest.raises(UsageError, match="kivi4"):
        check(plan(arms=make_arms(["none", "kivi4"], {}, floor="none")))


def _trace(path: Path, rows: int) -> Path:
    lines = [{"timestamp": i / 10, "input_length": 8, "output_length": 4} for i in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_two_servers_of_different_size_are_told_apart_and_the_sweep_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One answers one request at a time, 0.2 s each (5 a second at most), the other 64 (320 a second)."""
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "150")
    trace = _trace(tmp_path / "trace.jsonl", 60)
    out = tmp_path / "sweep"
    small, large = MockSettings(ttft_s=0.2, itl_s=0.001, slots=1), MockSettings(ttft_s=0.2, itl_s=0.001, slots=64)
    with MockProcess(small) as a, MockProcess(large) as b:
        arms = ["--arm", f"small={a.url}", "--arm", f"large={b.url}"]
        options = ["--rates", "2,30", "--target", "0.8", "--duration", "2s", "--slo", "ttft=1.2s", "--mode", "forced"]
        assert run(["sweep", str(trace), *arms, *options, "--warmups", "0", "--out", str(out)]) == 0
        made = sorted(folder.name for folder in (out / "runs").iterdir())
        assert made == ["large-at-2-r0", "large-at-30-r0", "small-at-2-r0", "small-at-30-r0"]
        # one run is taken away: going on makes that one alone
        before = {folder.name: folder.stat().st_mtime_ns for folder in (out / "runs").iterdir()}
        (out / "runs" / "large-at-30-r0" / "manifest.json").unlink()
        assert run(["sweep", "--resume", str(out)]) == 0
    after = {folder.name: folder.stat().st_mtime_ns for folder in (out / "runs").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"large-at-30-r0"}
    result = json.loads((out / "results.json").read_text())
    curves = {curve["arm"]: curve for curve in result["curves"]}
    assert curves["small"]["baseline"]
    assert (curves["small"]["met_at"], curves["small"]["missed_at"]) == (2.0, 30.0)
    assert (curves["large"]["met_at"], curves["large"]["missed_at"]) == (30.0, None)
    with (out / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["load"]) for row in rows] == [
        ("small", "2.0"), ("small", "30.0"), ("large", "2.0"), ("large", "30.0")
    ]  # fmt: skip
    page = (out / "sweep.html").read_text()
    assert "<svg" in page
    assert "large carries" in page or "cannot be compared" in page
    capsys.readouterr()
    # judged by limits nobody meets, from the folder alone
    assert run(["sweep", str(out), "--slo", "ttft=1us", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [curve["met_at"] for curve in again["curves"]] == [None, None]


def test_an_arm_that_answers_nothing_is_no_curve_at_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))
    trace = _trace(tmp_path / "trace.jsonl", 60)
    out = tmp_path / "sweep"
    good, bad = MockSettings(ttft_s=0.01, itl_s=0.001), MockSettings(ttft_s=0.01, faults={"error_first": 1.0})
    with MockProcess(good) as a, MockProcess(bad) as b:
        arms = ["--arm", f"good={a.url}", "--arm", f"bad={b.url}", "--baseline", "good"]
        options = ["--rates", "40,60", "--duration", "1s", "--slo", "ttft=1s", "--mode", "forced", "--warmups", "0"]
        assert run(["sweep", str(trace), *arms, *options, "--no-calibrate", "--out", str(out)]) == 3
    assert "'bad' answered none of" in capsys.readouterr().err
    result = json.loads((out / "results.json").read_text())
    curves = {curve["arm"]: curve for curve in result["curves"]}
    assert curves["good"]["met_at"] == 60.0
    assert not curves.get("bad", {}).get("levels")
    # the folder alone says no more of it
    assert run(["sweep", str(out), "--json"]) == 0
    again = {curve["arm"]: curve for curve in json.loads(capsys.readouterr().out)["curves"]}
    assert not again.get("bad", {}).get("levels")


def test_a_dry_run_says_what_and_how_long_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))
    trace = _trace(tmp_path / "trace.jsonl", 60)
    out = tmp_path / "sweep"
    arms = ["--method", "none", "--method", "int8", "--engine", "embedded"]
    assert run(["sweep", str(trace), *arms, "--rates", "1,2", "--slo", "ttft=1s", "--dry-run", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "none, int8; requests/s: 1, 2" in said
    assert "about" in said
    assert not out.exists()


def test_a_sweep_without_limits_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = _trace(tmp_path / "trace.jsonl", 60)
    assert run(["sweep", str(trace), "--arm", "a=http://127.0.0.1:1"]) == 2
    assert "--slo" in capsys.readouterr().err


def test_points_are_read_from_complete_runs_alone(tmp_path: Path) -> None:
    assert points_of(plan(), tmp_path / "nothing") == []
