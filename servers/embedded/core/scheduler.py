"""Which tokens the next step computes: continuous batching with chunked prefill over a fixed pool of pages."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class Schedulable(Protocol):
    """What the scheduler asks of a request; see :class:`.sequence.Sequence`."""

    number: int
    computed: int
    cache: Any
    prefill_length: int

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""

    @property
    def remaining(self) -> int:
        """Tokens that are known but not in the cache: 1 while decoding, more during the prefill."""

    @property
    def chunk_limit(self) -> int | None:
        """Most tokens of it that one step computes, where it has a limit of its own."""

    def give_way(self) -> None:
        """Note that its pages were taken."""


class Pages(Protocol):
    """What the scheduler asks of the KV cache, or of its account alone; see ``embedded/account``."""

    def open(self) -> Any:
        """A new, empty sequence."""

    def close(self, sequence: Any) -> None:
        """Free all pages of a sequence."""

    def admits(self, prompt_tokens: int) -> bool:
        """Whether the free pages hold a prompt of this length now."""

    def reserve(self, sequence: Any, new_tokens: int) -> bool:
        """Take the pages that so many more tokens need; False (and nothing taken) if there are none."""


S = TypeVar("S", bound=Schedulable)


# Not frozen, like StepEntry: one is made for every sequence and step, and freezing would double what that costs.
@dataclass(slots=True)
class Chunk(Generic[S]):
    """One sequence's part of a step: its tokens ``start .. start + count``."""

    sequence: S
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether the chunk reaches the last known token, so that the next one can be sampled."""
        return self.start + self.count == self.sequence.length


class Scheduler(Generic[S]):
    """First come, first served; the newest gives way.

    Every step takes, in this order: one token of each decoding sequence, the next chunk of prompts already begun, then
    waiting requests, oldest first, as long as there are free pages, places and token budget. A sequence that needs
    a page when there is none takes those of the newest running one, which is computed again later. The oldest sequence
    can thus always go on, and everything ends.

    Args:
        cache: the pool.
        max_sequences: sequences running at once.
        chunk_tokens: tokens of one step; larger than ``max_sequences``, so that prompts go on beside full decoding.
    """

    def __init__(self, cache: Pages, *, max_sequences: int, chunk_tokens: int) -> None:
        if max_sequences < 1 or chunk_tokens <= max_sequences:
            raise ValueError(f"chunk_tokens ({chunk_tokens}) must be larger than max_sequences ({max_sequences}) > 0")
        self.cache = cache
        self.max_sequences = max_sequences
        self.chunk_tokens = chunk_tokens
        self.waiting: deque[S] = deque()
        self.running: list[S] = []
        self.preemptions = 0

    def add(self, sequence: S) -> None:
        """Queue a new request."""
        self.waiting.append(sequence)

    def remove(self, sequence: S) -> None:
        """Forget a request that is finished, cancelled or failed, and free its pages. Twice is harmless."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def schedule(self) -> list[Chunk[S]]:
        """Choose the next step's chunks, pages reserved; empty if nothing can run.

        Decoding sequences come first, each group oldest first.
        """
        chunks: dict[S, Chunk[S]] = {}
        budget = self.chunk_tokens
        preempted = self.preemptions
        decoding: list[S] = []
        reading: list[S] = []
        for sequence in self.running:
            (decoding if sequence.remaining == 1 else reading).append(sequence)
        reserve = self.cache.reserve
        for sequence in decoding:
            if sequence.cache is None:
                continue
            if reserve(sequence.cache, 1):
                chunks[sequence] = Chunk(sequence, sequence.computed, 1)
                budget -= 1
            elif self._take(sequence, 1, chunks):
                budget -= 1
        for sequence in reading:
            if sequence.cache is None or budget <= 0:
                continue
            count = self._chunk_size(sequence, budget)
            if self._take(sequence, count, chunks):
                budget -= count
        while budget > 0 and self.waiting and len(self.running) < self.max_sequences and self.preemptions == preempted:
            sequence = self.waiting[0]
            begun = self._begun(chunks)
            if self.running and not self._admits(sequence, begun):
                break
            self._open(sequence)
            count = self._chunk_size(sequence, budget)
            if not self.cache.reserve(sequence.cache, count):
                self._release(sequence)
                break
            self.waiting.popleft()
            sequence.prefill_length = sequence.length
            self.running.append(sequence)
            chunks[sequence] = Chunk(sequence, sequence.computed, count)
            budget -= count
        return list(chunks.values())

    def advance(self, chunks: list[Chunk[S]]) -> None:
        """Note that a step has been computed."""
        for chunk in chunks:
            chunk.sequence.computed = chunk.start + chunk.count

    def _admits(self, sequence: S, begun: int) -> bool:
        """Whether the free pages hold a waiting request, and ``begun`` tokens that running ones still have to read."""
        return self.cache.admits(sequence.length + begun)

    def _open(self, sequence: S) -> None:
        """Give a waiting request its part of the cache, empty or with what is there of it already."""
        sequence.cache = self.cache.open()

    def _begun(self, chunks: dict[S, Chunk[S]]) -> int:
        """Tokens of the running sequences that this step leaves for later."""
        left = sum(chunk.sequence.length - chunk.start - chunk.count for chunk in chunks.values())
        if len(chunks) < len(self.running):
            left += sum(running.remaining for running in self.running if running not in chunks)
        return left

    def _chunk_size(self, sequence: S, budget: int) -> int:
        limit = sequence.chunk_limit
        return min(sequence.remaining, budget if limit is None else min(budget, limit))

    def _take(self, sequence: S, count: int, chunks: dict[S, Chunk[S]]) -> bool:
        """Reserve pages for a running sequence, from newer ones if it must be; False if it has to give way itself."""
        while not self.cache.reserve(sequence.cache, count):
            victim = max(self.running, key=lambda running: running.number)
            if victim is sequence and len(self.running) == 1:
                break
            chunks.pop(victim, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        else:
            chunks[sequence] = Chunk(sequence, sequence.computed, count)
            return True
        return False

    def _preempt(self, victim: S) -> None:
        self.running.remove(victim)
        self._release(victim)
        victim.give_way()
        self.preemptions += 1
        self.waiting.appendleft(victim)

    def _release(self, sequence: S) -> None:
        if sequence.cache is not None:
            self.cache.close(sequence.cache)
            sequence.cache = None
        sequence.computed = 0
