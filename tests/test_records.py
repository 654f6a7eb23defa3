"""The contract between workloads and analysis."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import RunDirError
from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo, prompt_digest
from kvload.rundir import RunDir
from kvload.workloads.run import recording


def record(**changes: object) -> RequestRecord:
    values: dict[str, object] = {
        "index": 0,
        "request_id": "a",
        "prompt_digest": "0" * 32,
        "max_tokens": 8,
        "t_sched_s": 0.0,
        "status": "unsent",
    }
    return RequestRecord(**(values | changes))  # type: ignore[arg-type]


@given(
    st.builds(
        record,
        index=st.integers(0, 2**40),
        request_id=st.text(),
        status=st.sampled_from(["ok", "failed", "timeout", "refused", "censored", "unsent"]),
        t_send_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        output_tokens=st.none() | st.integers(0, 2**31),
        text=st.none() | st.text(),
        token_ids=st.none() | st.lists(st.integers(0, 2**20), max_size=5),
        error=st.none() | st.text(),
    )
)
def test_a_record_survives_its_own_json(original: RequestRecord) -> None:
    line = msgspec.json.encode(original)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=RequestRecord) == original


def test_what_is_missing_is_left_out_and_comes_back_as_none() -> None:
    line = msgspec.json.encode(record())
    assert b"t_send_s" not in line
    assert msgspec.json.decode(line, type=RequestRecord).t_send_s is None


def test_a_status_that_is_none_is_refused() -> None:
    line = msgspec.json.encode(record()).replace(b"unsent", b"lost")
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line, type=RequestRecord)


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        record().index = 1  # type: ignore[misc]


def test_a_manifest_is_partial_until_told_otherwise() -> None:
    manifest = RunManifest(
        run_id="r",
        kvload_version="0",
        servers=[ServerInfo(url="http://127.0.0.1:1")],
        trace=TraceInfo(path="t", sha256="0", format="kvload", rows=1, used=1),
        mode="free",
        seed=0,
        arrivals={},
        planned=1,
    )
    assert manifest.partial is True
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=RunManifest) == manifest


def test_digests_are_stable_and_tell_prompts_apart() -> None:
    # echo -n '[1,2,3]' | sha256sum
    assert prompt_digest([1, 2, 3]) == "a615eeaee21de5179de080de8c3052c8"
    messages = [{"role": "user", "content": "hé"}]
    assert prompt_digest(messages) == prompt_digest([{"content": "hé", "role": "user"}])
    assert len({prompt_digest(p) for p in ("1", [1], [1, 1], "", messages)}) == 5


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_any_text_has_a_digest(text: str) -> None:
    assert len(prompt_digest(text)) == 32


def test_a_manifest_of_the_first_version_names_its_server_alone(tmp_path: Path) -> None:
    old = {
        "run_id": "r",
        "kvload_version": "0.1.0",
        "server": {"url": "http://127.0.0.1:1", "engine": "vllm", "pool_tokens": 64},
        "trace": {"path": "t", "sha256": "0", "format": "kvload", "rows": 1, "used": 1},
        "mode": "free",
        "seed": 0,
        "arrivals": {"kind": "trace"},
        "planned": 1,
        "duration_s": 3,
        "partial": False,
    }
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(old))
    manifest = RunDir.open(tmp_path).manifest()
    assert manifest.servers == [ServerInfo(url="http://127.0.0.1:1", engine="vllm", pool_tokens=64)]
    assert (manifest.server, manifest.duration_s) == (manifest.servers[0], 3.0)
    for broken in ({**old, "servers": []}, {**old, "server": 3}, {name: old[name] for name in old if name != "server"}):
        (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(broken))
        with pytest.raises(RunDirError):
            RunDir.open(tmp_path)


def test_a_record_names_the_server_that_answered_it() -> None:
    assert record().server == 0
    line = msgspec.json.encode(record(server=2))
    assert msgspec.json.decode(line, type=RequestRecord).server == 2


def test_records_take_over_what_plan_and_answer_have_under_the_same_name() -> None:
    planned, answered = set(recording._PLANNED), set(recording._ANSWERED)
    assert {"index", "request_id", "prompt_digest", "max_tokens", "seed", "expected", "scorer", "task"} <= planned
    assert {"status", "cause", "text", "output_tokens", "finish_reason", "clock", "queue_s", "retries"} <= answered
    assert not planned & answered
    own = {"t_sched_s", "t_send_s", "t_headers_s", "t_first_s", "t_answer_s", "t_last_s", "t_end_s", "worker"}
    own |= {"server", "server_name", "chunk_offset", "chunk_count"}
    assert set(RequestRecord.__struct_fields__) == planned | answered | own
