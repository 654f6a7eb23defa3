"""Whether a server evicts, by what it tells of it in its log."""

from pathlib import Path

from kvload.servers.engines.base import EvictionProof
from kvload.servers.verification.eviction import counts, during, judge

WANTED = EvictionProof(prompt_tokens=400, freed_blocks=8, kept_tokens=272)
LINES = """\
(EngineCore pid=7) INFO kvload eviction: {"method": "snapkv:budget=256", "requests": 1, "freed_blocks": 8}
noise {"freed_blocks": 900}
(EngineCore pid=7) INFO kvload eviction: {"method": "snapkv:budget=256", "requests": 3, "freed_blocks": 25}
(Worker pid=9) INFO kvload eviction: {"method": "snapkv:budget=256", "compactions": 3, "kept_slots": 261.0}
kvload eviction: snapkv:budget=256 over FlashAttention 3
kvload eviction: {broken
"""


def test_the_newest_counts_of_scheduler_and_workers_are_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(LINES, encoding="utf-8")
    assert counts(log) == {"requests": 3, "freed_blocks": 25, "compactions": 3, "kept_slots": 261.0}
    assert counts(tmp_path / "absent") == {}


def test_a_method_that_frees_nothing_fails() -> None:
    proof = judge({"freed_blocks": 25, "requests": 3}, {"freed_blocks": 25, "requests": 3}, WANTED)
    assert "nothing is evicted" in proof.problems[0]
    assert judge({}, {}, WANTED).problems


def test_only_what_was_freed_since_counts() -> None:
    assert not judge({"freed_blocks": 25}, {"freed_blocks": 33, "requests": 1}, WANTED).problems
    proof = judge({"freed_blocks": 25, "compactions": 3}, {"freed_blocks": 29, "compactions": 4}, WANTED)
    assert proof.problems
    assert proof.figures["freed_blocks"] == 4
    assert proof.figures["compactions"] == 1


def test_between_two_readings_only_what_grew_counts() -> None:
    before = {"requests": 3, "freed_blocks": 25, "kept_tokens": 260.0}
    after = {"requests": 5, "freed_blocks": 41, "compactions": 2, "kept_tokens": 258.0}
    assert during(before, after) == {"requests": 2, "freed_blocks": 16, "compactions": 2}
    assert during(before, before) == {"requests": 0, "freed_blocks": 0}
    assert during({}, {}) is None
