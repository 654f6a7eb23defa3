"""Quality of runs and of score files, through the command itself as well."""

import contextlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvload.analysis.quality import score_files
from kvload.analysis.quality.assess import AGREEMENT, assess, score_arms, stack
from kvload.analysis.quality.negatives import Gate
from kvload.analysis.quality.score_files import as_table, read_scores
from kvload.analysis.quality.texts import compare_texts
from kvload.analysis.report.quality_text import print_quality
from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.records import RequestRecord
from kvload.workloads.schedule.build import build_schedule
from kvload.workloads.traces.formats import read_trace
from kvload.workloads.traces.trace import TraceRequest, write_trace_file


def record(index: int, text: str | None, **fields: Any) -> RequestRecord:
    given: dict[str, Any] = {
        "index": index,
        "request_id": f"r{index}",
        "prompt_digest": f"d{index}",
        "max_tokens": 9,
        "t_sched_s": 0.0,
        "status": "ok",
        "text": text,
    }
    return RequestRecord(**given | fields)


BASE = [
    record(0, "5279", expected="5279", scorer="exact", task="recall"),
    record(1, "lamp, fox", expected="fox, lamp", scorer="items", task="list"),
    record(2, "one two three four", task="chat"),
    record(3, "7", expected="7", scorer="exact", task="recall"),
]


def test_arms_are_scored_by_the_traces_scorers() -> None:
    arm = [
        record(0, "1111"),
        record(1, "lamp"),
        record(2, "one two"),
        record(3, None, status="failed"),
    ]
    table = score_arms(BASE, {"kivi": arm}, base_name="none")
    assert table.scorer == ("exact", "items", AGREEMENT, "exact")
    assert table.tasks == ("recall", "list", "chat", "recall")
    assert table.base.tolist() == [1, 1, 1, 1]
    assert table.arms["kivi"][:3] == pytest.approx([0, 2 / 3, 2 / 3])
    assert np.isnan(table.arms["kivi"][3])
    assert table.missing == {"none": 0, "kivi": 1}


def test_repeated_questions_are_left_out_and_missing_records_told() -> None:
    again = record(4, "wrong", expected="5279", scorer="exact", task="recall", prompt_digest="d0")
    table = score_arms([*BASE, again], {"kivi": BASE[:2]})
    assert (table.duplicates, len(table.ids)) == (1, 4)
    assert table.missing["kivi"] == 2


def test_a_bad_expectation_names_the_request() -> None:
    with pytest.raises(UsageError, match="request 'r0': the numeric scorer finds no number"):
        score_arms([record(0, "5", expected="none", scorer="numeric")], {})


def test_assessment_of_repeats() -> None:
    worse = [msgspec.structs.replace(each, text="nothing") for each in BASE]
    table = stack([score_arms(BASE, {"aa": BASE, "h2o": worse}) for _ in range(2)])
    found = assess(table, floor="aa", thetas=[0.1], rng=np.random.default_rng(0))
    overall = {change.arm: change for change in found.changes if change.task is None}
    assert (overall["aa"].difference.estimate, overall["h2o"].difference.estimate) == (0, -1)
    # the chat has no right answer: agreement is no score
    assert overall["h2o"].n == 6
    # repeats of one request are one unit
    assert overall["h2o"].difference.n == 3
    assert {change.task for change in found.changes} == {None, "recall", "list"}
    (count,) = [each for each in found.negatives if each.task is None]
    assert (count.methods, count.negative, count.mirror, count.floor_negative) == (("h2o",), 6, 0, 0)
    assert count.against_mirror.n == 3
    assert found.negative_ids(table)["r0"] == {"theta": {"h2o": 0.1}, "baseline": 1.0}
    with pytest.raises(UsageError, match="no such arm: 'zz'"):
        assess(table, floor="zz", rng=np.random.default_rng(0))
    without = assess(score_arms(BASE, {"h2o": worse}), rng=np.random.default_rng(0))
    assert any("no noise floor" in note for note in without.notes)


def scores(folder: Path, name: str, values: dict[str, float | None] | list[Any]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": key, "score": value} for key, value in values.items()] if isinstance(values, dict) else values
    path.write_text(json.dumps(rows))


def hand_made(folder: Path) -> None:
    scores(folder, "none/qa.json", {f"q{n}": 0.5 + n / 100 for n in range(20)})
    scores(folder, "none/qb.json", {f"q{n}": 0.5 + n / 100 for n in range(20)})
    scores(folder, "none/sum.json", {"a": 1.0, "b": 0.0, "c": 1.0})
    scores(folder, "kivi-4/qa.json", {f"q{n}": 0.5 + n / 100 for n in range(20)})
    scores(folder, "kivi-4/qb.json", {f"q{n}": 0.5 + n / 100 for n in range(20)})
    scores(folder, "kivi-4/sum.json", {"a": 0.0, "b": 1.0, "c": 1.0, "d": 1.0})
    scores(folder, "h2o/qa.json", {f"q{n}": 0.1 for n in range(20)})
    scores(folder, "h2o/qb.json", {f"q{n}": 0.1 for n in range(20)})
    scores(folder, "h2o/sum.json", [{"id": "a", "score": 0}, {"id": "a", "score": 1}, {"id": "c", "score": None}])


def test_score_files_side_by_side(tmp_path: Path) -> None:
    hand_made(tmp_path)
    table = as_table(read_scores([tmp_path]))
    assert table.base_name == "none"
    assert (len(table.ids), table.tasks.count("qa"), table.tasks.count("qb")) == (23, 20, 0)
    # 20 rows of the repeated dataset, one repeated id
    assert table.duplicates == 21
    assert table.missing == {"none": 0, "h2o": 2, "kivi-4": 0}
    assert "dataset 'qb' repeats 'qa' and is left out" in table.notes
    assert "1 scores of 'kivi-4' have no partner in 'none' and are left out" in table.notes
    found = assess(table, thetas=[0.1], gate=Gate("mean"), rng=np.random.default_rng(0))
    counts = {(each.methods, each.task): (each.negative, each.mirror) for each in found.negatives}
    assert counts[("kivi-4",), "sum"] == (1, 1)
    assert counts[("h2o",), "qa"] == (10, 0)
    assert counts[("h2o",), "sum"] == (1, 0)
    assert counts[("h2o", "kivi-4"), None] == (1, 0)


def test_layouts(tmp_path: Path) -> None:
    scores(tmp_path, "none/t.json", {"a": 1})
    scores(tmp_path, "kivi/t.json", {"a": 0.5})
    scores(tmp_path, "files/none__t.json", {"a": 1})
    scores(tmp_path, "files/kivi__t.json", {"a": 0.5})
    scores(tmp_path, "bare/base.json", {"a": 1})
    scores(tmp_path, "bare/kivi.json", {"a": 0.5})
    folders = as_table(read_scores([tmp_path / "none", tmp_path / "kivi"]))
    files = as_table(read_scores([tmp_path / "files" / "none__t.json", tmp_path / "files" / "kivi__t.json"]))
    bare = as_table(read_scores([tmp_path / "bare" / "kivi.json", tmp_path / "bare" / "base.json"]))
    for table in (folders, files, bare):
        assert (table.base.tolist(), {arm: found.tolist() for arm, found in table.arms.items()}) == (
            [1],
            {"kivi": [0.5]},
        )
    assert folders.tasks == files.tasks == ("t",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "not a JSON list"),
        ("[5]", "row 1: not an object"),
        ('[{"id": 1}]', "row 1: field 'score' is missing"),
        ('[{"score": 1}]', "row 1: field 'id' is missing"),
        ('[{"id": 1.5, "score": 1}]', "field 'id' is neither"),
        ('[{"id": 1, "score": -1}]', "field 'score' is not a number of 0 or more"),
        ('[{"id": 1, "score": "1"}]', "field 'score' is not a number"),
        ('[{"id": 1, "score": 1e999}]', "not"),
        ("[" * 5000, "not valid JSON"),
    ],
)
def test_malformed_files_name_row_and_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "none.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_scores([path])
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_file_ends_in_a_traceback(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "none.json"
        path.write_bytes(content)
        with contextlib.suppress(UsageError):
            read_scores([path])


def test_limits_and_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_made(tmp_path)
    with pytest.raises(UsageError, match="no scores of 'zz'"):
        as_table(read_scores([tmp_path]), "zz")
    with pytest.raises(UsageError, match="nothing to compare"):
        as_table(read_scores([tmp_path / "none"]))
    with pytest.raises(UsageError, match="which arm is the baseline"):
        as_table(read_scores([tmp_path / "kivi-4", tmp_path / "h2o"]))
    with pytest.raises(UsageError, match="given twice"):
        read_scores([tmp_path / "none", tmp_path / "none"])
    with pytest.raises(UsageError, match="no such file or folder"):
        read_scores([tmp_path / "missing"])
    monkeypatch.setattr(score_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(UsageError, match="the file is larger than"):
        read_scores([tmp_path / "none"])
    monkeypatch.undo()
    monkeypatch.setattr(score_files, "MAX_ROWS", 25)
    with pytest.raises(UsageError, match="more than 25 scores"):
        read_scores([tmp_path])


def test_the_command_prints_exports_and_can_be_replayed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hand_made(tmp_path)
    trace = tmp_path / "trace.jsonl"
    requests = [TraceRequest(id=name, arrival=float(n), prompt=f"question {name}") for n, name in enumerate("abcd")]
    requests += [
        TraceRequest(id=f"q{n}", prompt="x", session="s", turn=n, arrival=9.0 if n == 0 else None) for n in range(20)
    ]
    write_trace_file(requests, trace)
    folder, target = str(tmp_path), tmp_path / "negative.jsonl"
    status = run(["quality", folder, "--json", "--gate", "mean", "--export", str(target), "--trace", str(trace)])
    out, err = capfd.readouterr()
    assert status == 0
    found = json.loads(out)
    assert found["base_name"] == "none"
    assert {tuple(each["methods"]) for each in found["negatives"]} == {("h2o",), ("kivi-4",), ("h2o", "kivi-4")}
    written = list(read_trace(target))
    assert f"{len(written)} requests written" in err
    marked = {request.id: request.extra["negative"] for request in written if "negative" in request.extra}
    assert marked["a"]["theta"] == {"h2o": 0.5, "kivi-4": 0.5}
    # the turns before a negative one come along
    assert [request.id for request in written if request.session] == [f"q{n}" for n in range(20)]
    assert build_schedule(iter(written), model="m").planned[0].request_id == "a"
    assert run(["quality", folder, "--set", "h2o,kivi-4"]) == 0
    assert "Negative under all arms of a set" in capfd.readouterr().out
    assert run(["quality", folder, "--details"]) == 0
    assert "Negative samples" in capfd.readouterr().out
    assert run(["quality", folder, "--gate", "best"]) == 2
    assert "is not a gate" in capfd.readouterr().err
    assert run(["quality", folder, "--export", str(target)]) == 2
    assert capfd.readouterr().err == "error: --export and --trace need each other\n"


def test_tables_of_other_arms_do_not_stack() -> None:
    table = score_arms(BASE, {"a": BASE})
    with pytest.raises(ValueError, match="different arms"):
        stack([table, replace(table, arms={"b": table.base})])


def test_an_answer_without_text_is_not_scored() -> None:
    """Two answers that say nothing do not agree, and a tool call is an answer."""

    def answer(**fields: Any) -> RequestRecord:
        return msgspec.structs.replace(BASE[0], expected=None, scorer=None, **fields)

    def scores(base: RequestRecord, arm: RequestRecord) -> float:
        return float(score_arms([base], {"arm": [arm]}).arms["arm"][0])

    call = [{"name": "weather", "arguments": '{"city": "Oslo", "days": 2}'}]
    assert np.isnan(scores(answer(text=None), answer(text=None)))
    assert np.isnan(scores(answer(text=""), answer(text="")))
    assert np.isnan(scores(answer(text="x"), answer(text="")))
    assert scores(answer(text="", tool_calls=call), answer(text="", tool_calls=call)) == 1
    respaced = [{"name": "weather", "arguments": '{"days":2,"city":"Oslo"}'}]
    assert scores(answer(text="", tool_calls=call), answer(text="", tool_calls=respaced)) == 1
    other = [{"name": "weather", "arguments": '{"city": "Rome", "days": 2}'}]
    assert 0 < scores(answer(text="", tool_calls=call), answer(text="", tool_calls=other)) < 1
    assert scores(answer(text="x", reasoning="a b"), answer(text="x", reasoning="c d")) == pytest.approx(1 / 3)


def test_a_cut_answer_is_not_scored_by_whatever_number_came_last() -> None:
    asked = msgspec.structs.replace(
        BASE[0], expected="18", scorer="numeric", text="so 9 * 2 = 18", finish_reason="stop"
    )
    cut = msgspec.structs.replace(asked, finish_reason="length")
    assert float(score_arms([asked], {"arm": [cut]}).arms["arm"][0]) == 0


STUDY = "{arm}_{dataset}_eval.json"
ARMS = (
    "fp16_Meta-Llama-3-8B-instruct_8192_b1",
    "gear_Meta-Llama-3-8B-instruct_8192_b1_4bits",
    "gear_Meta-Llama-3-8B-instruct_8192_b1_8bits",
    "h2o_Meta-Llama-3-8B-instruct_8192_b1_c2048_w32_k7_maxpool",
    "h2o_Meta-Llama-3-8B-instruct_8192_b1_c2048_w64_k7_maxpool",
    "h2o_Meta-Llama-3-8B-instruct_8192_b1_c256_w64_k7_maxpool",
    "kivi_Meta-Llama-3-8B-instruct_8192_b1_4bits",
    "streamingllm_Meta-Llama-3-8B-instruct_8192_b1_c2048",
)
DATASETS = (
    *("2wikimqa", "gov_report", "hotpotqa", "lcc", "multi_news", "multifieldqa_en", "passage_count", "qasper"),
    *("passage_retrieval_en", "qmsum", "repobench-p", "samsum", "trec", "triviaqa", "narrativeqa"),
)


def study(folder: Path) -> None:
    """A flat folder named as the MLSys'25 study names its files (LLMkvsys/rethink-kv-compression)."""
    for number, arm in enumerate(ARMS):
        for dataset in DATASETS:
            rng = np.random.default_rng([0 if "w32" in arm or "w64_k7" in arm else number, DATASETS.index(dataset)])
            values: dict[str, float | None] = {f"{dataset}-{i}": round(float(rng.random()), 2) for i in range(20)}
            scores(folder, STUDY.format(arm=arm, dataset=dataset), values)


def test_a_flat_folder_is_read_by_a_pattern_although_names_have_underscores(tmp_path: Path) -> None:
    study(tmp_path)
    found = read_scores([tmp_path], STUDY)
    assert {file.arm for file in found} == set(ARMS)
    assert {file.dataset for file in found} == set(DATASETS)
    assert len(found) == len(ARMS) * len(DATASETS)
    table = as_table(found)
    assert table.base_name == ARMS[0]  # by its first word
    notes = assess(table, rng=np.random.default_rng(0)).notes
    assert any(note.startswith(f"{ARMS[4]} has the very scores of {ARMS[3]}") for note in notes)


def test_a_flat_folder_with_double_underscores_needs_no_pattern(tmp_path: Path) -> None:
    for arm in ("none", "kivi"):
        scores(tmp_path, f"{arm}__gsm8k.json", {"a": 1.0})
    assert {(file.arm, file.dataset) for file in read_scores([tmp_path])} == {("none", "gsm8k"), ("kivi", "gsm8k")}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{dataset}.json", "not a pattern"),
        ("{arm}{dataset}.json", "must stand between"),
        ("x{arm}.json", "no file fits"),
    ],
)
def test_a_pattern_that_says_nothing_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    scores(tmp_path, "none__gsm8k.json", {"a": 1.0})
    with pytest.raises(UsageError, match=message):
        read_scores([tmp_path], pattern)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_eight_arms_on_fifteen_tasks_are_readable(tmp_path: Path, width: int) -> None:
    study(tmp_path)
    found = assess(as_table(read_scores([tmp_path], STUDY)), rng=np.random.default_rng(0))
    shown = Console(file=io.StringIO(), width=width)
    print_quality(found, shown)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) < 260
    assert "adjusted p" in text
    assert "all 7 arms" in text


def test_texts_are_the_same_only_with_reasoning_and_tool_calls() -> None:
    def answer(**fields: Any) -> RequestRecord:
        return msgspec.structs.replace(BASE[0], expected=None, scorer=None, token_ids=None, **fields)

    call = [{"name": "weather", "arguments": '{"city": "Oslo"}'}]
    other = [{"name": "weather", "arguments": '{"city": "Rome"}'}]
    nothing = compare_texts([answer(text="")], [answer(text="")])
    assert len(nothing.request) == 0
    for one, two, same in (
        (answer(text="", tool_calls=call), answer(text="", tool_calls=call), True),
        (answer(text="", tool_calls=call), answer(text="", tool_calls=other), False),
        (answer(text="x", reasoning="a"), answer(text="x", reasoning="b"), False),
        (answer(text="x", reasoning="a"), answer(text="x", reasoning="a"), True),
    ):
        found = compare_texts([one], [two])
        assert found.identical.tolist() == [same]
        assert bool(found.agreement[0] == 1) is same
