"""A designed load on a server: what it consists of, what is left out of it, and that what was measured is kept."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kvload.address import Address
from kvload.errors import UsageError
from kvload.experiment.prediction import calibrate, design
from kvload.experiment.prediction.calibrate import Target, run_calibration
from kvload.experiment.prediction.design import FIRST_VISIT, PASSES, Pace, Point, Room
from kvload.experiment.prediction.fitting import fit_models
from kvload.rundir import RunDir
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.server import MockServer

ROOM = Room(context_tokens=8192, pool_tokens=130_000, sequences=256, chunk_tokens=2048)


@contextmanager
def mock(settings: MockSettings) -> Iterator[Address]:
    server = MockServer(settings)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield Address.parse(f"http://127.0.0.1:{server.port}")
    finally:
        server.stop()
        thread.join(10)


def test_the_points_stay_within_what_a_server_takes() -> None:
    tight = Room(context_tokens=512, pool_tokens=2_000, sequences=8, chunk_tokens=256)
    for room in (ROOM, tight, replace(ROOM, pool_tokens=None), replace(ROOM, sequences=2)):
        for point, share in design.wanted(room):
            assert 0 < share <= 1
            assert point.at_once <= room.sequences
            assert all(prompt + answer <= room.context_tokens for prompt, answer in point.requests())
            assert max(point.prompts) <= room.chunk_tokens
            if room.pool_tokens is not None:
                held = sorted(prompt + answer for prompt, answer in point.requests())[-point.at_once :]
                assert sum(held) <= 1.1 * room.pool_tokens
    alone, *beside = [point for point, _ in design.wanted(ROOM)]
    assert alone.at_once == 1
    assert {point.at_once for point in beside} == {2, 6, 32}
    assert len({point.context for point in beside}) == 2


def test_a_slow_server_gets_smaller_points_and_a_very_slow_one_none() -> None:
    wanted = [point for point, _ in design.wanted(ROOM)]
    fast, slow, slowest = (Pace(prompt_s, ((1, step_s),)) for prompt_s, step_s in ((1e-5, 5e-3), (2e-3, 0.1), (1, 9.0)))
    for point in wanted:
        assert design.fitting(point, fast, 60.0) == point
        assert design.fitting(point, slowest, 60.0) is None
        smaller = design.fitting(point, slow, 30.0)
        assert smaller is not None
        assert (FIRST_VISIT + PASSES) * slow.seconds(smaller) <= 30.0
        assert smaller.prompt_tokens <= point.prompt_tokens
    assert design.of_passes(fast, wanted) < 60


def test_a_step_of_more_is_told_from_those_that_were_seen() -> None:
    pace = Pace(1e-4, ((1, 0.01),))
    assert pace.step_s(1) == 0.01
    assert 0.01 < pace.step_s(9) < 0.09
    assert pace.seen(5, 0.02).step_s(9) == pytest.approx(0.03)
    # Noise alone makes a larger batch faster.
    assert pace.seen(5, 0.008).step_s(32) == 0.008


def test_every_point_is_visited_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MOST_PASSES", 2)
    said: list[str] = []
    with mock(MockSettings(ttft_s=0.01, itl_s=0.002)) as address:
        target = Target(address=address, method="none", pool_tokens=20_000, max_model_len=2_048)
        found = run_calibration(target, tmp_path, seconds=60, say=said.append)
    assert [run.name for run in found.runs] == [f"pass-{number}" for number in range(1, calibrate.MOST_PASSES + 1)]
    assert not found.left_out
    visits = [RunDir.open(path) for path in sorted(tmp_path.glob("visit-*"))]
    points = [note for visit in visits[1:] for note in visit.manifest().notes]
    for path in found.runs:
        manifest = RunDir.open(path).manifest()
        assert manifest.ended == "completed"
        assert manifest.notes == points
        assert manifest.sent == manifest.planned == sum(visit.manifest().planned for visit in visits[1:])
    # No pass asks what an earlier one has asked: a prefix cache would have it.
    digests = [record.prompt_digest for path in found.runs for record, _ in RunDir.open(path).records()]
    assert len(set(digests)) == len(digests)
    (model,) = fit_models(found.runs).models
    assert model.spread.runs == len(found.runs)
    assert model.steps >= calibrate.ENOUGH_STRETCHES
    assert said[-1].startswith(f"pass {calibrate.MOST_PASSES}")


def test_what_was_measured_when_the_time_ends_is_kept(tmp_path: Path) -> None:
    with mock(MockSettings(ttft_s=0.05, itl_s=0.02)) as address:
        target = Target(address=address, method="none", pool_tokens=20_000)
        found = run_calibration(target, tmp_path, seconds=5, say=lambda _: None)
    assert found.left_out
    assert all(RunDir.open(path).manifest().sent for path in found.runs)
    (model,) = fit_models(found.runs).models
    assert model.runs == [str(path) for path in found.runs]


def test_a_server_that_answers_nothing_is_told_of(tmp_path: Path) -> None:
    with (
        mock(MockSettings(faults={"http_500": 1.0})) as address,
        pytest.raises(UsageError, match="no request was answered"),
    ):
        run_calibration(Target(address=address, method="none"), tmp_path, seconds=5, say=lambda _: None)


def test_a_server_of_unknown_method_is_asked_about(tmp_path: Path) -> None:
    with mock(MockSettings()) as address, pytest.raises(UsageError, match="does not say which method"):
        run_calibration(Target(address=address), tmp_path, seconds=5, say=lambda _: None)
    assert str(Point(4, 100, (64, 8))) == "2 prompts of 8 to 64 tokens beside 3 answers over 100 tokens"
