"""A comparison side by side, with real servers in processes of their own: one killed, one GPU dead, resumed."""

import errno
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvload.cli.main import run
from kvload.errors import KvloadError, UsageError
from kvload.experiment import beside, comparison
from kvload.experiment.beside import BesideWatcher, run_beside
from kvload.experiment.course import course_of
from kvload.experiment.options import RunOptions
from kvload.experiment.placement import read_placement
from kvload.experiment.plan import ExperimentPlan, PlannedRun, load
from kvload.experiment.run import Watcher, completed, make_run, pending
from kvload.experiment.slots import Slot, make_slots
from kvload.rundir import RunDir
from kvload.servers.engines import base
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.lifecycle import cards, registry
from kvload.workloads.run.plan import Sending


@pytest.fixture(autouse=True)
def mock_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engines = {**base.ENGINES, "mock": "tests.experiment.mock_engine:MockAdapter"}
    monkeypatch.setattr(base, "ENGINES", engines)
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))


def make_plan(tmp_path: Path, gap_s: float = 0.05, **changes: Any) -> tuple[ExperimentPlan, Path]:
    trace, out = tmp_path / "t.jsonl", tmp_path / "experiment"
    rows = [{"id": f"r{i}", "arrival": gap_s * i, "input_length": 20, "output_length": 6} for i in range(25)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "methods": ["none", "int8"],
        "urls": {},
        "baseline": None,
        "floor": "again",
        "repeats": 1,
        "launch": LaunchRequest(engine="mock"),
        "run": RunOptions(sending=Sending(timeout_s=20.0, drain_s=20.0), calibrate=False),
        "gpus": ("0", "1"),
    }
    made = comparison.new_plan(trace, **(settings | changes))
    comparison.keep(made, out)
    return made, out


def places(plan: ExperimentPlan) -> tuple[Slot, ...]:
    return make_slots(plan.gpus, plan.per_arm, [], 1)


@pytest.mark.slow
def test_all_runs_are_made_on_gpus_of_their_own_and_the_time_saved_is_said(tmp_path: Path) -> None:
    plan, out = make_plan(tmp_path, repeats=2)
    assert run_beside(plan, out, places(plan), BesideWatcher()) == {}
    assert pending(plan, out) == []
    used: dict[str, set[str]] = {}
    for arm, runs in completed(plan, out).items():
        for made in runs:
            server = made.manifest().server
            assert server.env is not None
            assert server.env["CUDA_VISIBLE_DEVICES"] == ",".join(server.gpus)
            used.setdefault(arm, set()).update(server.gpus)
    assert used == {"none": {"0", "1"}, "none (again)": {"0", "1"}, "int8": {"0", "1"}}
    placement = read_placement(out)
    assert placement is not None
    assert len(placement.runs) == 7  # six and the baseline alone
    assert placement.serial_s > placement.wall_s > 0
    course = course_of(plan, out)
    assert course is not None
    assert "6 runs side by side on GPU 0, GPU 1 and the baseline alone took" in course.time[0]
    said = [*course.bends, *course.notes]
    assert any("beside others than alone" in note for note in said)
    assert any("on GPU 1 than on GPU 0" in note for note in said)
    assert any("a server was being launched next door" in note for note in said)
    assert sum(note.startswith("GPU ") for note in said) == 2
    loads = [stretch for stretch in course.stretches if stretch.what == "replay"]
    assert sorted(stretch.place for stretch in loads) == ["GPU 0"] * 4 + ["GPU 1"] * 3
    assert max(stretch.ended_s for stretch in course.stretches) <= placement.wall_s + 0.1
    for place in ("GPU 0", "GPU 1"):  # one thing at a time in each
        mine = sorted((s.began_s, s.ended_s) for s in course.stretches if s.place == place)
        assert all(later[0] >= former[1] - 0.1 for former, later in itertools.pairwise(mine))
    assert registry.entries() == []


@pytest.mark.slow
def test_a_server_killed_in_mid_run_fails_its_arm_alone_and_resuming_finishes_it(tmp_path: Path) -> None:
    plan, out = make_plan(tmp_path, gap_s=0.3)
    killed: list[int] = []

    def for_run(planned: PlannedRun, slot: Slot) -> Watcher:
        watcher = Watcher()

        def kill(progress: Any) -> None:
            if planned.arm == "int8" and progress.done >= 3 and not killed:
                entry = next(entry for entry in registry.entries() if entry.info.method == "int8")
                os.kill(entry.pid, signal.SIGKILL)
                killed.append(entry.pid)

        return replace(watcher, listener=replace(watcher.listener, on_progress=kill))

    failed = run_beside(plan, out, places(plan), BesideWatcher(for_run=for_run))
    assert killed
    assert list(failed) == ["int8"]
    assert "server died" in str(failed["int8"])
    assert [made.arm for made in pending(plan, out)] == ["int8"]
    partial = RunDir.open(out / "runs" / "r0-int8").manifest()
    assert partial.partial
    assert (partial.sent or 0) + (partial.unsent or 0) == 25
    assert registry.entries() == []
    course = course_of(plan, out)
    assert course is not None
    assert course.bends[0].startswith("int8 failed in repeat 1 on GPU")
    before = (out / "runs" / "r0-none" / "manifest.json").read_bytes()
    assert run_beside(plan, out, places(plan), BesideWatcher()) == {}
    assert pending(plan, out) == []
    assert (out / "runs" / "r0-none" / "manifest.json").read_bytes() == before
    assert (out / "runs" / "r0-int8.unfinished-1").is_dir()
    course = course_of(plan, out)
    assert course is not None
    assert not any("failed" in said for said in course.bends)
    assert "went into a run that was interrupted or failed" in course.time[0]


@pytest.mark.slow
def test_a_gpu_that_is_lost_in_mid_run_costs_one_arm_and_is_not_used_again(tmp_path: Path) -> None:
    plan, out = make_plan(tmp_path, gap_s=0.2, methods=["none", "int8", "int4", "fp8"], repeats=2, alone=False)
    lost: list[str] = []
    begun: list[tuple[str, str]] = []

    def for_run(planned: PlannedRun, slot: Slot) -> Watcher:
        watcher = Watcher()
        begun.append((planned.arm, slot.name))

        def lose(progress: Any) -> None:
            if planned.arm == "int8" and progress.done >= 2 and not lost:
                entry = next(entry for entry in registry.entries() if entry.info.method == "int8")
                with entry.log.open("a") as log:
                    log.write("RuntimeError: NVML_SUCCESS: GPU 0000:3B:00.0 has fallen off the bus\n")
                os.kill(entry.pid, signal.SIGKILL)
                lost.append(slot.name)

        return replace(watcher, listener=replace(watcher.listener, on_progress=lose))

    said: list[str] = []
    failed = run_beside(plan, out, places(plan), BesideWatcher(for_run=for_run, on_notice=said.append))
    assert list(failed) == ["int8"]
    assert "fallen off the bus" in str(failed["int8"])
    assert f"nothing more is run on {lost[0]}: its GPU is at fault" in said
    after = begun[begun.index(("int8", lost[0])) + 1 :]
    assert [place for _, place in after if place == lost[0]] == []
    assert {run.arm for run in pending(plan, out)} == {"int8"}
    assert registry.entries() == []


@pytest.mark.slow
def test_a_disk_that_is_full_ends_all_of_it_and_what_was_measured_beside_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, _ = make_plan(tmp_path)
    out = tmp_path / "full"
    made = make_run

    def without_room(plan: Any, folder: Path, planned: PlannedRun, *rest: Any) -> Any:
        if planned.arm == "int8":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "records"))
        return made(plan, folder, planned, *rest)

    monkeypatch.setattr(beside, "make_run", without_room)
    words = ["compare", plan.trace, "--engine", "mock", "--method", "none", "--method", "int8", "--repeats", "1"]
    words += ["--gpus", "0,1", "--no-verify", "--no-calibrate", "--warmups", "0", "--no-alone", "--out", str(out)]
    assert run(words) == 4
    assert "No space left on device" in capsys.readouterr().err
    assert registry.entries() == []
    kept = [planned.arm for planned in load(out).runs() if planned not in pending(load(out), out)]
    assert kept == ["none"]
    monkeypatch.setattr(beside, "make_run", made)
    assert run(["compare", "--resume", str(out), "--no-verify"]) == 0
    assert pending(load(out), out) == []


@pytest.mark.slow
def test_a_dead_gpu_fails_one_arm_and_the_others_are_made_on_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN_GPU", "1")
    plan, out = make_plan(tmp_path, methods=["none", "int8", "int4"])
    said: list[str] = []
    failed = run_beside(plan, out, places(plan), BesideWatcher(on_notice=said.append))
    assert len(failed) == 1
    (error,) = failed.values()
    assert "No CUDA GPUs are available" in str(error)
    assert any("nothing more is run on GPU 1: its GPU is at fault" in text for text in said)
    made = [one.manifest().server.gpus for runs in completed(plan, out).values() for one in runs]
    assert made == [["0"]] * 3
    monkeypatch.delenv("BROKEN_GPU")
    assert run_beside(plan, out, places(plan), BesideWatcher()) == {}


def test_a_baseline_that_does_not_start_ends_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = make_plan(tmp_path, launch=LaunchRequest(engine="mock", model="/nowhere"))
    with pytest.raises(KvloadError):
        run_beside(plan, out, places(plan), BesideWatcher())
    assert registry.entries() == []


@pytest.mark.slow
def test_ctrl_c_ends_all_lanes_and_leaves_no_server(tmp_path: Path) -> None:
    plan, out = make_plan(tmp_path, repeats=2)

    def for_run(planned: PlannedRun, slot: Slot) -> Watcher:
        def stop(progress: Any) -> None:
            if progress.done >= 3:
                os.kill(os.getpid(), signal.SIGINT)

        watcher = Watcher()
        return replace(watcher, listener=replace(watcher.listener, on_progress=stop))

    with pytest.raises(KeyboardInterrupt):
        run_beside(plan, out, places(plan), BesideWatcher(for_run=for_run))
    assert registry.entries() == []
    assert len(pending(plan, out)) >= 4


def test_a_running_server_is_given_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs already"):
        make_plan(tmp_path, urls={"theirs": "http://127.0.0.1:1"})


def test_the_command_shows_where_each_run_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, _ = make_plan(tmp_path)
    words = ["compare", plan.trace, "--engine", "mock", "--gpus", "0,1,2,3", "--per-arm", "2"]
    words += ["--method", "none", "--method", "int8", "--repeats", "2", "--dry-run", "--out", str(tmp_path / "o")]
    assert run(words) == 0
    shown = capsys.readouterr().err
    assert "none (repeat 1) on GPUs 0,1" in shown
    assert "none (again) (repeat 1) on GPUs 2,3" in shown
    assert run([*words, "--gpus", "0,1,2"]) == 0
    assert "GPU 2 stays unused: a server takes 2" in capsys.readouterr().err
    assert "the baseline once more with nothing beside it" in shown
    assert run([*words, "--serial"]) == 0
    assert "GPUs" not in capsys.readouterr().err
    assert run([*words, "--per-arm", "5"]) == 2


def test_a_gpu_that_another_experiment_has_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, _ = make_plan(tmp_path)
    out = tmp_path / "second"
    words = [plan.trace, "--engine", "mock", "--method", "none", "--method", "int8", "--out", str(out)]
    with cards.held(("1",), "runs/first (process 7)"):
        assert run(["compare", *words, "--gpus", "0,1"]) == 2
        assert "GPU 1 is being measured on: runs/first (process 7)" in capsys.readouterr().err
        assert run(["compare", *words, "--gpus", "1", "--serial"]) == 2
        sweep = ["--rates", "20", "--slo", "ttft=5s", "--target", "0.5", "--duration", "1s", "--gpus", "0,1"]
        assert run(["sweep", *words, *sweep]) == 2
        assert not out.exists()
        assert run(["compare", *words, "--gpus", "0,1", "--dry-run"]) == 0
    assert cards.holder("0") is None


def test_what_would_be_ignored_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, _ = make_plan(tmp_path)
    words = ["compare", plan.trace, "--engine", "mock", "--method", "none", "--per-arm", "2", "--dry-run"]
    assert run(words) == 2
    assert "--per-arm" in capsys.readouterr().err


@pytest.mark.slow
def test_one_after_the_other_interrupted_and_resumed_the_time_of_both_sessions_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, _ = make_plan(tmp_path, gap_s=0.1)
    out = tmp_path / "serial"
    words = ["compare", plan.trace, "--engine", "mock", "--gpus", "0,1", "--serial", "--no-verify", "--no-calibrate"]
    words += ["--method", "none", "--method", "int8", "--repeats", "1", "--warmups", "0", "--out", str(out)]

    def interrupt() -> None:
        records = out / "runs" / "r0-int8" / "records"
        while not any(path.stat().st_size for path in records.glob("*.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(words) == 130
    thread.join()
    assert "1 of 3 runs are kept" in capfd.readouterr().err
    assert registry.entries() == []
    assert run(["compare", "--resume", str(out), "--details"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "3 runs one after the other on GPU 0 took" in said
    assert "in 2 sessions" in said
    assert "went into a run that was interrupted or failed" in said
    placement = read_placement(out)
    assert placement is not None
    first, second = placement.sessions
    assert placement.wall_s == pytest.approx(first.wall_s + second.wall_s)
    assert placement.serial_s + sum(made.lost_s or 0.0 for made in placement.runs) <= placement.wall_s
    assert load(out).launch.verify is False


@pytest.mark.slow
def test_walks_of_a_sweep_go_on_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan, _ = make_plan(tmp_path)
    words = ["sweep", plan.trace, "--engine", "mock", "--gpus", "0,1", "--no-verify", "--method", "none"]
    words += ["--method", "int8", "--rates", "8,16", "--slo", "ttft=2s", "--target", "0.5", "--duration", "1s"]
    words += ["--no-calibrate", "--warmups", "0", "--out", str(tmp_path / "sweep")]
    assert run(words) == 0
    said = capfd.readouterr().err
    assert "on GPU 1: int8" in said
    assert "GPU 0: none at 8/s" in said
    assert "GPU 1: int8 at 16/s" in said
    found = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [len(curve["levels"]) for curve in found["curves"]] == [2, 2]
    assert any("2 walks side by side on GPU 0, GPU 1" in note for note in found["notes"])
    servers = {path.name: RunDir.open(path).manifest().server for path in (tmp_path / "sweep" / "runs").iterdir()}
    assert {name: server.gpus for name, server in servers.items()} == {
        "none-at-8-r0": ["0"],
        "none-at-16-r0": ["0"],
        "int8-at-8-r0": ["1"],
        "int8-at-16-r0": ["1"],
    }
    assert registry.entries() == []
