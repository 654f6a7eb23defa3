"""What is wrong with a trace is said with file, line and field, whatever stands in it."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.errors import TraceError
from kvload.workloads.traces import reader
from kvload.workloads.traces.formats import read_trace, table

FIXTURES = Path(__file__).parents[1] / "fixtures"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:01+00:00,5,6\n"


def problem(tmp_path: Path, content: str | bytes, name: str | None = None, **options: Any) -> str:
    path = tmp_path / "trace"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TraceError) as caught:
        list(read_trace(path, name, **options))
    return str(caught.value).replace(str(tmp_path), "DIR")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (AZURE + "soon,5,6\n", "DIR/trace:3: field 'TIMESTAMP' is 'soon', not a date-time"),
        (
            AZURE + "2024-05-10 00:00:02,-5,6\n",
            "DIR/trace:3: field 'ContextTokens' is '-5', not between 0 and 10000000",
        ),
        (AZURE + "2024-05-10 00:00:02,5,6.5\n", "DIR/trace:3: field 'GeneratedTokens' is '6.5', not a whole number"),
        (AZURE + "2024-05-10 00:00:02,5\n", "DIR/trace:3: the row has 2 fields, the header 3"),
        (
            AZURE + "2024-05-10 00:00:02,5,nan\n",
            "DIR/trace:3: field 'GeneratedTokens' is 'nan', not a number of tokens",
        ),
        (AZURE + "2024-05-10 00:00:00,5,6\n", "DIR/trace:3: the arrival runs backwards: -1.000000 s after 0.000000 s"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "DIR/trace: the trace is empty"),
        ('{"id": "a", "input_length": 5}\n{"id": \n', "DIR/trace:2: not valid JSON"),
        ('{"id": "a", "input_length": 5}\n[1]\n', "DIR/trace:2: a JSON array, not an object"),
        ('{"id": "a", "input_length": -5}', "DIR/trace:1: field 'input_length' is -5, not between"),
        ('{"id": "a", "input_length": true}', "DIR/trace:1: field 'input_length' is True, not a number of tokens"),
        ('{"id": 7, "input_length": 5}', "DIR/trace:1: field 'id': Expected `str`, got `int`"),
        ('{"id": "a", "arrival": -1, "prompt": "x"}', "DIR/trace:1: field 'arrival' is -1, not a time of 0 or more"),
        ('{"id": "a", "arrival": "x", "prompt": "x"}', "DIR/trace:1: field 'arrival' is 'x', not a time"),
        ('{"id": "a", "prompt": "x", "messages": [{"role": "user"}]}', "DIR/trace:1: fields 'messages' and 'prompt'"),
        ('{"id": "a", "arrival": 1}', "DIR/trace:1: nothing says what to send"),
        (
            '{"id": "a", "messages": [{"content": "x"}]}',
            "DIR/trace:1: field 'messages' is {'content': 'x'}, not a chat",
        ),
        ('{"id": "a", "input_length": 5, "block_ids": [1]}', "DIR/trace:1: field 'block_size' is None"),
        ('{"id": "a", "prompt": "x", "turn": 1}', "DIR/trace:1: field 'session' is missing"),
        (
            '{"timestamp": 0, "input_length": 5, "hash_ids": ["x"]}',
            "DIR/trace:1: field 'hash_ids' is ['x'], not a list",
        ),
        (
            '{"timestamp": 5000, "input_length": 5}\n{"timestamp": 4000, "input_length": 5}',
            "DIR/trace:2: the arrival runs backwards: -1.000000 s",
        ),
        ('{"id": "a", "prompt": "\xff"}'.encode("latin-1"), "DIR/trace:1: not valid JSON"),
        (AZURE.encode() + b"\xff,1,2\n", "DIR/trace:3: not UTF-8 text"),
        (gzip.compress(AZURE.encode(), mtime=0)[:-9], "DIR/trace: cannot be read: Compressed file ended"),
        ('[{"conversations": []}', "DIR/trace:1: the array is not closed: the file is cut short"),
        ('[{"conversations": []} {"conversations": []}]', "DIR/trace:1: items are not separated by one comma"),
        ('[{"conversations": []}] more', "DIR/trace:1: something follows the array"),
        ('[{"conversations": 5}]', "DIR/trace: no trace format that kvload knows"),
        ('[{"conversations": []}, 7]', "DIR/trace:1: the array holds something else than objects"),
        ('[{"conversations": [{"from": "me", "value": "x"}]}]', "DIR/trace:1: field 'conversations[0].from' is 'me'"),
    ],
)
def test_the_message_names_file_line_and_field(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert problem(tmp_path, content).startswith(message)


def test_a_line_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 1 << 20)
    content = '{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "' + "x" * (1 << 20) + '"}\n'
    assert problem(tmp_path, content) == "DIR/trace:2: the line is longer than 1 MiB"


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be opened: No such file"):
        list(read_trace(tmp_path / "none"))
    with pytest.raises(TraceError, match="cannot be opened: Is a directory"):
        list(read_trace(tmp_path))


def test_sorting_is_allowed_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(
        '{"id": "late", "arrival": 9, "input_length": 1}\n'
        '{"id": "early", "arrival": 4, "prompt": "x", "session": "s"}\n'
        '{"id": "after-early", "prompt": "y", "session": "s", "turn": 1}\n'
        '{"id": "middle", "arrival": 6.5, "input_length": 3}\n'
    )
    found = [(request.id, request.arrival) for request in read_trace(path, sort=True)]
    assert found == [("early", 0.0), ("after-early", None), ("middle", 2.5), ("late", 5.0)]


def test_a_limit_stops_reading_before_a_later_fault(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text('{"id": "a", "prompt": "x"}\nbroken\n')
    assert [request.id for request in read_trace(path, limit=1)] == ["a"]


@pytest.mark.parametrize(
    "fixture", sorted(path.name for path in FIXTURES.iterdir() if path.suffix in {".csv", ".jsonl"})
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_spoiled_file_is_read_or_complained_about(
    fixture: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes are exchanged, removed or put in, the reader yields valid requests or raises TraceError."""
    content = bytearray((FIXTURES / fixture).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        cut = data.draw(st.integers(0, 6))
        content[at : at + cut] = data.draw(
            st.one_of(
                st.binary(max_size=6),
                st.sampled_from([b"-1", b"1e400", b"null", b'"', b"{}", b"[]", b"\n", b",", b"\0"]),
            )
        )
    path = tmp_path_factory.getbasetemp() / "spoiled"
    path.write_bytes(bytes(content))
    for name in (None, *table()):
        try:
            for request in read_trace(path, name):
                assert request.input_length is None or request.input_length >= 0
                assert request.arrival is None or request.arrival >= 0
        except TraceError:
            pass


def test_a_format_that_was_named_wrongly_is_told_from_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n", encoding="utf-8")
    with pytest.raises(TraceError) as caught:
        list(read_trace(path, "mooncake"))
    assert "the content looks like azure: leave --format mooncake out" in str(caught.value)
