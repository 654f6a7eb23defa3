"""A run folder: written, read back, and read after a crash."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import RunDirError
from kvload.records import RequestRecord, RunManifest, ServerInfo, ServerSample, TraceInfo
from kvload.rundir import CHUNK_DTYPE, RunDir


def manifest() -> RunManifest:
    return RunManifest(
        run_id="r",
        kvload_version="0",
        servers=[ServerInfo(url="http://127.0.0.1:1")],
        trace=TraceInfo(path="t", sha256="0", format="kvload", rows=1, used=1),
        mode="free",
        seed=0,
        arrivals={"kind": "trace"},
        planned=3,
    )


def record(index: int) -> RequestRecord:
    return RequestRecord(
        index=index, request_id=f"r{index}", prompt_digest="0" * 32, max_tokens=4, t_sched_s=0.0, status="ok"
    )


def chunks(count: int) -> np.ndarray:
    rows = np.empty(count, CHUNK_DTYPE)
    rows["us"] = np.arange(count) * 1000
    rows["tokens"] = 1
    return rows


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", manifest())
    for worker in ("w0", "w1"):
        with run.writer(worker) as writer:
            for index in range(3):
                writer.append(record(index), chunks(index))
    found = list(RunDir.open(tmp_path / "run").records())
    assert [r.index for r, _ in found] == [0, 1, 2, 0, 1, 2]
    assert [len(rows) for _, rows in found] == [0, 1, 2, 0, 1, 2]
    assert found[5][1]["us"].tolist() == [0, 1000]
    assert run.torn_records() == 0


def test_a_writer_opened_again_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", manifest())
    with run.writer("w") as writer:
        writer.append(record(0), chunks(5))
    with run.writer("w") as writer:
        placed = writer.append(record(1), chunks(2))
    assert (placed.chunk_offset, placed.chunk_count) == (5, 2)
    assert [len(rows) for _, rows in run.records()] == [5, 2]


@given(st.integers(1, 60))
def test_a_crash_in_the_middle_of_a_record_costs_that_record_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    run = RunDir.create(tmp_path_factory.mktemp("run"), manifest())
    with run.writer("w") as writer:
        for index in range(3):
            writer.append(record(index), chunks(1))
    path = run.shard("w").records_path
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r.index for r, _ in run.records()] == [0, 1]
    assert run.torn_records() == 1


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", manifest())
    with run.writer("w") as writer:
        writer.append(record(0), chunks(0))
    path = run.shard("w").records_path
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(RunDirError) as caught:
        list(run.records())
    assert caught.value.where == f"{path}:2"


def test_a_folder_in_use_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunDirError, match="not empty"):
        RunDir.create(tmp_path / "run", manifest())
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"manifest\.json"):
        RunDir.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunDirError, match="does not parse"):
        RunDir.open(tmp_path)


def test_the_manifest_is_replaced_whole(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", manifest())
    run.update_manifest(sent=3, partial=False)
    found = RunDir.open(run.path).manifest()
    assert (found.sent, found.partial, found.planned) == (3, False, 3)
    assert [path.name for path in run.path.iterdir()] == ["records", "manifest.json"] or len(
        list(run.path.iterdir())
    ) == 2


def test_scrapes_come_back_in_order_without_a_torn_last_line(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", manifest())
    assert run.scrapes() == []
    samples = [ServerSample(t_s=float(t), running=1.0) for t in range(3)]
    for sample in samples:
        run.append_scrape(sample)
    assert run.scrapes() == samples
    run.scrapes_path.write_bytes(run.scrapes_path.read_bytes()[:-4])
    assert run.scrapes() == samples[:2]
