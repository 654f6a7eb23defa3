"""What a server's log tells of eviction while a run goes on stands in the run's manifest."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvload.experiment.options import ReplayOptions
from kvload.experiment.replay import Listener, replay_once
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.launcher import launch, stop
from kvload.servers.lifecycle.registry import ServerEntry

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerEntry]:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))
    entry = launch(LaunchRequest(engine="embedded", kv_memory=8 << 20), lambda _: None)
    yield entry
    stop(entry)


def tell(entry: ServerEntry, requests: int, blocks: int) -> None:
    """As kvload's plugin does in an engine's log."""
    counts = {"method": "snapkv:budget=64", "requests": requests, "freed_blocks": blocks, "kept_tokens": 64.0}
    with entry.log.open("a", encoding="utf-8") as log:
        log.write(f"(EngineCore pid=7) INFO kvload eviction: {json.dumps(counts)}\n")


def test_only_what_was_freed_during_the_run_counts(server: ServerEntry, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(json.dumps({"timestamp": 0, "input_length": 8, "output_length": 2}) + "\n", encoding="utf-8")
    assert replay_once(ReplayOptions(trace=trace, out=tmp_path / "silent")).manifest().eviction is None

    tell(server, 5, 40)  # while it was verified, say
    said: list[str] = []
    idle = replay_once(ReplayOptions(trace=trace, out=tmp_path / "idle"), Listener(on_notice=said.append)).manifest()
    assert idle.eviction == {"requests": 0, "freed_blocks": 0}
    assert [note for note in idle.notes if "evicted nothing" in note] == [text for text in said if "evicted" in text]
    assert any("evicted nothing" in note for note in idle.notes)

    def meanwhile(_: object) -> None:
        tell(server, 7, 61)

    busy = replay_once(ReplayOptions(trace=trace, out=tmp_path / "busy"), Listener(on_progress=meanwhile)).manifest()
    assert busy.eviction == {"requests": 2, "freed_blocks": 21}
    assert not [note for note in busy.notes if "evicted" in note]
