"""The contract between workloads and analysis."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo, prompt_digest


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
        server=ServerInfo(url="http://127.0.0.1:1"),
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
