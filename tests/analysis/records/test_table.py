"""The columns against the records, one by one."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kvload.analysis.records import latency, loading, table
from kvload.analysis.run import slo
from kvload.errors import RunDirError
from kvload.records import RequestRecord
from tests.analysis.synthetic import answer, mixed, write


def test_every_column_holds_what_the_records_say(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    columns = loading.load(run)
    records = sorted((record for record, _ in run.records()), key=lambda record: record.index)
    assert columns.index.tolist() == [record.index for record in records]
    for name in (*table.INT_COLUMNS, *table.FLOAT_COLUMNS):
        expected = [math.nan if (value := getattr(record, name)) is None else value for record in records]
        np.testing.assert_array_equal(getattr(columns, name), expected)
    assert [table.STATUSES[code] for code in columns.status] == [record.status for record in records]
    for name in table.WORD_COLUMNS:
        words = getattr(columns, name)
        assert [words.names[code] for code in words.codes] == [getattr(record, name) for record in records]
    assert columns.prompt_digest.tolist() == [record.prompt_digest.encode() for record in records]
    assert columns.request_id.tolist() == [record.request_id for record in records]


def test_the_narrow_row_has_the_types_of_the_record() -> None:
    whole, narrow = typing.get_type_hints(RequestRecord), typing.get_type_hints(loading._Row)
    defaults = {field.name: field.default for field in msgspec.structs.fields(RequestRecord)}
    for field in msgspec.structs.fields(loading._Row):
        assert field.name in whole
        if field.name not in table.WORD_COLUMNS:
            assert narrow[field.name] == whole[field.name]
        default = None if isinstance(field.default, float) and math.isnan(field.default) else field.default
        assert default == defaults[field.name]


def test_metrics_of_a_table_are_those_of_its_records(tmp_path: Path) -> None:
    """The record defines them; the table computes them for all at once."""
    rng = np.random.default_rng(3)
    odd: list[dict[str, Any]] = [
        {"output_tokens": 1, "first_chunk_tokens": 1},
        {"output_tokens": None, "first_chunk_tokens": None},
        {"in_bursts": True},
        {"end_tokens": 1},
        {"t_first_s": None, "t_last_s": None},
        {"t_send_s": None},
    ]
    rows = []
    for number, changes in enumerate(odd):
        record, chunks = answer(rng, number, tokens=12)
        rows.append((msgspec.structs.replace(record, **changes), chunks))
    for run in (mixed(tmp_path / "mixed"), write(tmp_path / "odd", rows)):
        columns = loading.load(run)
        records = sorted((record for record, _ in run.records()), key=lambda record: record.index)
        for name in ("ttft", "tpot", "e2e", "lag"):
            expected = [math.nan if (value := getattr(record, f"{name}_s")) is None else value for record in records]
            np.testing.assert_allclose(latency.METRICS[name](columns), expected, rtol=1e-12, atol=1e-12, err_msg=name)
        np.testing.assert_array_equal(slo.one_token(columns), [record.has_one_token for record in records])


def test_gaps_are_those_between_the_chunks_of_answered_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mixed(tmp_path / "run", count=60)
    columns = loading.load(run)
    blocks = table.chunk_blocks
    monkeypatch.setattr(latency, "chunk_blocks", lambda t, rows: blocks(t, rows, block_rows=100))
    monkeypatch.setattr(latency, "_HISTOGRAM_US", 12_000)
    found = latency.token_gaps(columns, np.flatnonzero(columns.ok))
    expected = np.concatenate(
        [np.diff(chunks["us"].astype(np.int64)) for record, chunks in run.records() if record.status == "ok"]
    )
    np.testing.assert_array_equal(np.repeat(found.values_us, found.counts), np.sort(expected))
    np.testing.assert_array_equal(np.sort(found.sample_us), np.sort(expected))
    assert found.request_sums_us.sum() == expected.sum()
    for q in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0):
        assert found.quantile_us(q) == pytest.approx(np.quantile(expected, q))


def test_the_number_in_flight_is_that_of_open_requests(tmp_path: Path) -> None:
    columns = loading.load(mixed(tmp_path / "run"))
    times, number = latency.in_flight(columns)
    sent = columns.sent
    for moment in np.linspace(0.1, 9.9, 50):
        expected = np.count_nonzero(sent & (columns.t_send_s <= moment) & (columns.t_end_s > moment))
        assert number[np.searchsorted(times, moment, side="right") - 1] == expected
    assert number[-1] == 0


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run", count=20)
    path = run.shard("worker-1").records_path
    lines = path.read_bytes().split(b"\n")
    lines[4] = lines[4].replace(b'"status":"ok"', b'"status":"fine"')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunDirError, match="status") as caught:
        loading.load(run)
    assert caught.value.where == f"{path}:5"


def test_a_torn_record_is_counted_and_the_others_kept(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run", count=20)
    path = run.shard("worker-0").records_path
    path.write_bytes(path.read_bytes()[:-30])
    found = loading.load(run)
    assert (len(found), found.torn) == (19, 1)


def test_chunks_that_were_lost_are_an_error(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run", count=20)
    path = run.shard("worker-0").chunks_path
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(RunDirError, match="chunk rows"):
        loading.load(run)


def test_an_index_twice_is_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write(tmp_path / "run", [answer(rng, 4, tokens=3), answer(rng, 4, tokens=3)])
    with pytest.raises(RunDirError, match="index 4"):
        loading.load(run)


def test_a_run_without_records_is_an_empty_table(tmp_path: Path) -> None:
    found = loading.load(write(tmp_path / "run", [], shards=1))
    assert len(found) == 0
    assert found.ok.dtype == np.bool_


def test_explicit_nulls_are_missing_values(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run", count=20)
    path = run.shard("worker-0").records_path
    path.write_bytes(path.read_bytes().replace(b'"queue_s"', b'"decode_s"').replace(b"}\n", b',"queue_s":null}\n'))
    assert np.isnan(loading.load(run).queue_s).all()


def test_several_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mixed(tmp_path / "run")
    alone = loading.load(run)
    parts = loading._in_parallel(run.shards())
    assert parts is not None
    monkeypatch.setattr(loading, "_worth_processes", lambda _: True)
    together = loading.load(run)
    for field in dataclasses.fields(table.RecordTable):
        one, two = getattr(alone, field.name), getattr(together, field.name)
        if isinstance(one, table.Categories):
            assert one.names == two.names
            one, two = one.codes, two.codes
        np.testing.assert_array_equal(one, two)


def test_a_bad_line_is_named_by_several_processes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mixed(tmp_path / "run", count=20)
    path = run.shard("worker-1").records_path
    path.write_bytes(path.read_bytes() + b"{}\n")
    monkeypatch.setattr(loading, "_worth_processes", lambda _: True)
    with pytest.raises(RunDirError) as caught:
        loading.load(run)
    assert caught.value.where == f"{path}:11"
