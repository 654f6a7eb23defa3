"""Interrupts by real signals: kept back from acts, let into waits, never lost."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from kvload.servers.lifecycle.interrupts import Interrupts, kept_back

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def _send(number: int, after_s: float = 0.0) -> None:
    if after_s:
        threading.Timer(after_s, os.kill, (os.getpid(), number)).start()
    else:
        os.kill(os.getpid(), number)


def _interrupted(act: Callable[[Interrupts], object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _kept_back(act)


def _kept_back(act: Callable[[Interrupts], object]) -> None:
    with kept_back() as asked:
        act(asked)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_act_is_ended_before_the_interrupt_is_heeded(number: int) -> None:
    done = []

    def act(asked: Interrupts) -> None:
        _send(number)
        done.append("act")
        asked.pause(60)
        done.append("never")

    _interrupted(act)
    assert done == ["act"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_wait_is_ended_at_once(number: int) -> None:
    before = time.monotonic()

    def act(asked: Interrupts) -> None:
        _send(number, after_s=0.1)
        asked.pause(60)

    _interrupted(act)
    assert time.monotonic() - before < 30


def test_a_second_interrupt_does_not_break_what_the_first_one_ends() -> None:
    ended = []

    def act(asked: Interrupts) -> None:
        try:
            _send(signal.SIGINT)
            asked.pause(60)
        finally:
            _send(signal.SIGINT)
            ended.append("whole")

    _interrupted(act)
    assert ended == ["whole"]


def test_one_that_was_never_heeded_is_raised_at_the_end() -> None:
    done = []

    def act(_asked: Interrupts) -> None:
        _send(signal.SIGINT)
        done.append("act")

    _interrupted(act)
    assert done == ["act"]


def test_an_error_within_is_not_hidden_by_an_interrupt() -> None:
    def act(_asked: Interrupts) -> None:
        _send(signal.SIGINT)
        raise ValueError("the act's own")

    with pytest.raises(ValueError, match="the act's own"):
        _kept_back(act)


def test_handlers_are_given_back_and_somebody_elses_kept() -> None:
    seen: list[int] = []
    mine = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    term = signal.getsignal(signal.SIGTERM)
    try:
        with kept_back() as asked:
            _send(signal.SIGINT)
            asked.pause(0.01)
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, mine)
    assert signal.getsignal(signal.SIGTERM) is term


def test_a_thread_starts_servers_without_touching_signals() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    within: list[object] = []

    def start() -> None:
        with kept_back() as asked:
            asked.pause(0.001)
            within.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert within == before


def test_what_is_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with kept_back() as asked:
            _send(signal.SIGHUP)
            asked.pause(0.01)
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("number", SIGNALS)
def test_one_within_another_heeds_what_comes_and_leaves_the_rest_to_it(number: int) -> None:
    done = []

    def act(outer: Interrupts) -> None:
        with kept_back() as inner:
            assert inner is outer
            _send(number)
            done.append("act")
        done.append("the outer's act")  # not raised at the inner's end
        with pytest.raises(KeyboardInterrupt), kept_back() as inner:
            inner.pause(60)
        outer.pause(0)  # heeded once

    _kept_back(act)
    assert done == ["act", "the outer's act"]


def test_what_is_settled_stays_and_what_came_before_undoes_it() -> None:
    def late(asked: Interrupts) -> None:
        asked.settle()
        _send(signal.SIGINT)

    _kept_back(late)

    def early(asked: Interrupts) -> None:
        _send(signal.SIGINT)
        asked.settle()

    _interrupted(early)
