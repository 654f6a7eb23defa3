"""One server as three arms: whatever the machine does meanwhile, ``compare`` must not tell them apart."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Kvload

pytestmark = pytest.mark.slow


def test_one_server_as_three_arms_is_no_difference(kvload: Kvload, tmp_path: Path) -> None:
    launched = kvload("launch", "--engine", "embedded", "--name", "three-arms", "--kv-memory", "64MiB")
    assert launched.returncode == 0, launched.stderr
    try:
        (entry,) = json.loads(kvload("status", "--json").stdout)
        trace = tmp_path / "questions.jsonl"
        sample = ["--probe", "--requests", "24", "--context", "192", "--tasks", "recall", "--rate", "8"]
        assert kvload("traces", "sample", *sample, "--seed", "3", "--out", trace).returncode == 0
        arms = [word for name in ("a", "b") for word in ("--arm", f"{name}={entry['url']}")]
        out = tmp_path / "experiment"
        options = ["--baseline", "a", "--slo", "ttft=150ms", "--repeats", "2", "--no-calibrate", "--json"]
        done = kvload("compare", trace, *arms, *options, "--out", out, timeout_s=400)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
    finally:
        kvload("stop", "three-arms")
    assert {arm["name"] for arm in found["arms"]} == {"a", "a (again)", "b"}
    outcomes = {finding["topic"]: finding["outcome"] for finding in found["verdicts"]["b"]["findings"]}
    assert set(outcomes) >= {"latency", "service", "lengths", "quality", "answers"}
    assert set(outcomes.values()) <= {"same", "undecided", "unmeasured"}, found["verdicts"]["b"]
    assert outcomes["lengths"] == "same"
    assert found["resolution"] is not None
