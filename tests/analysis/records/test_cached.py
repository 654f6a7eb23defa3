"""Prompt tokens from the prefix cache: as counted, and where a count of 0 goes without saying."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.analysis.records.cached import cached_share, cached_tokens
from kvload.analysis.records.loading import load
from kvload.analysis.report.tables import server_facts
from kvload.analysis.run.summary import summarise
from kvload.records import ServerInfo, ServerSample
from tests.analysis.synthetic import answer, failure, write

SERVER = ServerInfo(url="http://127.0.0.1:1", engine="vllm", method="none", prefix_cache="reset")


def counted(path: Path, counts: list[int | None], info: ServerInfo = SERVER, **changes: Any) -> Any:
    """A run whose prompts have 100 tokens, of which so many were cached; a failure comes behind them."""
    rng = np.random.default_rng(0)
    made = [
        answer(rng, index, tokens=5, prompt_tokens=100, cached_tokens=count, **changes)
        for index, count in enumerate(counts)
    ]
    return write(path, [*made, failure(rng, len(made), "failed", "reset")], servers=[info])


def test_a_server_that_says_nothing_is_not_taken_to_have_cached_nothing(tmp_path: Path) -> None:
    run = counted(tmp_path / "run", [None, None])
    assert np.isnan(cached_tokens(load(run), [SERVER])).all()
    assert cached_share(load(run), [SERVER]) is None
    assert summarise(run).server.hit_share is None
    assert server_facts(summarise(run)) == []


@pytest.mark.parametrize(
    ("counts", "info"),
    [
        ([40, None, 60], SERVER),  # a vLLM before 0.26
        ([40, 0, 60], SERVER),
        ([None, None, None], ServerInfo(url="", command=["python", "--enable-cache-report"])),
        ([None, None, None], ServerInfo(url="", prefix_cache="off")),
    ],
)
def test_a_count_of_0_may_go_without_saying(tmp_path: Path, counts: list[int | None], info: ServerInfo) -> None:
    run = counted(tmp_path / "run", counts, info)
    found = cached_tokens(load(run), [info])
    assert found[:3].tolist() == [float(count or 0) for count in counts]
    assert np.isnan(found[3]), "what failed has no usage"
    assert cached_share(load(run), [info]) == pytest.approx(sum(count or 0 for count in counts) / 300)


def test_each_server_speaks_for_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = [
        answer(rng, 0, tokens=5, prompt_tokens=100, cached_tokens=40),
        answer(rng, 1, tokens=5, prompt_tokens=100),
        answer(rng, 2, tokens=5, prompt_tokens=100, server=1),
    ]
    run = write(tmp_path / "run", made, servers=[SERVER, SERVER])
    assert cached_tokens(load(run), [SERVER, SERVER]).tolist()[:2] == [40.0, 0.0]
    assert np.isnan(cached_tokens(load(run), [SERVER, SERVER])[2])
    assert cached_share(load(run), [SERVER, SERVER]) == pytest.approx(0.2)


def test_answers_and_counters_are_held_against_each_other(tmp_path: Path) -> None:
    run = counted(tmp_path / "run", [40, 0, 80])
    for t_s, queries, hits in ((0.0, 1000.0, 500.0), (1.0, 1300.0, 620.0)):
        run.append_scrape(ServerSample(t_s=t_s, prefix_queries=queries, prefix_hits=hits))
    server = summarise(run).server
    assert server.prefix_hit_rate == server.cached_share == server.hit_share == pytest.approx(0.4)
    (found,) = [each for each in server.agreement if each.name == "cached tokens"]
    assert (found.client, found.server, found.equal) == (120, 120, True)
    facts = dict(server_facts(summarise(run)))
    assert facts["prefix hits"].startswith("40")
    assert "by its counters" in facts["prefix hits"]
    assert facts["cached tokens"] == "client and server agree: 120"


def test_a_count_that_cannot_be_is_told_and_no_reason_to_doubt_the_answer(tmp_path: Path) -> None:
    doubt = "the server counts 300 cached tokens of a prompt of 100"
    rng = np.random.default_rng(0)
    made = [
        answer(rng, 0, tokens=5, prompt_tokens=100, cached_tokens=40),
        answer(rng, 1, tokens=5, prompt_tokens=100, cached_doubt=doubt),
    ]
    run = write(tmp_path / "run", made, servers=[SERVER])
    report = summarise(run)
    assert report.counts.completed == 2
    assert report.server.cached_share == pytest.approx(0.4)
    assert any(doubt in note and note.startswith("1 answer ") for note in report.notes)
