"""When each planned request is sent, and what becomes of it: one worker's part of a run.

Due times are absolute, on the monotonic clock. A later turn of a conversation is due when the former has ended plus its
think time (and not before its own offset); with a limit on requests in flight a due request waits for a free place and
its lag shows it; in closed loop a request is due when a place becomes free. Every planned request leaves exactly one
record, whatever happens.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvload.address import Address
from kvload.balancing import Balancer
from kvload.records import RequestRecord
from kvload.rundir import CHUNK_DTYPE
from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.client.group import LoopGroup
from kvload.workloads.client.loop import StreamLoop
from kvload.workloads.client.raw import RawStream
from kvload.workloads.client.timeouts import NEVER_NS
from kvload.workloads.run.recording import build_record, unsent_record
from kvload.workloads.schedule.request import PlannedRequest, next_turn

Sink = Callable[[RequestRecord, npt.NDArray[np.void]], None]

_AHEAD_NS = 250_000_000
_PARSES_AT_ONCE = 8
"""Answers are taken apart in groups, while chunks come thick: one by one, between reads, each would find the
processor's caches filled with other things, and cost twice as much."""

_PARSED_AFTER_NS = 50_000_000
_PARSE_ROOM_NS = 500_000


@dataclass(frozen=True)
class Limits:
    """What bounds one worker's run.

    Attributes:
        max_concurrency: most requests in flight at a time in open loop; the others wait.
        concurrency: closed loop: so many in flight at all times, offsets are ignored.
        timeout_s: a request's own limit.
        drain_s: how long answers may still come in once nothing is left to send.
    """

    max_concurrency: int | None = None
    concurrency: int | None = None
    timeout_s: float | None = None
    drain_s: float = 120.0


@dataclass
class Counts:
    """How far a worker is.

    Attributes:
        sent: requests that were started, whether or not a byte went out.
        answered: those to which the server said anything of an answer.
    """

    planned: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    unsent: int = 0
    answered: int = 0
    retries: int = 0
    merged_reads: int = 0


@dataclass
class _Sent:
    """A request under way: its plan, with the body that was sent, and when it was due."""

    planned: PlannedRequest
    due_ns: int
    place: int = 0


class Dispatcher:
    """Sends one worker's share of a schedule and records how each request ended.

    Args:
        planned: the share, by offset.
        address, headers: see :class:`~kvload.workloads.client.loop.StreamLoop`.
        zero_ns: the run's zero on the monotonic clock.
        sink: takes every record with its chunk rows (``CHUNK_DTYPE``), as requests end.
        servers: see :func:`~kvload.workloads.run.recording.build_record`.
        others: equal servers beside the one at ``address``. A request goes where its plan says, else to the one with
            the fewest of this worker's requests under way.
    """

    def __init__(
        self,
        planned: Iterable[PlannedRequest],
        address: Address,
        *,
        zero_ns: int,
        sink: Sink,
        limits: Limits | None = None,
        headers: Mapping[str, str] | None = None,
        worker: int = 0,
        servers: Sequence[str] = (),
        others: Sequence[Address] = (),
    ) -> None:
        self.limits = limits or Limits()
        self.counts = Counts()
        limit_s = self.limits.timeout_s
        self._group = (
            LoopGroup((address, *others), on_end=self._ended, headers=headers, timeout_s=limit_s) if others else None
        )
        self.loop = self._group or StreamLoop(address, on_end=self._ended, headers=headers, timeout_s=limit_s)
        self._balancer = Balancer("least-loaded", 1 + len(others))
        self.zero_ns = zero_ns
        self._sink = sink
        self._worker = worker
        self._servers = tuple(servers)
        self._places = self.limits.concurrency or self.limits.max_concurrency
        self._closed_loop = self.limits.concurrency is not None
        self._firsts: deque[PlannedRequest] = deque()
        self._turns: dict[int, PlannedRequest] = {}
        for request in planned:
            self.counts.planned += 1
            if request.previous is None:
                self._firsts.append(request)
            else:
                self._turns[request.previous] = request
        self._heap: list[tuple[int, int, PlannedRequest]] = []
        self._waiting: deque[_Sent] = deque()
        self._raws: deque[RawStream] = deque()
        self._urgent = False
        self._warm_ns = 0
        self._drain_until_ns: int | None = None
        self._stopped: str | None = None
        self._finished = False

    @property
    def finished(self) -> bool:
        """Every planned request has its record."""
        return self._finished

    def begin(self) -> None:
        """Arm the first deadline; from then on :meth:`turn` does everything."""
        self._send_due(time.monotonic_ns())
        self._check_end()
        self.loop.wake()

    def turn(self, wait: bool = False) -> None:
        """One turn of the loop: read, send what is due, take a few ended answers apart."""
        self.loop.turn(wait and not self._raws)
        if self._raws and not self._gathers():
            self._parse_some()
        self._check_end()

    def rest(self, until_ns: int) -> bool:
        """Wait a little for the next turn, see :meth:`StreamLoop.rest`."""
        if not self._raws or self._gathers():
            rested = self.loop.rest(until_ns)
            if self._raws and not rested:
                self.loop.wake()
            return rested
        if time.monotonic_ns() < until_ns:
            return True
        self.loop.wake()
        return False

    def run(self) -> None:
        """Run to the end, without another loop around."""
        self.begin()
        rested = False
        while not self._finished:
            self.turn(wait=not rested)
            rested = self.rest(NEVER_NS)

    def stop(self, cause: str, *, cut: bool = False) -> None:
        """Send nothing more; what is in flight may end within the drain time, or with ``cut`` is cut off at once.

        Args:
            cause: why; recorded with every request that was not sent.
        """
        if self._stopped is None:
            self._stopped = cause
            for request in self._everything_unsent():
                self._record_unsent(request, cause)
        if cut:
            self.loop.cut()
        self._check_end()
        self.loop.wake()

    def close(self) -> None:
        """Cut what is in flight, record it, and give everything back."""
        self.stop("stopped", cut=True)
        while self._raws:
            self._parse_some()
        self._check_end()
        self.loop.close()

    def _everything_unsent(self) -> Iterator[PlannedRequest]:
        while self._firsts:
            yield self._firsts.popleft()
        while self._waiting:
            yield self._waiting.popleft().planned
        while self._heap:
            yield heapq.heappop(self._heap)[2]
        # turns whose former is still being answered, and those after them
        while self._turns:
            yield self._turns.pop(next(iter(self._turns)))

    def _send_due(self, now: int) -> None:
        if self._closed_loop:
            self._fill_places()
        else:
            while self._firsts and (due := self._due(self._firsts[0])) <= now:
                self._start(_Sent(self._firsts.popleft(), due))
        while self._heap and self._heap[0][0] <= now:
            due, _, request = heapq.heappop(self._heap)
            self._start(_Sent(request, due))
        self._arm(now)

    def _arm(self, now: int) -> None:
        """Set the loop's next deadline, opening connections a little ahead of the requests that will want them."""
        due: int | None = self._heap[0][0] if self._heap else None
        if self._firsts and not self._closed_loop:
            first = self._due(self._firsts[0])
            due = first if due is None else min(due, first)
            if now >= self._warm_ns:
                self._warm_ns = now + _AHEAD_NS // 2
                soon = 0
                for request in self._firsts:
                    if self._due(request) > now + _AHEAD_NS:
                        break
                    soon += 1
                if self._places is not None:
                    soon = min(soon, self._places - self.loop.in_flight)
                self.loop.warm(soon)
            due = min(due, max(self._warm_ns, now + 1))
        if self._drain_until_ns is not None:
            due = self._drain_until_ns if due is None else min(due, self._drain_until_ns)
        self.loop.at(due, self._on_due)

    def _on_due(self, now: int) -> None:
        if self._drain_until_ns is not None and now >= self._drain_until_ns:
            self.loop.cut()
            self._drain_until_ns = None
        self._send_due(now)

    def _due(self, request: PlannedRequest) -> int:
        return self.zero_ns + round(request.offset_s * 1e9)

    def _start(self, sent: _Sent) -> None:
        if self._places is not None and self.loop.in_flight >= self._places:
            self._waiting.append(sent)
            return
        self.counts.sent += 1
        request = sent.planned
        name = f"kvload-{request.index}"
        if self._group is None:
            self.loop.start(sent, request.path, request.body, name)
            return
        planned = request.server
        sent.place = self._balancer.choose(None, self._group.under_way) if planned is None else planned
        self._group.start(sent, request.path, request.body, name, sent.place)

    def _fill_places(self) -> None:
        places = self._places or 0
        now = time.monotonic_ns()
        while self._firsts and now >= self.zero_ns and self.loop.in_flight < places:
            self._start(_Sent(self._firsts.popleft(), time.monotonic_ns()))
        if self._firsts and now < self.zero_ns:
            heapq.heappush(self._heap, (self.zero_ns, -1, self._firsts.popleft()))

    def _ended(self, raw: RawStream) -> None:
        """A request is over: its place is free at once, its answer is taken apart when there is time."""
        self._raws.append(raw)
        self._urgent = self._urgent or raw.key.planned.index in self._turns
        if self._waiting and self._stopped is None:
            waiting = self._waiting.popleft()
            if self._closed_loop:
                waiting.due_ns = time.monotonic_ns()
            self._start(waiting)
        elif self._closed_loop and self._stopped is None:
            self._fill_places()

    def _gathers(self) -> bool:
        """Whether the answers that have ended may wait for others to be taken apart with them."""
        return (
            self.loop.is_thick
            and not self._urgent
            and len(self._raws) < _PARSES_AT_ONCE
            and time.monotonic_ns() < self._raws[0].t_end_ns + _PARSED_AFTER_NS
        )

    def _parse_some(self) -> None:
        for _ in range(_PARSES_AT_ONCE):
            if not self._raws:
                self._urgent = False
                return
            self._record(self._raws.popleft())
            if self._firsts and time.monotonic_ns() + _PARSE_ROOM_NS > self._due(self._firsts[0]):
                return

    def _record(self, raw: RawStream) -> None:
        sent: _Sent = raw.key
        answer = parse_answer(raw, sent.planned.max_tokens or None)
        record = build_record(
            sent.planned,
            answer,
            due_ns=sent.due_ns,
            zero_ns=self.zero_ns,
            worker=self._worker,
            servers=self._servers,
            place=sent.place,
        )
        if record.status == "ok":
            self.counts.done += 1
        elif record.status == "unsent":
            self.counts.sent -= 1
            self.counts.unsent += 1
        else:
            self.counts.failed += 1
        self.counts.answered += record.status == "ok" or record.t_first_s is not None
        self.counts.retries += record.retries
        self.counts.merged_reads += answer.merged_reads
        self._sink(record, answer.chunks)
        self._follow_up(sent.planned, answer)

    def _follow_up(self, former: PlannedRequest, answer: Answer) -> None:
        turn = self._turns.pop(former.index, None)
        if turn is None:
            return
        if answer.status != "ok":
            while turn is not None:
                self._record_unsent(turn, "former_turn")
                turn = self._turns.pop(turn.index, None)
            return
        ready = next_turn(
            turn,
            former,
            text=answer.text or "",
            token_ids=answer.token_ids,
            output_tokens=answer.output_tokens,
            tool_calls=answer.tool_calls,
        )
        due = answer.t_end_ns + round(turn.think_time_s * 1e9)
        if not self._closed_loop:
            due = max(due, self._due(turn))
        heapq.heappush(self._heap, (due, turn.index, ready))
        self._arm(time.monotonic_ns())

    def _record_unsent(self, request: PlannedRequest, cause: str) -> None:
        self.counts.unsent += 1
        self._sink(unsent_record(request, cause, self._worker), np.empty(0, CHUNK_DTYPE))

    def _check_end(self) -> None:
        counts = self.counts
        if counts.done + counts.failed + counts.unsent >= counts.planned:
            self._finished = True
            return
        nothing_to_send = not (self._firsts or self._heap or self._waiting or self._turns)
        if nothing_to_send and self._drain_until_ns is None and self.loop.in_flight:
            self._drain_until_ns = time.monotonic_ns() + round(self.limits.drain_s * 1e9)
            self._arm(time.monotonic_ns())
