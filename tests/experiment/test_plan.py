"""The plan of an experiment: arms, order, resumption."""

import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import RunDirError, UsageError
from kvload.experiment.options import RunOptions
from kvload.experiment.plan import ExperimentPlan, is_complete, load, make_arms, perturbing_args, save, set_aside
from kvload.records import RunManifest, ServerInfo, TraceInfo
from kvload.rundir import RunDir
from kvload.servers.engines.base import LaunchRequest
from kvload.workloads.schedule.options import ScheduleOptions


def plan(methods: list[str], repeats: int = 1) -> ExperimentPlan:
    arms = make_arms(methods, {})
    return ExperimentPlan(trace="t.jsonl", trace_sha256="0" * 64, arms=arms, repeats=repeats)


def test_the_baseline_comes_first_and_runs_twice() -> None:
    arms = make_arms(["kivi-4", "none", "h2o:budget=64"], {})
    assert [arm.name for arm in arms] == ["none", "none (again)", "kivi-4", "h2o:budget=64"]
    assert [arm.baseline for arm in arms] == [True, False, False, False]
    assert [arm.floor for arm in arms] == [False, True, False, False]
    assert arms[1].method == "none"


def test_without_a_floor_there_is_no_second_baseline() -> None:
    assert [arm.name for arm in make_arms(["none", "int8"], {}, floor="none")] == ["none", "int8"]


def test_a_perturbed_baseline_runs_in_another_dtype_between_the_others() -> None:
    arms = make_arms(["none", "int8"], {}, floor="perturb", perturbation=("--dtype", "float16"))
    assert [arm.name for arm in arms] == ["none", "none (again)", "none (perturbed)", "int8"]
    assert [arm.engine_args for arm in arms] == [(), (), ("--dtype", "float16"), ()]
    experiment = msgspec.structs.replace(plan(["none", "int8"]), arms=arms)
    assert [run.arm for run in experiment.runs()] == ["none", "none (perturbed)", "int8", "none (again)"]
    with pytest.raises(UsageError, match="not launched by kvload"):
        make_arms([], {"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"}, floor="perturb")


@pytest.mark.parametrize(
    ("own", "dtype"),
    [
        ((), "float16"),
        (("--dtype", "auto"), "float16"),
        (("--dtype", "float32"), "float16"),
        (("--dtype", "float16"), "bfloat16"),
        (("--dtype=half",), "bfloat16"),
    ],
)
def test_the_perturbed_dtype_is_another_one(own: tuple[str, ...], dtype: str) -> None:
    assert perturbing_args(own) == ("--dtype", dtype)


def test_servers_by_url_are_arms_too() -> None:
    arms = make_arms([], {"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"}, baseline="b", floor="none")
    assert [(arm.name, arm.url, arm.baseline) for arm in arms] == [
        ("b", "http://127.0.0.1:2", True),
        ("a", "http://127.0.0.1:1", False),
    ]


@pytest.mark.parametrize(
    ("methods", "baseline", "message"),
    [
        (["none"], None, "two arms are needed"),
        (["int8", "int8"], None, "twice"),
        (["none", "int8"], "kivi", "not one of the arms"),
    ],
)
def test_wrong_arms_are_refused(methods: list[str], baseline: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_arms(methods, {}, baseline=baseline)


@given(count=st.integers(2, 6), cycles=st.integers(1, 3))
def test_every_arm_stands_in_every_position_equally_often(count: int, cycles: int) -> None:
    arms = make_arms([f"m{i}" for i in range(count)], {}, floor="none")
    experiment = msgspec.structs.replace(plan(["a", "b"]), arms=arms, repeats=cycles * count)
    runs = experiment.runs()
    positions = Counter((run.arm, place % count) for place, run in enumerate(runs))
    assert len(runs) == count * experiment.repeats
    assert set(positions.values()) == {cycles}
    assert len({run.folder for run in runs}) == len(runs)


@given(methods=st.integers(1, 5), repeats=st.integers(1, 6))
def test_every_repeat_lies_between_the_baselines_two_runs(methods: int, repeats: int) -> None:
    experiment = plan(["none", *(f"m{i}" for i in range(methods))], repeats=repeats)
    runs = experiment.runs()
    size = methods + 2
    for repeat in range(repeats):
        names = [run.arm for run in runs[repeat * size : (repeat + 1) * size]]
        ends = ["none", "none (again)"]
        assert [names[0], names[-1]] == (ends if repeat % 2 == 0 else ends[::-1])
        assert sorted(names[1:-1]) == sorted(f"m{i}" for i in range(methods))
    # A drift that grows steadily adds as much to every arm's mean as to that of the baseline's runs.
    if repeats % (2 * methods) == 0:
        mean = {arm.name: np.mean([p for p, run in enumerate(runs) if run.arm == arm.name]) for arm in experiment.arms}
        assert {round(float(value), 6) for value in mean.values()} == {(len(runs) - 1) / 2}


def test_the_estimate_counts_launches_only_where_there_are_any() -> None:
    launched = plan(["none", "int8"], repeats=2)
    assert launched.estimate_s(100.0, "embedded") == pytest.approx(2 * 3 * (100.0 + 12.0))
    arms = make_arms([], {"a": "http://x", "b": "http://y"}, floor="none")
    given_urls = ExperimentPlan(trace="t", trace_sha256="", arms=arms, repeats=1)
    assert given_urls.estimate_s(100.0, "embedded") == pytest.approx(200.0)


def test_a_plan_survives_its_folder(tmp_path: Path) -> None:
    experiment = plan(["none", "h2o:budget=64"], repeats=2)
    save(experiment, tmp_path / "e")
    assert load(tmp_path / "e") == experiment
    with pytest.raises(UsageError, match="--resume"):
        save(experiment, tmp_path / "e")


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"experiment\.json"):
        load(tmp_path)


def test_only_a_finished_run_is_complete_and_an_unfinished_one_is_kept(tmp_path: Path) -> None:
    manifest = RunManifest(
        run_id="r",
        kvload_version="0",
        servers=[ServerInfo(url="http://x")],
        trace=TraceInfo(path="t", sha256="", format="kvload", rows=1, used=1),
        mode="free",
        seed=0,
        arrivals={},
        planned=1,
    )
    folder = tmp_path / "r0-none"
    assert not is_complete(folder)
    run = RunDir.create(folder, manifest)
    assert not is_complete(folder)
    run.update_manifest(partial=False)
    assert is_complete(folder)
    run.update_manifest(partial=True)
    assert set_aside(folder) == tmp_path / "r0-none.unfinished-1"
    assert not folder.exists()
    assert set_aside(folder) is None


def test_a_plan_of_the_first_version_is_read(tmp_path: Path) -> None:
    written = {
        "trace": "t.jsonl",
        "trace_sha256": "00",
        "arms": [{"name": "a", "url": "http://127.0.0.1:1", "baseline": True}, {"name": "b", "method": "int8"}],
        "repeats": 1,
        "launch": {"model": None, "engine": "vllm", "kv_memory": 1024, "engine_args": ["--x"]},
        "replay": {
            "format": "kvload",
            "mode": "forced",
            "slo": {"ttft": 0.5},
            "seed": 3,
            "default_max_tokens": 8,
            "limit": None,
            "warmups": 4,
            "workers": 2,
            "timeout_s": None,
            "concurrency": 5,
            "arrivals": {"kind": "once", "speed": 1.0, "ramps": [], "start_s": 2.0},
        },
    }
    (tmp_path / "experiment.json").write_text(json.dumps(written), encoding="utf-8")
    plan = load(tmp_path)
    assert (plan.launch.engine, plan.launch.kv_memory, plan.launch.engine_args) == ("vllm", 1024, ("--x",))
    assert plan.run.slo == {"ttft": 0.5}
    schedule, sending = plan.run.schedule, plan.run.sending
    assert (schedule.mode, schedule.seed, schedule.default_max_tokens, schedule.arrivals.start_s) == (
        "forced",
        3,
        8,
        2.0,
    )
    assert (sending.warmups, sending.workers, sending.timeout_s, sending.concurrency) == (4, 2, None, 5)


def test_a_plan_that_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    run = RunOptions(
        schedule=ScheduleOptions(token_range=(5, 9), temperature=0.5), slo={"p99_ttft": 1.0}, insecure=True
    )
    arms = make_arms(["none"], {"a": "https://127.0.0.1:1"})
    plan = ExperimentPlan(
        trace="t", trace_sha256="", arms=arms, repeats=2, run=run, launch=LaunchRequest(engine="vllm")
    )
    save(plan, tmp_path / "e")
    assert load(tmp_path / "e") == plan
    assert [found.insecure for arm in arms if (found := arm.address(insecure=True))] == [True]


def test_vllms_word_for_a_method_is_taken_for_the_catalogues() -> None:
    assert [arm.name for arm in make_arms(["none", "fp8"], {}, floor="none")] == ["none", "fp8-e4m3"]
    with pytest.raises(UsageError, match="twice"):
        make_arms(["fp8", "fp8-e4m3"], {})
