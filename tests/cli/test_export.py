"""Runs for other programs: CSV, Prometheus, schemas, published limits."""

import csv
import json
import re
from pathlib import Path

import pytest

from kvload.cli.main import run
from kvload.cli.published_limits import PUBLISHED
from kvload.cli.readings import read_limits
from tests.analysis.synthetic import mixed


def test_every_request_is_a_row_with_its_latencies(tmp_path: Path) -> None:
    made = mixed(tmp_path / "run")
    assert run(["export", str(made.path), "--csv", str(tmp_path / "r.csv"), "--texts"]) == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = sorted((record for record, _ in made.records()), key=lambda record: record.index)
    assert [row["request_id"] for row in rows] == [record.request_id for record in records]
    for row, record in zip(rows, records, strict=True):
        if record.t_first_s is None or record.t_send_s is None:
            assert row["ttft_s"] == ""
        else:
            assert float(row["ttft_s"]) == pytest.approx(record.t_first_s - record.t_send_s)
        assert row["output_tokens"] == ("" if record.output_tokens is None else str(record.output_tokens))


def test_a_formula_stays_text(tmp_path: Path) -> None:
    from kvload.analysis.report.export import _cell

    assert [_cell(value) for value in ("=1+1", "@x", "plain", -3)] == ["'=1+1", "'@x", "plain", -3]


def test_the_textfile_is_in_prometheus_format(tmp_path: Path) -> None:
    made = mixed(tmp_path / "run")
    target = tmp_path / "kvload.prom"
    assert run(["export", str(made.path), "--prometheus", str(target)]) == 0
    lines = target.read_text().splitlines()
    sample = re.compile(r'kvload_[a-z0-9_]+\{([a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*)?\} -?[0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    assert any(line.startswith('kvload_ttft_seconds{model="tiny"') and 'quantile="0.5"' in line for line in lines)
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


@pytest.mark.parametrize(
    "kind", ["manifest", "record", "sample", "trace", "experiment", "sweep-plan", "report", "comparison", "sweep"]
)
def test_everything_written_has_a_schema(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", kind]) == 0
    assert "$defs" in json.loads(capsys.readouterr().out)


def test_published_limits_have_names() -> None:
    assert read_limits("mlperf:llama3.1-8b-interactive") == {"ttft": 0.5, "tpot": 0.03}
    assert all(limits["tpot"] < limits["ttft"] for limits in PUBLISHED.values())


def test_a_name_that_is_nearly_right_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "sample:demo", "--slo", "mlperf:llama3.1-8b-interactiv"]) == 2
    assert "did you mean mlperf:llama3.1-8b-interactive?" in capsys.readouterr().err
