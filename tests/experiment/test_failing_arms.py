"""One arm that fails does not end the others; one that answers nothing is not repeated; the exit status says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvload.cli.main import run
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess

pytestmark = pytest.mark.slow


def compare(folder: Path, good: MockProcess, odd: MockProcess, *more: str) -> tuple[int, dict[str, Any]]:
    trace = folder / "trace.jsonl"
    rows = [
        {"id": f"r{n}", "arrival": n * 0.02, "prompt": f"question {n}", "max_tokens": 8, "expected": "x"}
        for n in range(25)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = folder / "out"
    arms = ["--arm", f"none={good.url}", "--arm", f"odd={odd.url}", "--arm", f"other={good.url}"]
    quiet = ["--repeats", "2", "--no-floor", "-q", "--out", str(out), "--timeout", "5s"]
    status = run(["compare", str(trace), *arms, *quiet, *more])
    found = out / "comparison.json"
    return status, json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}


@pytest.mark.parametrize(
    ("faults", "cause"),
    [
        ({"http_400": 1.0}, "the mock refuses this"),
        ({"stream_error": 1.0}, "stream_error"),
        ({"empty_answer": 1.0}, "empty"),
    ],
)
def test_an_arm_that_answers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], faults: dict[str, float], cause: str
) -> None:
    quick = MockSettings(ttft_s=0.01, itl_s=0.002)
    with MockProcess(quick) as good, MockProcess(MockSettings(ttft_s=0.01, itl_s=0.002, faults=faults)) as odd:
        status, found = compare(tmp_path, good, odd, "--slo", "ttft=1s")
    said = capsys.readouterr()
    assert status == 3
    assert cause in said.err
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert arms["other"]["answered"] == 50
    if "odd" in arms:
        assert arms["odd"]["answered"] == 0
        assert len(arms["odd"]["runs"]) == 1
        assert "odd: do not use it for this. 25 of 25 requests of odd are no answers" in " ".join(said.out.split())


def test_gates_and_arms_are_looked_at_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MockProcess(MockSettings()) as good:
        for gate, words in (("atainment<0.99", "did you mean attainment"), ("z:ttft.p99>1s", "no arm 'z'")):
            status, found = compare(tmp_path, good, good, "--fail-if", gate, "--dry-run", "--slo", "ttft=1s")
            assert (status, found) == (2, {})
            assert words in capsys.readouterr().err
        status, _ = compare(tmp_path, good, good, "--fail-if", "attainment<0.99")
        assert status == 2
        assert "without limits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
