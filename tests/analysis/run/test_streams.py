"""Gaps between tokens by running requests, on servers whose speed is known at each number of them."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kvload.analysis.records.loading import load
from kvload.analysis.report.html_report import render
from kvload.analysis.report.json_report import as_dict
from kvload.analysis.report.tables import streams_table
from kvload.analysis.report.terminal import render as render_text
from kvload.analysis.run.streams import note, streams_of
from kvload.analysis.run.summary import summarise
from kvload.records import ServerInfo
from kvload.rundir import RunDir
from tests.analysis.synthetic import answer, chunk_rows, scrapes, write

FAST_S, SLOW_S = 0.010, 0.030
ENDS_S = (2.0, 4.0, 6.0)
RUNNING = (3, 8, 9)


def run_folder(path: Path, covered: int | None, *, engine: str = "sglang", blind_from_s: float = 99.0) -> RunDir:
    """3, then 8, then 9 requests at once; with 9 a token takes three times as long."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(RUNNING[-1]):
        begins = 0.0 if index < RUNNING[0] else ENDS_S[0] if index < RUNNING[1] else ENDS_S[1]
        times = [begins + 0.0005]
        while times[-1] < ENDS_S[-1]:
            times.append(times[-1] + (FAST_S if times[-1] < ENDS_S[1] else SLOW_S))
        record, _ = answer(rng, index, tokens=len(times), ttft_s=0.0005, t_sched_s=begins, t_send_s=begins)
        made.append((record, chunk_rows(np.array(times) - begins, np.ones(len(times)))))
    stages = zip((0.0, *ENDS_S[:-1]), ENDS_S, RUNNING, strict=True)
    points = [(float(t), {"running": float(n)}) for low, high, n in stages for t in np.arange(low, high, 0.25)]
    server = ServerInfo(url="http://127.0.0.1:1", engine=engine, model="m", method="none", graph_streams=covered)
    samples = scrapes([(t, values if t < blind_from_s else {"error": "no answer"}) for t, values in points])
    return write(path, made, samples=samples, servers=[server], planned=len(made))


def test_the_bands_tell_the_speed_at_each_number_of_requests(tmp_path: Path) -> None:
    report = summarise(run_folder(tmp_path / "run", covered=8))
    bands = {(band.low, band.high): band for band in report.streams.bands}
    assert set(bands) == {(2, 3), (8, 8), (9, 15)}
    assert bands[2, 3].p50_s == pytest.approx(FAST_S, abs=1e-4)
    assert bands[8, 8].p50_s == pytest.approx(FAST_S, abs=1e-4)
    assert bands[9, 15].p50_s == pytest.approx(SLOW_S, abs=1e-4)
    assert [band.covered for band in report.streams.bands] == [True, True, False]
    assert sum(band.gaps for band in report.streams.bands) == report.metrics["itl"].n
    slow = bands[9, 15].gaps / report.metrics["itl"].n
    assert report.streams.above == pytest.approx(slow)


def test_more_requests_than_graphs_cover_are_warned_of_with_what_to_raise(tmp_path: Path) -> None:
    report = summarise(run_folder(tmp_path / "run", covered=8))
    (found,) = [text for text in report.notes if "CUDA graphs" in text]
    assert "cover (8)" in found
    assert "p50 10 ms while 8 ran, 30 ms while 9 to 15 did" in found
    assert "raise --cuda-graph-max-bs, for all arms alike" in found
    vllm = summarise(run_folder(tmp_path / "vllm", covered=8, engine="vllm"))
    assert any("--max-cudagraph-capture-size" in text for text in vllm.notes)


@pytest.mark.parametrize("covered", [9, 512, None])
def test_nothing_is_warned_of_where_graphs_cover_all_or_nobody_knows(tmp_path: Path, covered: int | None) -> None:
    report = summarise(run_folder(tmp_path / "run", covered=covered))
    assert not [text for text in report.notes if "CUDA graphs" in text]
    assert len(report.streams.bands) == 2
    assert {band.covered for band in report.streams.bands} == ({None} if covered is None else {True})


def test_no_graphs_at_all_cover_nothing(tmp_path: Path) -> None:
    report = summarise(run_folder(tmp_path / "run", covered=0))
    assert report.streams.above == 1.0
    assert note(report.streams, "sglang") is not None


def test_gaps_without_a_scrape_before_them_are_left_out(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", covered=8, blind_from_s=0.0)
    report = summarise(run)
    assert report.streams.bands == []
    assert report.streams.above is None
    assert streams_table(report) is None
    partly = summarise(run_folder(tmp_path / "partly", covered=8, blind_from_s=0.5))
    assert {(band.low, band.high) for band in partly.streams.bands} == {(2, 3)}
    assert streams_of(load(run), [], run.manifest()).bands == []


def test_every_report_shows_them(tmp_path: Path) -> None:
    report = summarise(run_folder(tmp_path / "run", covered=8))
    table = streams_table(report)
    assert table is not None
    assert [row.cells[0] for row in table.rows] == ["2 to 3", "8", "9 to 15"]
    assert [row.cells[-1] for row in table.rows] == ["yes", "yes", "no"]
    console = Console(record=True, width=140)
    render_text(report, console)
    assert "Gap between tokens by running requests" in console.export_text()
    page = render(report)
    assert "CUDA graphs end" in page
    assert as_dict(report)["itl_by_running"]["covered"] == 8
