"""One simulated server: continuous batching, chunked prefill, a page pool and preemption, in virtual time.

The scheduler is the embedded engine's own, and so is the page account where prompts share nothing (:mod:`.prefix` keeps
the books where they do). Steps in which nothing but decoding happens, with the
same sequences, are taken many at a time: their number follows from the next end of an answer, the next arrival and the
free pages, their time from the sum of an arithmetic series.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Protocol

from kvload.servers.embedded.account.base import StepEntry
from kvload.servers.embedded.core.scheduler import Chunk, Pages, Scheduler
from kvload.servers.simulator.cost import Kept, StepCost, StepWork, prompt_work
from kvload.servers.simulator.prefix import PrefixAccount
from kvload.servers.simulator.request import SimulatedRequest
from kvload.servers.simulator.stretch import Stretch, steps_to_pass


class Books(Pages, Protocol):
    """What a simulated server asks of a page account."""

    @property
    def free_pages(self) -> int:
        """Pages nobody holds."""

    @property
    def pool_tokens(self) -> int:
        """Tokens that fit."""

    def fits(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a request of this size could ever be served with the whole pool to itself."""

    def advance(self, entries: Any) -> None:
        """A step was computed."""


class _CachingScheduler(Scheduler[SimulatedRequest]):
    """Begins requests behind what the prefix cache holds of them."""

    def _admits(self, sequence: SimulatedRequest, begun: int) -> bool:
        account = self.cache
        if sequence.prefix and isinstance(account, PrefixAccount):
            return account.admits_prefix(sequence.length + begun, sequence.prefix, sequence.length)
        return account.admits(sequence.length + begun)

    def _open(self, sequence: SimulatedRequest) -> None:
        account = self.cache
        if sequence.prefix and isinstance(account, PrefixAccount):
            sequence.cache = account.open_prefix(sequence.prefix, sequence.length)
        else:
            sequence.cache = account.open()
            if sequence.cached_tokens and not sequence.preemptions:
                # Counted, but nobody knows with whom they are shared: their pages count as its own. The last token of a
                # prompt is always computed: its logits make the first token of the answer.
                sequence.cache.length = min(sequence.cached_tokens, sequence.length - 1)
        sequence.computed = sequence.cache.length


@dataclass(slots=True)
class _Launching:
    """What the host of a server does: it launches steps with prompts while the GPU computes.

    Attributes:
        over_s: end of the last launch.
        before_s: when the last step began; then the output of the one before was handed out, and scheduling the next
            one began.
        chained: whether the last step had prompts, so that the next one is launched as fast.
        factor: how long launches are at the moment, relative to their mean.
        first, last: requests that got their first, and their last, token in the last step.
    """

    over_s: float = -math.inf
    before_s: float = 0.0
    chained: bool = False
    factor: float = 1.0
    first: list[SimulatedRequest] = field(default_factory=list)
    last: list[SimulatedRequest] = field(default_factory=list)


class Replica:
    """A simulated server.

    Args:
        account: the pool's books.
        cost: of a step.
        max_sequences, chunk_tokens: the scheduler's limits.
        max_model_len: tokens of a prompt and its answer that it takes; None for as many as fit into the pool.
        kept: tokens that a decode step reads of a sequence; None for all of them.
        ahead_steps: steps that are settled before a request that arrives can be part of one; none where nothing runs.
        launches: how long launches are relative to their mean, one for every chain of steps with prompts; always 1
            where None.
    """

    def __init__(
        self,
        account: Books,
        cost: StepCost,
        *,
        max_sequences: int,
        chunk_tokens: int,
        max_model_len: int | None = None,
        kept: Kept | None = None,
        ahead_steps: int = 0,
        launches: Iterator[float] | None = None,
    ) -> None:
        self.account = account
        self.cost = cost
        self.kept = kept
        self.now_s = 0.0
        self.log: list[Stretch] = []
        self.busy_s = 0.0
        self._max_model_len = max_model_len
        self._ahead_steps = ahead_steps
        self._arrived: deque[tuple[SimulatedRequest, int]] = deque()
        self._steps = 0
        self._jump: tuple[list[Chunk[SimulatedRequest]], Stretch] | None = None
        self._launches = launches or repeat(1.0)
        self._launch = _Launching()
        self._scheduler = _CachingScheduler(account, max_sequences=max_sequences, chunk_tokens=chunk_tokens)

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return len(self._scheduler.running) + len(self._scheduler.waiting) + len(self._arrived)

    @property
    def preemptions(self) -> int:
        """How often a sequence had to give its pages back."""
        return self._scheduler.preemptions

    def takes(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a request of this size could ever be served with the whole server to itself."""
        if self._max_model_len is not None and prompt_tokens + output_tokens > self._max_model_len:
            return False
        return self.account.fits(prompt_tokens, output_tokens)

    def add(self, request: SimulatedRequest) -> None:
        """A request arrives. Requests come in order of arrival, after :meth:`run_until` their time."""
        if not self.takes(request.prompt_tokens, request.output_tokens):
            request.refused = True
            return
        if not self._scheduler.waiting:
            # Whoever comes may be part of the next step but those that are settled.
            self._land(request.arrival_s)
        settled = self._ahead_steps if request.arrival_s > self._launch.over_s else 0
        self._arrived.append((request, self._steps + settled))

    def run_until(self, time_s: float) -> None:
        """Take every step that begins before a moment; steps that have begun are finished."""
        while self.now_s < time_s:
            if not self.outstanding:
                self.now_s = time_s if math.isfinite(time_s) else self.now_s
                return
            if self._jump is None:
                self._step()
            elif self._jump[1].end_s(self._jump[1].steps - 1) >= time_s:
                # Nothing happens before its last step but that tokens are made: it is taken when it is over, or as far
                # as the next request to arrive lets it go.
                return
            else:
                self._land(math.inf)

    def drain(self) -> None:
        """Run until nothing is left."""
        self.run_until(math.inf)

    def _step(self) -> None:
        idle = not self._scheduler.running and not self._scheduler.waiting
        while self._arrived and (idle or self._arrived[0][1] <= self._steps):
            self._scheduler.add(self._arrived.popleft()[0])
        preempted = self.preemptions
        chunks = self._scheduler.schedule()
        if not chunks:
            raise RuntimeError("the scheduler found nothing to do although requests wait")
        if self.preemptions > preempted:
            self._close_spans()
        now = self.now_s
        decodes, context, tokens, work = 0, 0, 0, 0.0
        steady, kept = True, self.kept
        for chunk in chunks:
            request = chunk.sequence
            if chunk.count == 1 and request.generated:
                decodes += 1
                length = request.prompt_tokens + request.generated
                context += length if kept is None else kept(length, request.prefill_length)
                continue
            steady = False
            if request.scheduled_s is None:
                request.scheduled_s = now
                request.cached_tokens = chunk.start
            tokens += chunk.count
            work += prompt_work(chunk.start, chunk.count)
        launched_s = self._launched_s(idle) - now if self.cost.launch and not steady else 0.0
        done = StepWork(1.0, 0.0 if steady else 1.0, decodes, context, tokens, work)
        seconds = self.cost.seconds(done, launched_s)
        growth = self._growth(chunks) if steady else 0.0
        steps = self._steady_steps(chunks) if steady else 1
        stretch = Stretch(now, steps, seconds, growth, decodes, context, 0.0, tokens, work)
        if steps > 1:
            self._jump = chunks, stretch
        else:
            self._take(chunks, stretch, steady=steady)

    def _land(self, time_s: float) -> None:
        """Take the steps of a jump that begin before a moment."""
        if self._jump is None:
            return
        (chunks, stretch), self._jump = self._jump, None
        steps = stretch.steps
        if math.isfinite(time_s):
            passed_s = time_s - stretch.start_s
            steps = min(steps, steps_to_pass(passed_s, stretch.first_step_s, stretch.growth_s))
        for chunk in chunks:
            if not self.account.reserve(chunk.sequence.cache, steps):
                raise RuntimeError("the pages that were counted as free are not")
        self._take(chunks, stretch if steps == stretch.steps else replace(stretch, steps=steps), steady=True)

    def _take(self, chunks: list[Chunk[SimulatedRequest]], stretch: Stretch, *, steady: bool) -> None:
        """Take steps that were planned."""
        steps, now = stretch.steps, self.now_s
        self.log.append(stretch)
        self._steps += steps
        self.now_s = stretch.end_s(steps)
        self._launch.before_s = now if steps == 1 else stretch.end_s(steps - 1)
        self._launch.chained = not steady
        self.busy_s += self.now_s - now
        self._take_in(chunks, steps)

    def _launched_s(self, idle: bool) -> float:
        """When the launch of a step with prompts, the next one, is over; tokens of the step before wait for it."""
        launch = self._launch
        if not launch.chained:
            launch.factor = next(self._launches)
        begun_s = self.now_s
        if self._ahead_steps and not idle:
            begun_s = max(launch.before_s, launch.over_s)
        launch.over_s = begun_s + self.cost.launch * launch.factor
        if self._ahead_steps and not idle and launch.over_s > self.now_s:
            self.log[-1] = replace(self.log[-1], handed_s=launch.over_s)
            for request in launch.first:
                request.first_s = launch.over_s
            for request in launch.last:
                request.last_s = launch.over_s
        return launch.over_s

    def _growth(self, chunks: list[Chunk[SimulatedRequest]]) -> float:
        if self.kept is None:
            return self.cost.context * len(chunks)
        grown = 0
        for chunk in chunks:
            request = chunk.sequence
            length = request.length
            grown += self.kept(length + 1, request.prefill_length) - self.kept(length, request.prefill_length)
        return self.cost.context * grown

    def _steady_steps(self, chunks: list[Chunk[SimulatedRequest]]) -> int:
        """How many steps like this one follow each other where nobody arrives."""
        left = min(chunk.sequence.output_tokens - chunk.sequence.generated for chunk in chunks)
        if self._arrived:
            left = min(left, self._arrived[0][1] - self._steps)
        if self.kept is not None:
            left = min(left, *(self.kept.even_steps(chunk.sequence.length) for chunk in chunks))
        page_tokens = getattr(self.account, "page_tokens", 1)
        return max(1, min(left, self.account.free_pages // len(chunks) * page_tokens))

    def _take_in(self, chunks: list[Chunk[SimulatedRequest]], steps: int) -> None:
        self.account.advance(
            [StepEntry(chunk.sequence.cache, chunk.count * steps, chunk.sequence.prefill_length) for chunk in chunks]  # type: ignore[arg-type]
        )
        place = len(self.log) - 1
        fresh: list[SimulatedRequest] = []
        finished: list[SimulatedRequest] = []
        receiving = 0
        for chunk in chunks:
            request = chunk.sequence
            request.computed = chunk.start + chunk.count
            if request.computed != request.prompt_tokens + request.generated:
                continue
            receiving += 1
            request.generated += steps
            request.computed += steps - 1
            if request.since is None:
                request.since = place
                fresh.append(request)
            if request.generated >= request.output_tokens:
                finished.append(request)
        self._launch.first, self._launch.last = [request for request in fresh if request.first_s is None], finished
        for request in self._launch.first:
            request.first_s, request.first_beside = self.now_s, receiving - 1
        for request in finished:
            request.last_s = self.now_s
            self._scheduler.remove(request)
            request.spans.append((request.since if request.since is not None else place, place))
            request.since = None

    def _close_spans(self) -> None:
        """Requests that lost their pages received no token in the step that comes."""
        for request in self._scheduler.waiting:
            if request.since is not None:
                request.spans.append((request.since, len(self.log) - 1))
                request.since = None
