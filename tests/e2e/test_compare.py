"""``kvload compare`` with real processes: mock servers of known timing as arms, and a resumed experiment."""

import csv
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Kvload

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    rows = [{"id": f"r{i}", "arrival": 0.02 * i, "input_length": 40, "output_length": 8} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def arms(start_mock: Callable[..., str]) -> list[str]:
    """A server, and one that takes 150 ms longer to its first token and is otherwise equal."""
    fast, slow = start_mock("--ttft", "50ms", "--itl", "5ms"), start_mock("--ttft", "200ms", "--itl", "5ms")
    return ["--arm", f"fast={fast}", "--arm", f"slow={slow}", "--baseline", "fast"]


def test_a_known_difference_is_found_and_an_equal_arm_is_not(
    kvload: Kvload, trace: Path, arms: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "experiment"
    options = ["--max-tokens", "8", "--slo", "ttft=120ms", "--repeats", "2"]
    done = kvload("compare", trace, *arms, *options, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "comparison.json").read_text())
    by_name = {change["name"]: change for change in found["comparisons"]}
    assert set(by_name) == {"fast (again)", "slow"}
    assert by_name["slow"]["latency"]["ttft"]["relative"]["estimate"] > 1.0  # from about 50 ms to about 200 ms
    assert abs(by_name["fast (again)"]["latency"]["ttft"]["relative"]["estimate"]) < 1.0
    assert found["figures"]["slow"]["attainment"] == 0.0
    with (out / "pairs.csv").open(newline="") as file:
        pairs = [row for row in csv.DictReader(file) if row["arm"] == "slow"]
    assert len(pairs) == 80
    parts = ("queueing_s", "prefill_s", "speed_s", "length_s")
    for row in pairs:
        change = float(row["e2e_s"]) - float(row["base_e2e_s"])
        assert sum(float(row[part] or 0) for part in parts) == pytest.approx(change, abs=1e-6)
    page = (out / "comparison.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")
    assert len(page) < 2_000_000


def test_with_a_page_runs_start_and_end_by_themselves(
    kvload: Kvload, trace: Path, arms: list[str], tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    short = ["--limit", "4", "--repeats", "1", "--max-tokens", "8", "--no-floor", "--warmups", "0"]
    page = ["--web", "--web-port", str(port)]
    done = kvload("compare", trace, *arms, *short, *page, "--sample", "1", "--drain", "30s", "--out", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    assert f"http://127.0.0.1:{port}/kvload/" in done.stderr
    assert len(list((tmp_path / "e" / "runs").iterdir())) == 2


def test_a_folder_and_its_runs_can_be_compared_again(
    kvload: Kvload, trace: Path, arms: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "experiment"
    options = ["--max-tokens", "8", "--no-floor", "--repeats", "1"]
    first = kvload("compare", trace, *arms, *options, "--out", out)
    assert first.returncode == 0, first.stderr
    again = kvload("compare", out)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    runs = sorted((out / "runs").iterdir())
    assert kvload("compare", *runs, "--fail-if", "slow:ttft.mean>0").returncode in {0, 1}


def test_a_dry_run_prints_the_plan_and_sends_nothing(
    kvload: Kvload, trace: Path, arms: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "experiment"
    done = kvload("compare", trace, *arms, "--repeats", "2", "--dry-run", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "6 runs" in done.stderr
    assert not out.exists()


def test_an_interrupted_experiment_is_resumed_without_repeating_what_is_complete(
    kvload: Kvload, environ: dict[str, str], trace: Path, arms: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "experiment"
    options = ["compare", str(trace), *arms, "--max-tokens", "8", "--no-floor", "--repeats", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "kvload", *options], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (out / "runs" / "r0-slow").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    first = (out / "runs" / "r0-fast" / "manifest.json").read_bytes()
    resumed = kvload("compare", "--resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "runs" / "r0-fast" / "manifest.json").read_bytes() == first
    folders = {path.name for path in (out / "runs").iterdir() if "unfinished" not in path.name}
    assert folders == {"r0-fast", "r0-slow", "r1-fast", "r1-slow"}


def test_runs_of_different_traces_are_refused(kvload: Kvload, arms: list[str], trace: Path, tmp_path: Path) -> None:
    url = arms[1].partition("=")[2]
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "r0", "arrival": 0, "input_length": 41, "output_length": 8}\n', encoding="utf-8")
    for source, name in ((trace, "a"), (other, "b")):
        done = kvload("replay", source, "--url", url, "--limit", "1", "--max-tokens", "8", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    refused = kvload("compare", tmp_path / "a", tmp_path / "b")
    assert refused.returncode == 2
    assert "r0" in refused.stderr
    assert "prompt" in refused.stderr


def test_capacity_is_found_where_the_server_runs_out_of_slots(
    kvload: Kvload, start_mock: Callable[..., str], trace: Path, tmp_path: Path
) -> None:
    """Two slots of 50 ms + 7 x 10 ms each carry about 17 requests a second; beyond that they wait."""
    url = start_mock("--ttft", "50ms", "--itl", "10ms", "--slots", "2")
    options = ["--slo", "ttft=400ms", "--start-rate", "4", "--most", "5", "--tolerance", "0.3", "--max-tokens", "8"]
    options += ["--target", "0.9", "--warm-up", "100ms", "--json"]
    done = kvload("capacity", trace, "--url", url, *options, "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert "at least 35 requests in every attempt" in done.stderr
    (curve,) = json.loads(done.stdout)["curves"]
    by_rate = {level["level"]: level["share"]["estimate"] for level in curve["levels"]}
    assert by_rate[4.0] >= 0.9
    assert min(by_rate.values()) < 0.9
    assert 4.0 <= curve["met_at"] < 64.0
    assert {path.name for path in (tmp_path / "c").iterdir()} >= {"capacity.svg", "points.csv", "results.json"}


def test_a_target_that_the_trace_is_too_short_for_is_refused_before_anything_is_sent(
    kvload: Kvload, trace: Path, tmp_path: Path
) -> None:
    done = kvload("capacity", trace, "--url", "http://127.0.0.1:9", "--slo", "ttft=1s", "--out", tmp_path / "c")
    assert done.returncode == 2
    assert "381" in done.stderr
    assert "40" in done.stderr
    assert not (tmp_path / "c").exists()
