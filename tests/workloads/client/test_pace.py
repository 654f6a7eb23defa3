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
    assert naps > 50
    late_us = {"kernel": 0.0, "user": 0.0}
    for raw in asking.ended:
        written_us = (np.array(truth[f"r-{raw.key}"].writes_ns) - raw.t_send_ns) / 1000
        for clock in late_us:
            if clock == "user":
                raw.reads[1::3] = [None] * len(raw.reads[1::3])
            answer = parse_answer(raw)
            assert answer.clock == clock
            late_us[clock] += float((answer.chunks["us"] - written_us).sum())
    # the kernel's stamps are those of the arrival; by the reader's clock they are late by what is left of a nap
    assert 0 <= late_us["kernel"] < late_us["user"]


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

        naps: list[tuple[int, int]] = []
        sleep, before_ns = asking.loop._sleep, 0

        def nap(seconds: float) -> None:
            naps.append((before_ns + round(seconds * SECOND), due[-1]))
            sleep(seconds)

        asking.loop._sleep = nap
        fire(time.monotonic_ns())
        rested = False
        while asking.loop.in_flight:
            asking.loop.turn(wait=not rested)
            before_ns = time.monotonic_ns()
            rested = asking.loop.rest(before_ns + SECOND)
    assert len(fired) > 50
    assert all(fired_ns >= due_ns for fired_ns, due_ns in zip(fired[1:], due, strict=False))
    assert len(naps) > 50
    # counted from before its length was chosen
    assert all(end_ns <= due_ns for end_ns, due_ns in naps)
