"""The array splitter against a whole-file JSON parser."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import TraceError
from kvload.workloads.traces import json_array, reader
from kvload.workloads.traces.reader import Cursor

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet=st.sampled_from('a"\\[]{},é世')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


class SmallChunks(Cursor):
    """A cursor whose chunks have a few bytes, so that every boundary is met."""

    step = 1

    def chunks(self, size: int = 1 << 20) -> Any:  # noqa: ARG002
        return super().chunks(self.step)


def items(text: bytes, step: int) -> list[Any]:
    cursor = SmallChunks(Path("t"), io.BufferedReader(io.BytesIO(text)))
    cursor.step = step
    return [json.loads(item) for item in json_array.array_items(cursor)]


@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=5),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_items_are_those_of_a_whole_parser(value: list[Any], step: int, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert items(text, step) == value


@given(st.binary(max_size=40), st.integers(1, 9))
def test_no_bytes_get_through_that_are_no_array(text: bytes, step: int) -> None:
    try:
        found = items(b"[" + text, step)
    except (TraceError, ValueError):
        return
    assert json.loads(b"[" + text) == found


def test_an_item_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 100)
    with pytest.raises(TraceError, match="an item is longer"):
        items(b'[{"a": "' + b"x" * 200 + b'"}]', 10)
