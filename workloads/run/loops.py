"""A run of closed loops one after the other, sent from this process: for short designed loads, which take less time
than Locust's start.

Requests, times and records are made by the same client as in every other run.
"""

import contextlib
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload.records import RequestRecord, RunManifest
from kvload.rundir import RunDir
from kvload.workloads.run.completion import Outcome, complete, reserve
from kvload.workloads.run.dispatch import Dispatcher, Limits
from kvload.workloads.run.faults import describe, fault_of
from kvload.workloads.run.live import LiveBoard
from kvload.workloads.run.plan import ReplayPlan

POLL_S = 0.1
SLICE_NS = 8_000_000

TIME_OVER = "its time was over"
"""How a run ended that was told when to."""


@dataclass(frozen=True)
class Loop:
    """One closed loop.

    Attributes:
        requests: how many of the plan's requests, from where the loop before ended.
        at_once: how many of them are in flight.
    """

    requests: int
    at_once: int


def run_loops(plan: ReplayPlan, run: RunDir, loops: Sequence[Loop], *, ends_s: float, cut_s: float) -> RunManifest:
    """Send a plan in closed loops and complete its run folder; returns the final manifest.

    The run ends early at its time's end, or at an interrupt: nothing more is sent, and answers in flight come in; at a
    second interrupt, or ``cut_s``, they are cut off. Every planned request has a record afterwards.

    Args:
        plan: one server's, with the most that is in flight as its ``concurrency``.
        run: a run folder whose manifest is written.
        loops: they share the plan's requests.
        ends_s, cut_s: times on the monotonic clock.

    Raises:
        MachineError: there is no room for the run.
    """
    reserve(run, len(plan.planned))
    outcome = Outcome(LiveBoard({}), zero_ns=time.monotonic_ns(), started_at=time.time())
    try:
        with run.writer("worker-0") as writer, _interrupts() as interrupts:

            def take(record: RequestRecord, chunks: npt.NDArray[np.void]) -> None:
                writer.append(record, chunks)

            first = 0
            for loop in loops:
                dispatcher = Dispatcher(
                    plan.planned[first : first + loop.requests],
                    plan.address,
                    zero_ns=outcome.zero_ns or 0,
                    sink=take,
                    limits=Limits(
                        concurrency=loop.at_once, timeout_s=plan.sending.timeout_s, drain_s=plan.sending.drain_s
                    ),
                    headers=plan.headers,
                )
                first += loop.requests
                try:
                    _walk(dispatcher, outcome, interrupts, ends_s, cut_s)
                finally:
                    dispatcher.close()
                if outcome.ended is not None:
                    break
    except Exception as error:
        # what was measured is kept, and the manifest says what failed
        outcome.end_by(f"kvload failed: {describe(error)}", fault_of(error))
        complete(run, plan, outcome)
        raise
    return complete(run, plan, outcome)


def _walk(dispatcher: Dispatcher, outcome: Outcome, interrupts: list[int], ends_s: float, cut_s: float) -> None:
    dispatcher.begin()
    while not dispatcher.finished:
        now_s = time.monotonic()
        if interrupts:
            outcome.end_by("interrupted", "user")
        elif now_s >= ends_s:
            outcome.end_by(TIME_OVER, None)
        if outcome.ended is not None:
            dispatcher.stop("interrupted", cut=len(interrupts) > 1 or now_s >= cut_s)
        select.select([dispatcher.loop.fileno()], [], [], POLL_S)
        until_ns = time.monotonic_ns() + SLICE_NS
        dispatcher.turn()
        while not dispatcher.finished and dispatcher.rest(until_ns):
            dispatcher.turn()


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The signals that ask for the end, as they come: one for Ctrl-C, two for an end that is asked for from outside."""
    found: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        # asked to end from outside, or with the terminal gone, we do not linger
        found.extend([number] if number == signal.SIGINT else [number, number])

    former: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: whoever owns the signals ends the run
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup: the end of the session is not meant for us
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                former[number] = signal.signal(number, note)
    try:
        yield found
    finally:
        for known, handler in former.items():
            signal.signal(known, handler)
