"""Where runs were made and how long they took, in numbers and sentences that were reckoned by hand."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvload.errors import ServerError
from kvload.experiment import course
from kvload.experiment.placement import PLACEMENT_NAME, PlacedRun, Placement, PlacementLog, Session, read_placement
from kvload.experiment.plan import ExperimentPlan, make_arms
from kvload.experiment.slots import Slot
from kvload.records import RunManifest, ServerInfo, TraceInfo
from kvload.rundir import RunDir
from kvload.servers.lifecycle.rootcause import RootCause
from kvload.servers.lifecycle.starting import ServerDiedError


def made(arm: str, slot: str, began_at: float, launch_s: float, replay_s: float, *, alone: bool = False) -> PlacedRun:
    run = PlacedRun(arm=arm, repeat=0, slot=slot, began_at=began_at, alone=alone)
    return run.with_parts(launch_s, replay_s, 1.0)


def manifest_of(**changes: Any) -> RunManifest:
    values: dict[str, Any] = {
        "run_id": "1",
        "kvload_version": "0",
        "trace": TraceInfo(path="t", sha256="", format="kvload", rows=1, used=1),
        "mode": "free",
        "seed": 0,
        "arrivals": {},
        "planned": 1,
        "slo": {},
    }
    return RunManifest(**(values | changes))


def placement(runs: list[PlacedRun], *sessions: Session) -> Placement:
    slots = list(sessions[-1].slots)
    return Placement(slots=slots, cpus=[], runs=runs, wall_s=sum(s.wall_s for s in sessions), sessions=list(sessions))


def test_side_by_side_the_baseline_alone_is_no_part_of_the_serial_time() -> None:
    runs = [
        made("none", "GPU 0", 0, 50, 29),
        made("int8", "GPU 1", 0, 50, 29),
        made("none", "GPU 0", 80, 50, 29, alone=True),
    ]
    kept = placement(runs, Session(began_at=0, wall_s=160, slots=["GPU 0", "GPU 1"]))
    assert kept.serial_s == 160
    assert kept.time_notes() == [
        "2 runs side by side on GPU 0, GPU 1 and the baseline alone took 160 s;"
        " in a row the same runs come to 160 s (1.00 times as long)"
    ]


def test_sessions_of_a_row_are_added_up_and_what_was_lost_is_told() -> None:
    lost = PlacedRun(arm="int8", repeat=0, slot="GPU 0", began_at=80, failed="interrupted", lost_s=40.0)
    runs = [made("none", "GPU 0", 0, 50, 29), lost, made("int8", "GPU 0", 1000, 40, 29)]
    first, second = (Session(began_at=at, wall_s=s, slots=["GPU 0"]) for at, s in ((0.0, 121.0), (999.0, 71.0)))
    assert placement(runs, first, second).time_notes() == [
        "2 runs one after the other on GPU 0 took 192 s in 2 sessions (121 s + 71 s):"
        " launches 90 s, replays 58 s, stops 2 s; 40 s went into a run that was interrupted or failed"
    ]


def test_what_was_begun_side_by_side_and_ended_in_a_row_is_told_apart() -> None:
    runs = [made("none", "GPU 0", 0, 50, 29), made("int8", "GPU 1", 0, 50, 29), made("int4", "GPU 0", 500, 50, 29)]
    beside = Session(began_at=0, wall_s=80, slots=["GPU 0", "GPU 1"])
    row = Session(began_at=499, wall_s=81, slots=["GPU 0"])
    both = placement(runs, beside, row).time_notes()
    assert [note.split(" took ")[0] for note in both] == [
        "2 runs side by side on GPU 0, GPU 1",
        "1 run one after the other on GPU 0",
    ]


def test_what_went_on_next_door() -> None:
    """Measured from 50 to 79 s: beside it a launch from 60 to 70 s, a replay until 75 s, and nothing after that."""
    one, other = made("none", "GPU 0", 0, 50, 29), made("int8", "GPU 1", 60, 10, 4)
    found = placement([one, other], Session(began_at=0, wall_s=80, slots=["GPU 0", "GPU 1"])).next_door(one)
    assert found.launches == pytest.approx(10 / 29)
    assert found.anything == pytest.approx(15 / 29)
    twice = [one, other, made("int4", "GPU 2", 65, 10, 9)]  # launches from 60 to 75, something from 60 to 79
    found = placement(twice, Session(began_at=0, wall_s=80, slots=["GPU 0", "GPU 1", "GPU 2"])).next_door(one)
    assert found.launches == pytest.approx(15 / 29)
    assert found.anything == pytest.approx(19 / 29)


def test_a_session_that_was_killed_keeps_its_time_until_its_last_run_began(tmp_path: Path) -> None:
    slot = Slot(0, ("0",))
    log = PlacementLog(tmp_path, (slot,))
    log.add(log.begin("none", 0, slot).with_parts(1.0, 2.0, 3.0), slot)
    log.begin("int8", 0, slot)
    killed = read_placement(tmp_path)
    assert killed is not None
    again = PlacementLog(tmp_path, (slot,))
    again.add(again.begin("int8", 0, slot).with_parts(1.0, 2.0, 3.0), slot)
    kept = read_placement(tmp_path)
    assert kept is not None
    assert kept.sessions[0] == killed.sessions[0]
    assert len(kept.sessions) == 2
    assert [run.arm for run in kept.runs] == ["none", "int8"]
    assert [kept.session_of(run) for run in kept.runs] == kept.sessions


def test_a_folder_that_kept_the_sum_only_is_read(tmp_path: Path) -> None:
    old = {"slots": ["GPU 0", "GPU 1"], "cpus": [], "wall_s": 80.0}
    old["runs"] = [msgspec.to_builtins(made(arm, slot, 7.0, 50, 29)) for arm, slot in (("a", "GPU 0"), ("b", "GPU 1"))]
    (tmp_path / PLACEMENT_NAME).write_bytes(msgspec.json.encode(old))
    kept = read_placement(tmp_path)
    assert kept is not None
    assert kept.sessions == [Session(began_at=7.0, wall_s=80.0, slots=["GPU 0", "GPU 1"])]
    assert "(2.00 times as long)" in kept.time_notes()[0]


def test_runs_on_gpus_of_different_kinds_are_told_arm_by_arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_on(kind: str | None) -> RunDir:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        server = ServerInfo(url="http://127.0.0.1:1", gpu_kind=kind)
        return RunDir.create(folder, manifest_of(servers=[server]))

    plan = ExperimentPlan(trace="t", trace_sha256="", arms=make_arms(["none", "int4"], {}, floor="none"), repeats=2)

    def told(none: list[str | None], int4: list[str | None]) -> list[str]:
        runs = {"none": tuple(map(run_on, none)), "int4": tuple(map(run_on, int4))}
        monkeypatch.setattr(course, "completed", lambda _plan, _out: runs)
        return course._unlike(plan, tmp_path)

    assert told(["H100", "H100"], ["H100", "H100"]) == []
    assert told([None, "H100"], ["H100", None]) == []
    (even,) = told(["H100", "A100"], ["A100", "H100"])
    assert "each arm had as many of each" in even
    (odd,) = told(["H100", "H100"], ["A100", "H100"])
    assert "(none 0 on A100 and 2 on H100; int4 1 on A100 and 1 on H100): what arms differ by is partly" in odd


def test_arms_that_fail_do_not_take_the_last_place_with_them(tmp_path: Path) -> None:
    slots = [Slot(number, (str(number),)) for number in range(3)]
    log = PlacementLog(tmp_path, slots)
    own = ServerError("its own fault")
    assert [log.useless(slots[0], own) for _ in range(2)] == [None, "two arms failed there one after the other"]
    assert [log.useless(slots[1], own) for _ in range(2)] == [None, "two arms failed there one after the other"]
    assert [log.useless(slots[2], own) for _ in range(4)] == [None] * 4
    lost = RootCause("gpu_lost", "GPU is lost")
    assert log.useless(slots[2], ServerDiedError("died", lost)) == "its GPU is at fault"
