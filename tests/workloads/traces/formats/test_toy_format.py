"""The promise to who adds a trace format: one file, and everything else knows it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvload.analysis.quality.scorers import SCORERS
from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.workloads.schedule.build import build_schedule
from kvload.workloads.traces import formats
from kvload.workloads.traces.formats import detect_format, find_format, read_trace, table
from kvload.workloads.traces.notes import Notes

FIXTURES = Path(__file__).parents[1] / "fixtures"

TOY = """
from kvload.workloads.traces.reader import Format
from kvload.workloads.traces.request_fields import sampling_of
from kvload.workloads.traces.trace import TraceRequest

KEYS = ("when", "asked", "said", "hash_ids", "conversation_id", "temperature")


def _matches(head):
    return head.explained(KEYS) if head.knows("asked") else 0


def _read(cursor):
    for number, row in enumerate(cursor.objects()):
        length = cursor.tokens(cursor.needed(row, "asked"), "asked")
        blocks, size = cursor.blocks(row.get("hash_ids", []), "hash_ids", length=length, size=32)
        yield TraceRequest(
            id=str(number),
            arrival=cursor.time(cursor.needed(row, "when"), "when", unit="ms", is_open=True),
            input_length=length,
            output_length=cursor.tokens(cursor.needed(row, "said"), "said"),
            block_ids=blocks or None,
            block_size=size if blocks else None,
            sampling=sampling_of(cursor, row),
        )


FORMAT = Format(name="toy", title="A toy", assumes="nothing", matches=_matches, read=_read)
"""

ROWS = (
    '{"when": 0, "asked": 100, "said": 5, "hash_ids": [1, 2, 3, 4, 5, 6, 7], "temperature": 0.5}\n'
    '{"when": 0.5, "asked": 33, "said": 6, "hash_ids": [1, 2, 8]}\n'
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    importlib.invalidate_caches()
    table.cache_clear()
    trace = tmp_path / "trace"
    trace.write_text(ROWS)
    yield trace
    table.cache_clear()
    sys.modules.pop(f"{formats.__name__}.toy", None)


def test_a_format_is_one_file(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect_format(toy) == "toy"
    notes = Notes()
    first, second = read_trace(toy, notes=notes)
    # units, blocks and fields of the request are settled by the same pieces as everywhere
    assert (first.block_size, second.arrival, first.sampling) == (16, 0.5, {"temperature": 0.5})
    assert [note.partition(":")[0] for note in notes.sentences()] == [
        "times are read as seconds",
        "blocks are read as 16 tokens, as the lengths show",
    ]
    assert build_schedule([first, second], model="m", mode="auto").mode == "forced"
    with pytest.raises(UsageError, match="toy"):
        find_format(toy, "none")
    assert run(["traces", "describe", str(toy)]) == 0
    assert "A toy" in capsys.readouterr().out


def test_no_other_format_is_read_otherwise_for_it(toy: Path) -> None:
    files = [path for path in FIXTURES.iterdir() if path.name != "README.md"]
    with_toy = {path.name: detect_format(path) for path in files}
    assert "toy" not in with_toy.values()


def test_readers_know_nothing_of_each_other() -> None:
    """No reader imports another one, but for what a benchmark shares with the harness that runs it."""
    folder = Path(formats.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    found = {
        (path.stem, other)
        for path in folder.glob("*.py")
        for other in names
        if path.stem != "__init__" and f"traces.formats.{other} " in path.read_text()
    }
    assert found == {("lm_eval", "ifeval")}


def test_the_docs_name_every_format_and_scorer() -> None:
    docs = Path(__file__).parents[4] / "docs"
    if not docs.is_dir():
        pytest.skip("no docs beside the tests")
    traces, scorers = (docs / name for name in ("traces.md", "scorers.md"))
    assert [name for name in table() if f"`{name}`" not in traces.read_text(encoding="utf-8")] == []
    assert [name for name in SCORERS if f"`{name}`" not in scorers.read_text(encoding="utf-8")] == []
