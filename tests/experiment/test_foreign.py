"""Results of other load generators, written here as those tools document them, against figures worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvload.analysis.run.summary import summarise
from kvload.cli.main import run
from kvload.errors import TraceError
from kvload.experiment.foreign import read
from kvload.rundir import RunDir

VLLM: dict[str, Any] = {
    "backend": "vllm",
    "model_id": "m",
    "request_rate": 2.0,
    "max_concurrency": None,
    "input_lens": [10, 20, 30],
    "output_lens": [3, 2, 0],
    "ttfts": [0.1, 0.2, 0.0],
    "itls": [[0.01, 0.03], [0.05], []],
    "start_times": [100.0, 100.5, 101.0],
    "generated_texts": ["a b c", "d e", ""],
    "errors": ["", "", "Internal Server Error"],
}


def test_a_vllm_result_becomes_a_run_with_its_latencies(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(VLLM))
    out = tmp_path / "run"
    assert run(["import", str(file), "--name", "fp8", "--slo", "ttft=150ms", "--out", str(out)]) == 0
    report = summarise(RunDir.open(out))
    assert (report.counts.sent, report.counts.completed) == (3, 2)
    assert report.metrics["ttft"].mean.estimate == pytest.approx(0.15)
    assert report.metrics["tpot"].mean.estimate == pytest.approx((0.02 + 0.05) / 2, abs=1e-6)
    assert report.metrics["e2e"].max_s == pytest.approx(0.25)
    assert report.attainment is not None
    assert report.attainment.met == 1
    assert any("imported from vllm bench serve" in note for note in report.notes)


def test_two_imported_runs_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, factor in (("none", 1.0), ("fp8", 2.0)):
        values = VLLM | {"ttfts": [factor * t for t in (0.1, 0.2, 0.3)] * 10}
        values |= {key: VLLM[key] * 10 for key in ("input_lens", "generated_texts")}
        values |= {
            "output_lens": [3, 2, 3] * 10,
            "itls": [[0.01, 0.03], [0.05], [0.01, 0.01]] * 10,
            "errors": [""] * 30,
        }
        values |= {"start_times": [100 + i / 2 for i in range(30)]}
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
        assert run(["import", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert run(["compare", str(tmp_path / "none"), str(tmp_path / "fp8"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    change = next(each for each in found["comparisons"] if each["name"] == "fp8")
    assert change["latency"]["ttft"]["relative"]["estimate"] == pytest.approx(1.0)


def test_a_result_without_send_times_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps({key: value for key, value in VLLM.items() if key != "start_times"}))
    with pytest.raises(TraceError, match="start_times"):
        read(file)


def test_aiperf_records_are_read_with_their_units(tmp_path: Path) -> None:
    rows = [
        {
            "metadata": {"request_start_ns": 5_000_000_000 + i * 250_000_000, "x_request_id": f"r{i}"},
            "metrics": {
                "time_to_first_token": {"value": 120.0, "unit": "ms"},
                "request_latency": {"value": 1.12, "unit": "s"},
                "output_sequence_length": {"value": 11, "unit": "tokens"},
                "input_sequence_length": {"value": 64, "unit": "tokens"},
            },
            "error": None,
        }
        for i in range(4)
    ]
    file = tmp_path / "profile_export.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    saved = read(file)
    assert [request.sent_s for request in saved.requests] == [0, 0.25, 0.5, 0.75]
    assert saved.requests[0].ttft_s == pytest.approx(0.12)
    assert saved.requests[0].e2e_s == pytest.approx(1.12)
    assert run(["import", str(file), "--out", str(tmp_path / "run")]) == 0
    assert summarise(RunDir.open(tmp_path / "run")).metrics["tpot"].mean.estimate == pytest.approx(0.1)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"a": 1}', "not json"])
def test_anything_else_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(text)
    with pytest.raises(TraceError):
        read(file)
