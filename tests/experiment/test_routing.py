"""From comparisons on disk to routers, through the command line."""

import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.experiment.plan import trace_digest
from kvload.experiment.routing.fitting import Source, parse_part
from kvload.experiment.routing.load import load_comparisons
from kvload.prompt_features import FEATURES
from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo, prompt_digest
from kvload.route_model import read
from kvload.rundir import CHUNK_DTYPE, RunDir

pytest.importorskip("sklearn")

TASKS = {"safe": 0.02, "middling": 0.2, "fragile": 0.7}


def study(folder: Path, seed: int, n: int = 200) -> None:
    """Score files of a full cache and a method whose losses hang on the task alone."""
    draw = random.Random(seed)
    for task, chance in TASKS.items():
        base = [{"id": f"{seed}-{number}", "score": 1.0} for number in range(n)]
        arm = [{"id": row["id"], "score": 0.0 if draw.random() < chance else 1.0} for row in base]
        for name, rows in (("none", base), ("method", arm)):
            path = folder / name / f"{task}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows))


def test_score_files_route_by_task_and_recover_what_the_tasks_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path / "a", 1)
    study(tmp_path / "b", 2)
    file = tmp_path / "router.json"
    assert run(["route", "fit", str(tmp_path / "a"), "-o", str(file)]) == 0
    said = capsys.readouterr().out
    assert "no better than routing by task" in said
    assert "score files hold no prompts" in said
    command = ["route", "evaluate", str(tmp_path / "b"), "--router", str(file), "--page", str(tmp_path / "p.html")]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluations"][0]
    at = next(point for point in found["curve"]["points"] if point["share"] == 0.2)
    lost = {
        task: 1 - np.mean([row["score"] for row in json.loads((tmp_path / "b/method" / f"{task}.json").read_text())])
        for task in TASKS
    }
    # a fifth of all requests is three fifths of the most fragile task's
    assert at["recovered"]["estimate"] == pytest.approx(0.6 * lost["fragile"] / sum(lost.values()))
    assert at["by_task"] == pytest.approx(at["score"]["estimate"])
    assert found["curve"]["oracle_note"].startswith("none")
    assert "no better than routing by task" in (tmp_path / "p.html").read_text()
    assert run(["route", "evaluate", str(tmp_path / "a"), "--router", str(file)]) == 2
    assert "600 of 600 requests ask what the router was fitted on" in capsys.readouterr().err


def requests(n: int) -> list[dict[str, object]]:
    """Questions of which the long ones are lost by the method."""
    return [
        {
            "id": f"r{number}",
            "messages": [{"role": "user", "content": f"{number}: " + "word " * (200 if number % 2 else 5)}],
            "expected": "yes",
            "scorer": "exact",
            "task": "t",
        }
        for number in range(n)
    ]


def write_run(folder: Path, trace: Path, rows: list[dict[str, object]], method: str, *, loses: bool) -> None:
    manifest = RunManifest(
        run_id=folder.name,
        kvload_version="0",
        servers=[ServerInfo(url="http://127.0.0.1:1", method=method, bytes_per_token=100.0 if loses else 400.0)],
        trace=TraceInfo(path=str(trace), sha256=trace_digest(trace), format="kvload", rows=len(rows), used=len(rows)),
        mode="free",
        seed=0,
        arrivals={},
        planned=len(rows),
        partial=False,
    )
    made = RunDir.create(folder, manifest)
    with made.writer("worker-0") as writer:
        for index, row in enumerate(rows):
            fails = loses and index % 2 == 1
            record = RequestRecord(
                index=index,
                request_id=str(row["id"]),
                prompt_digest=prompt_digest(row["messages"]),  # type: ignore[arg-type]
                max_tokens=64,
                t_sched_s=0.0,
                t_send_s=0.0,
                t_first_s=0.1,
                t_last_s=0.2,
                t_end_s=0.2,
                status="ok",
                prompt_tokens=10,
                output_tokens=64 if fails else 8,
                output_tokens_source="usage",
                first_chunk_tokens=1,
                finish_reason="length" if fails else "stop",
                text="no" if fails else "yes",
                expected="yes",
                scorer="exact",
                task="t",
            )
            writer.append(record, np.zeros(1, CHUNK_DTYPE))


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    rows = requests(120)
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    folder = tmp_path / "study"
    write_run(folder / "r0-none", trace, rows, "none", loses=False)
    write_run(folder / "r0-none-again", trace, rows, "none", loses=False)
    write_run(folder / "r0-method", trace, rows, "method", loses=True)
    return folder


def test_run_folders_are_read_with_their_prompts(comparison: Path) -> None:
    found = load_comparisons([comparison])
    assert list(found.samples) == ["method"]
    samples = found.samples["method"]
    assert samples.features.shape == (120, len(FEATURES))
    assert samples.base_score.tolist() == samples.again_score.tolist() == [1.0] * 120
    assert samples.arm_score.tolist() == [1.0, 0.0] * 60
    assert samples.arm_cut.tolist() == [False, True] * 60
    assert samples.arm_tokens.tolist() == [8.0, 64.0] * 60
    assert samples.base_bytes.tolist() == [18 * 400.0] * 120
    assert len(found.requests) == 120
    places = {name: number for number, name in enumerate(FEATURES)}
    assert samples.features[1, places["log_characters"]] > samples.features[0, places["log_characters"]] + 3
    assert samples.features[0, places["log_max_tokens"]] == pytest.approx(np.log1p(64), abs=1e-3)


def test_a_router_learns_from_prompts_and_is_judged_by_others(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "router.json"
    assert run(["route", "fit", str(comparison), "--part", "1/2", "-o", str(file)]) == 0
    assert run(["route", "evaluate", str(comparison), "--part", "2/2", "--router", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.count("better than routing by task: skill") == 2
    router = read(file).of(None)
    assert router.event is not None
    assert router.event.trees
    assert run(["lengths", str(comparison), "-o", str(tmp_path / "lengths.json")]) == 0
    ratios = json.loads((tmp_path / "lengths.json").read_text())["method"]
    assert (ratios[0], ratios[-1]) == (1.0, 1.0)
    assert "60 ratios known from one side only" in capsys.readouterr().out


def test_the_trace_that_was_replayed_is_asked_for(comparison: Path, tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").rename(tmp_path / "elsewhere.jsonl")
    found = load_comparisons([comparison])
    assert found.samples["method"].features.shape[1] == 0
    assert "only tasks are learnt" in found.notes[0]
    assert load_comparisons([comparison], trace=tmp_path / "elsewhere.jsonl").samples["method"].features.shape[1]
    (tmp_path / "other.jsonl").write_text('{"id": "r0", "prompt": "x"}\n')
    with pytest.raises(UsageError, match="not the trace that was replayed"):
        load_comparisons([comparison], trace=tmp_path / "other.jsonl")
    with pytest.raises(UsageError, match="no arm 'other'"):
        Source([comparison], arms=["other"]).read()


def test_parts() -> None:
    assert parse_part("2/3") == (2, 3)
    for wrong in ("²/3", "0/2", "3/2", "1", "1/1", "a/b", "1/1000"):
        with pytest.raises(UsageError):
            parse_part(wrong)
