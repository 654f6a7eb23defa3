"""How long chunks may gather: against what was promised of it, and in a loop against the mock's account."""

import time
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvload.workloads.client.answer import parse_answer
from kvload.workloads.client.pace import LEAST_CHUNKS_PER_S, LONGEST_NS, Pace, nap_ns
from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.mock.truth import read_truth
from tests.workloads.client.test_stream_client import client

SECOND = 1_000_000_000


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(1, 10 * SECOND))
def test_a_nap_is_short_against_every_gap(reads: int, streams: int, elapsed_ns: int) -> None:
    nap = nap_ns(reads, streams, elapsed_ns)
    assert 0 <= nap <= LONGEST_NS
    if reads * SECOND < LEAST_CHUNKS_PER_S * elapsed_ns:
        assert nap == 0
    else:
        assert nap <= streams * elapsed_ns / reads / 8


def test_the_pace_follows_what_comes_in() -> None:
    pace = Pace()
    now = SECOND
    pace.count(0, 100, now)
    for _ in range(100):
        now += SECOND // 1000
        pace.count(10, 100, now)
    # 10,000 chunks a second from 100 streams: 10 ms from chunk to chunk
    assert pace.nap_ns == LONGEST_NS
    for _ in range(100):
        now += SECOND // 1000
        pace.count(100, 100, now)
    assert 100_000 < pace.nap_ns < 130_000
    pace.count(0, 100, now + SECOND)
    assert pace.nap_ns == 0


def test_chunks_that_gathered_have_their_own_times(tmp_path: Path) -> None:
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.008), tmp_path / "log") as server, client(server.url) as asking:
        for number in range(60):
            asking.start(f"{number}", 60)
        naps, rested = 0, False
        while asking.loop.in_flight:
            asking.loop.turn(wait=not rested)
            rested = asking.loop.rest(time.monotonic_ns() + SECOND)
            naps += rested
    truth = {answer.request_id: answer for answer in read_truth(tmp_path / "log")}
    answers = {raw.key: parse_answer(raw) for raw in asking.ended}
    assert naps > 50
    assert {answer.clock for answer in answers.values()} == {"kernel"}
    close = 0
    for key, answer in answers.items():
        written_us = (np.array(truth[f"r-{key}"].writes_ns) - answer.t_send_ns) / 1000
        close += int((np.abs(answer.chunks["us"] - written_us) < 300).sum())
    # a busy machine may delay some; by the reader's own clock most would be late by half a nap
    assert close > 0.9 * 60 * 60


def test_never_a_nap_over_what_is_due(tmp_path: Path) -> None:
    with MockProcess(MockSettings(ttft_s=0.02, itl_s=0.004)) as server, client(server.url) as asking:
        for number in range(60):
            asking.start(f"{number}", 80)
        due: list[int] = []
        fired: list[int] = []

        def fire(now_ns: int) -> None:
            fired.append(now_ns)
            due.append(now_ns + 1_700_000)
            asking.loop.at(due[-1], fire)

        fire(time.monotonic_ns())
        rested = False
        while asking.loop.in_flight:
            asking.loop.turn(wait=not rested)
            rested = asking.loop.rest(time.monotonic_ns() + SECOND)
    lags = np.array(fired[1:]) - np.array(due[: len(fired) - 1])
    assert len(lags) > 50
    assert lags.min() >= 0
    assert np.median(lags) < 1_000_000
