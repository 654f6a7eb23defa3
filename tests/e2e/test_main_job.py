"""Launch, replay, report, stop: the main job against the embedded engine with the probe model."""

import json
import re
import stat
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Kvload, read_records

pytestmark = pytest.mark.slow

TRIAL_TOKENS = {"generation_tokens_total": 4, "prompt_tokens_total": 40}
"""Most tokens of the one request that tries a server out."""

SHARED_TRACES = Path(__file__).parents[3] / "shared" / "traces"


@pytest.fixture(scope="module")
def server(kvload: Kvload) -> Iterator[str]:
    """The address of a launched embedded engine."""
    launched = kvload("launch", "--engine", "embedded", "--name", "main-job", "--kv-memory", "64MiB")
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.strip() == "main-job"
    found = json.loads(kvload("status", "--json").stdout)
    try:
        yield next(entry["url"] for entry in found if entry["name"] == "main-job")
    finally:
        stopped = kvload("stop", "main-job")
        assert stopped.returncode == 0, stopped.stderr
        assert json.loads(kvload("status", "--json").stdout) == []


def server_totals(url: str) -> dict[str, float]:
    """The server's own counts of tokens, straight from its metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    names = ("prompt_tokens_total", "generation_tokens_total")
    return {
        name: sum(map(float, re.findall(rf"^kvload:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))) for name in names
    }


def check_every_request_is_accounted_for(run: Path, url: str, before: dict[str, float]) -> None:
    records = read_records(run)
    manifest = json.loads((run / "manifest.json").read_text())
    assert sorted(record["index"] for record in records) == list(range(manifest["planned"]))
    assert manifest["sent"] == manifest["planned"]
    done = [record for record in records if record["status"] == "ok"]
    assert len(done) == manifest["sent"], {record.get("cause") for record in records}
    after = server_totals(url)
    # One short request tries the server out before a run; it stands in no record.
    tried = {
        "generation_tokens_total": sum(record["output_tokens"] for record in done),
        "prompt_tokens_total": sum(record["prompt_tokens"] for record in done),
    }
    for name, counted in tried.items():
        assert 1 <= after[name] - before[name] - counted <= TRIAL_TOKENS[name]


def test_replay_reports_what_the_records_say_and_report_says_it_again(
    kvload: Kvload, server: str, tmp_path: Path
) -> None:
    before = server_totals(server)
    out = tmp_path / "run"
    options = ["--limit", "12", "--speed", "4", "--warmups", "0", "--slo", "ttft=30s"]
    replayed = kvload("replay", "sample:demo", *options, "--out", out)
    assert replayed.returncode == 0, replayed.stderr
    check_every_request_is_accounted_for(out, server, before)
    assert "12 sent, all answered" in replayed.stdout
    assert kvload("report", out).stdout == replayed.stdout
    as_json = json.loads(kvload("report", out, "--json").stdout)
    records = read_records(out)
    ttft = sorted(1e3 * (record["t_first_s"] - record["t_send_s"]) for record in records)
    assert as_json["completed"] == as_json["sent"] == 12
    assert as_json["mean_ttft_ms"] == pytest.approx(sum(ttft) / 12, rel=1e-6)
    assert as_json["slo_attainment"] == pytest.approx(sum(t <= 30_000 for t in ttft) / 12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("azure_2023_conv.csv", ["--limit", "60", "--scale-input", "0.1", "--max-tokens", "16"]),
        # its answers are of hundreds of tokens: a tenth of the minute's requests is what the engine answers in a minute
        ("mooncake_conversation.jsonl", ["--sample", "0.1", "--too-long", "scale"]),
    ],
)
def test_a_minute_of_a_real_trace_is_accounted_for(
    kvload: Kvload, server: str, tmp_path: Path, name: str, options: list[str]
) -> None:
    trace = SHARED_TRACES / name
    if not trace.exists():
        pytest.skip("the real traces are not here")
    before = server_totals(server)
    out = tmp_path / "run"
    replayed = kvload(
        "replay", trace, "--end", "60s", "--speed", "4", *options, "--warmups", "0", "--out", out, timeout_s=280
    )
    assert replayed.returncode == 0, replayed.stderr
    check_every_request_is_accounted_for(out, server, before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the trace is empty"),
        ('{"id": "a", "arrival": 0, "input_length": -5, "output_length": 1}\n', "input_length"),
        ('{"id": "a", "arrival": 0, "input_length": 5, "output_length": 1}\n{"id": broken\n', ":2"),
    ],
)
def test_a_bad_trace_is_named_and_nothing_is_sent(
    kvload: Kvload, server: str, tmp_path: Path, content: str, message: str
) -> None:
    trace = tmp_path / "bad.jsonl"
    trace.write_text(content, encoding="utf-8")
    before = server_totals(server)
    replayed = kvload("replay", trace, "--format", "kvload", "--out", tmp_path / "run")
    assert replayed.returncode == 2
    assert message in replayed.stderr
    assert "bad.jsonl" in replayed.stderr
    assert "Traceback" not in replayed.stderr
    assert server_totals(server) == before


def test_requests_over_the_servers_limit_are_told_before_the_run(kvload: Kvload, server: str, tmp_path: Path) -> None:
    trace = tmp_path / "long.jsonl"
    rows = [
        {"id": f"r{i}", "arrival": 0.1 * i, "input_length": size, "output_length": 2}
        for i, size in enumerate((20, 9000, 20))
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    refused = kvload("replay", trace, "--out", tmp_path / "run")
    assert refused.returncode == 2
    assert "1 of 3" in refused.stderr
    assert "--too-long" in refused.stderr
    dropped = kvload("replay", trace, "--too-long", "drop", "--out", tmp_path / "run")
    assert dropped.returncode == 0, dropped.stderr
    assert len(read_records(tmp_path / "run")) == 2


def test_a_gate_fails_the_command_with_its_reason(kvload: Kvload, server: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    replayed = kvload(
        "replay", "sample:demo", "--limit", "2", "--slo", "ttft=1us", "--fail-if", "attainment<0.5", "--out", out
    )
    assert replayed.returncode == 1
    assert "attainment" in replayed.stderr


def test_a_run_folder_is_its_owners_alone(kvload: Kvload, start_mock: Callable[..., str], tmp_path: Path) -> None:
    url, run = start_mock("--ttft", "20ms", "--itl", "1ms"), tmp_path / "deep" / "run"
    done = kvload("replay", "sample:demo", "--limit", "4", "--url", url, "--out", run, "--quiet")
    assert done.returncode == 0, done.stderr
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [run, *run.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {path.name for path, mode in modes.items() if path.is_file() and mode != 0o600} == set()
