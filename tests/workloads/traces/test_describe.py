"""Descriptions against numpy on the whole data; conversions and made-up traces through the command itself."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.cli.main import run
from kvload.errors import TraceError, UsageError
from kvload.workloads.schedule.arrivals import ArrivalSpec
from kvload.workloads.schedule.questions import asked
from kvload.workloads.schedule.synthetic import LongTailed, SyntheticSpec, synthetic
from kvload.workloads.traces.convert import Conversion, ConversionCounts, common_factor, convert
from kvload.workloads.traces.describe import describe
from kvload.workloads.traces.formats import detect_format, read_trace
from kvload.workloads.traces.samples import SAMPLE_TRACE, trace_path
from kvload.workloads.traces.selection import Selection
from kvload.workloads.traces.trace import TraceRequest, write_trace

FIXTURES = Path(__file__).parent / "fixtures"


@given(
    st.lists(st.tuples(st.floats(0, 5000), st.integers(0, 3000), st.integers(0, 200)), min_size=2, max_size=200).map(
        sorted
    )
)
def test_figures_are_those_of_numpy(rows: list[tuple[float, int, int]]) -> None:
    zero = rows[0][0]
    requests = [
        TraceRequest(id=str(n), arrival=at - zero, input_length=i, output_length=o) for n, (at, i, o) in enumerate(rows)
    ]
    found = describe(requests)
    arrivals = np.array([request.arrival for request in requests], dtype=float)
    inputs = np.array([row[1] for row in rows])
    assert found.requests == len(rows)
    assert found.span_s == arrivals[-1]
    assert found.input is not None
    assert found.output is not None
    assert found.input.mean == pytest.approx(inputs.mean())
    assert (found.input.minimum, found.input.maximum) == (inputs.min(), inputs.max())
    for percent, value in found.input.percentiles.items():
        assert value == pytest.approx(np.percentile(inputs, percent))
    gaps = np.diff(arrivals)
    if len(gaps) > 1 and arrivals[-1] > 0:
        assert found.gap_cv == pytest.approx(gaps.std() / gaps.mean(), abs=1e-4)
    assert found.distinct_arrivals == len(np.unique(arrivals))
    assert found.peak_rate == np.bincount(arrivals.astype(int)).max()
    assert sum(found.bins) == len(rows)
    assert found.bin_s is not None
    edges = np.arange(len(found.bins) + 1) * found.bin_s
    assert found.bins == np.histogram(arrivals, np.append(edges[:-1], np.inf))[0].tolist()


def test_sessions_blocks_failures_and_texts_are_counted() -> None:
    found = describe(read_trace(FIXTURES / "bailian.jsonl"))
    assert (found.sessions, found.turns_max, found.followers) == (3, 3, 2)
    assert (found.blocks, found.distinct_blocks) == (29, 19)
    assert found.block_reuse == pytest.approx(10 / 29)
    assert describe(read_trace(FIXTURES / "burstgpt_v1.csv")).failed == 1
    own = describe(read_trace(FIXTURES / "kvload.jsonl"))
    assert own.text_characters is not None
    assert (own.text_characters.count, own.text_characters.minimum, own.text_characters.maximum) == (3, 11, 16)
    assert (own.scored, own.tasks) == (1, {"sum": 1})
    assert describe(read_trace(FIXTURES / "vidur_lengths.csv")).span_s is None


def written(requests: list[TraceRequest], path: Path) -> list[TraceRequest]:
    with path.open("wb") as file:
        assert write_trace(requests, file) == len(requests)
    return list(read_trace(path))


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.iterdir() if path.name != "README.md"))
def test_every_format_survives_our_own(name: str, tmp_path: Path) -> None:
    requests = list(read_trace(FIXTURES / name))
    assert written(requests, tmp_path / "t.jsonl") == requests
    assert detect_format(tmp_path / "t.jsonl") == "kvload"


def converted(requests: list[TraceRequest], conversion: Conversion) -> tuple[list[TraceRequest], ConversionCounts]:
    counts = ConversionCounts()
    return list(convert(requests, conversion, counts)), counts


def test_conversion_counts_what_it_changed() -> None:
    requests = [TraceRequest(id=str(n), arrival=float(n), input_length=100 * n, output_length=50) for n in range(1, 11)]
    kept, counts = converted(requests, Conversion(selection=Selection(start_s=3), cap_input=500, cap_output=40))
    assert [request.input_length for request in kept] == [300, 400, 500, 500, 500, 500, 500, 500]
    assert kept[0].arrival == 0
    assert str(counts) == "10 rows read, 8 written, 8 capped"
    kept, counts = converted(requests, Conversion(scale_input=0.5, max_total=300, too_long="drop"))
    assert [request.input_length for request in kept] == [50, 100, 150, 200, 250]
    assert (counts.scaled, counts.dropped) == (10, 5)
    with pytest.raises(TraceError, match=r"request '10' has 1000 \+ 50 tokens, beyond --max-total 1000"):
        converted(requests, Conversion(max_total=1000))


def test_one_factor_fits_the_longest() -> None:
    requests = [TraceRequest(id=str(n), arrival=0.0, input_length=1000 * n, output_length=100) for n in range(1, 9)]
    plain = Conversion(max_total=500, too_long="scale")
    factor = common_factor(requests, plain)
    assert factor == pytest.approx(400 / 8000)
    kept, _ = converted(requests, Conversion(max_total=500, too_long="scale", factor=factor))
    assert [request.input_length for request in kept] == [50 * n for n in range(1, 9)]


def test_made_up_traces_have_the_figures_asked_for() -> None:
    spec = SyntheticSpec(
        requests=5000, rate=10, input=LongTailed(300, 8192, 0.9), output=LongTailed(80, 2048, 0.6), seed=5
    )
    found = describe(synthetic(spec))
    assert found.requests == 5000
    assert found.rate == pytest.approx(10, rel=0.06)
    assert found.gap_cv == pytest.approx(1, rel=0.06)
    assert found.input is not None
    assert found.output is not None
    assert found.input.mean == pytest.approx(300, rel=0.08)
    assert found.output.mean == pytest.approx(80, rel=0.05)
    assert list(synthetic(spec)) == list(synthetic(spec))
    assert list(synthetic(spec)) != list(synthetic(SyntheticSpec(requests=5000, rate=10, seed=6)))


def test_made_up_sessions_can_be_read_again(tmp_path: Path) -> None:
    requests = list(synthetic(SyntheticSpec(requests=11, sessions=4, seed=1)))
    assert written(requests, tmp_path / "t") == requests
    found = describe(requests)
    assert (found.sessions, found.turns_max, found.followers) == (4, 3, 7)
    assert all((request.arrival is None) == bool(request.turn) for request in requests)
    with pytest.raises(UsageError):
        SyntheticSpec(requests=3, sessions=4)


def test_the_shipped_sample_is_what_the_docs_say() -> None:
    assert trace_path("sample:demo") == SAMPLE_TRACE
    found = describe(read_trace(SAMPLE_TRACE))
    assert 50 <= found.requests <= 70
    assert found.span_s is not None
    assert 15 <= found.span_s <= 25
    assert found.scored == found.requests
    with pytest.raises(UsageError, match="no such sample trace: 'none'"):
        trace_path("sample:none")


def test_the_command_describes_and_converts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")

    def printed(*arguments: str) -> tuple[int, str, str]:
        status = run(["traces", *arguments])
        out, err = capfd.readouterr()
        return status, out, err

    status, out, _ = printed("describe", str(FIXTURES / "mooncake.jsonl"), "--json")
    found: dict[str, Any] = json.loads(out)
    assert (status, found["format"], found["requests"]) == (0, "mooncake", 8)
    status, out, _ = printed("describe", str(FIXTURES / "azure_2023.csv"))
    assert status == 0
    assert "date-times without a zone are UTC" in out
    target = tmp_path / "out.jsonl"
    status, _, err = printed("convert", str(FIXTURES / "azure_2023.csv"), "--limit", "3", "-o", str(target))
    assert (status, err) == (0, "3 rows read, 3 written\n")
    assert len(list(read_trace(target))) == 3
    status, out, _ = printed("convert", str(target), "--max-total", "400", "--too-long", "drop")
    assert (status, out.count("\n")) == (0, 0)
    status, out, _ = printed("sample", "--requests", "4", "--seed", "3")
    assert (status, out.count("\n")) == (0, 4)
    status, out, err = printed("describe", str(tmp_path / "none"))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert printed("describe", str(target), "--start", "soon")[0] == 2


def test_questions_become_a_trace() -> None:
    class Question:
        id, task, expected, scorer, max_tokens, context_tokens, depth = "q", "recall", "5", "exact", 9, 512, 0.25
        messages = ({"role": "user", "content": "?"},)

    (request,) = asked([Question()], ArrivalSpec(kind="poisson", rate=2.0))
    buffer = io.BytesIO()
    write_trace([request], buffer)
    assert json.loads(buffer.getvalue()) == {
        "id": "q",
        "arrival": 0.0,
        "messages": [{"role": "user", "content": "?"}],
        "max_tokens": 9,
        "expected": "5",
        "scorer": "exact",
        "task": "recall",
        "extra": {"context_tokens": 512, "depth": 0.25},
    }
