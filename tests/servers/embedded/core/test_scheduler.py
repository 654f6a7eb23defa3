"""The scheduler against random traffic: nothing leaks, everything ends, the oldest goes first."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.servers.embedded.cache.api import CacheGeometry
from kvload.servers.embedded.core.scheduler import Chunk, Scheduler
from kvload.servers.embedded.core.sequence import SamplingParams, Sequence
from tests.servers.embedded.reference_cache import ReferenceCache

GEOMETRY = CacheGeometry(1, 1, 1, 1, torch.float32, torch.device("cpu"))


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, its size, and when its client leaves."""

    step: int
    prompt: int
    answer: int
    cancel: int | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 30),
        prompt=st.integers(1, 30),
        answer=st.integers(1, 15),
        cancel=st.none() | st.integers(0, 50),
    ),
    min_size=1,
    max_size=12,
)


def request(number: int, prompt: int, answer: int, **params: Any) -> Sequence:
    return Sequence(number, [0] * prompt, prompt, SamplingParams(max_tokens=answer, **params), lambda _: None, 0.0)


def compute(scheduler: Scheduler[Sequence], cache: ReferenceCache, chunks: list[Chunk[Sequence]]) -> None:
    """What a step does, without a model: fill pages, append a token where the chunk reaches the end."""
    for chunk in chunks:
        assert chunk.start == chunk.sequence.computed == chunk.sequence.cache.length
        assert chunk.start + chunk.count <= chunk.sequence.cache.pages * cache.page
        chunk.sequence.cache.length += chunk.count
    scheduler.advance(chunks)
    for chunk in chunks:
        if chunk.start + chunk.count == len(chunk.sequence.tokens):
            chunk.sequence.tokens.append(0)
            if chunk.sequence.generated == chunk.sequence.params.max_tokens:
                scheduler.remove(chunk.sequence)


@settings(max_examples=150, deadline=None)
@given(arrivals=ARRIVALS, pages=st.integers(12, 40), places=st.integers(1, 6), budget=st.integers(7, 40))
def test_random_traffic_leaks_nothing_and_ends(arrivals: list[Arrival], pages: int, places: int, budget: int) -> None:
    cache = ReferenceCache(GEOMETRY, total=pages)
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=places, chunk_tokens=budget)
    arrivals = sorted(arrivals, key=lambda arrival: arrival.step)
    sequences = [request(number, a.prompt, a.answer) for number, a in enumerate(arrivals)]
    first_run: dict[int, int] = {}
    for step in range(3000):
        for arrival, sequence in zip(arrivals, sequences, strict=True):
            if arrival.step == step:
                scheduler.add(sequence)
            if arrival.cancel is not None and arrival.cancel + arrival.step == step:
                scheduler.remove(sequence)
        chunks = scheduler.schedule()
        assert len(scheduler.running) <= places
        assert sum(chunk.count for chunk in chunks) <= budget
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        assert bool(chunks) == bool(scheduler.running or scheduler.waiting)
        assert cache.used == sum(s.cache.pages for s in scheduler.running if s.cache is not None)
        if chunks:
            oldest = min(sequence.number for sequence in [*scheduler.running, *scheduler.waiting])
            assert oldest in {chunk.sequence.number for chunk in chunks}
        for chunk in chunks:
            first_run.setdefault(chunk.sequence.number, step)
        compute(scheduler, cache, chunks)
        if step > arrivals[-1].step and not scheduler.running and not scheduler.waiting:
            break
    else:
        pytest.fail("the traffic did not end")
    assert cache.used == 0
    order = [first_run[number] for number in sorted(first_run)]
    assert order == sorted(order), "a request was begun before an older one"
    for arrival, sequence in zip(arrivals, sequences, strict=True):
        assert sequence.generated == arrival.answer or arrival.cancel is not None


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    cache = ReferenceCache(GEOMETRY, total=100)
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=4, chunk_tokens=10)
    scheduler.add(request(0, 2, 20))
    compute(scheduler, cache, scheduler.schedule())
    scheduler.add(request(1, 35, 1))
    seen = []
    for _ in range(4):
        chunks = scheduler.schedule()
        seen.append([(chunk.sequence.number, chunk.count) for chunk in chunks])
        compute(scheduler, cache, chunks)
    assert seen == [[(0, 1), (1, 9)], [(0, 1), (1, 9)], [(0, 1), (1, 9)], [(0, 1), (1, 8)]]


def test_the_newest_gives_way_and_returns_in_order() -> None:
    cache = ReferenceCache(GEOMETRY, total=8, page=1)
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=4, chunk_tokens=10)
    for number in range(4):
        scheduler.add(request(number, 1, 3))
    compute(scheduler, cache, scheduler.schedule())
    compute(scheduler, cache, scheduler.schedule())
    chunks = scheduler.schedule()
    assert [chunk.sequence.number for chunk in chunks] == [0, 1]
    assert scheduler.preemptions == 2
    assert [sequence.number for sequence in scheduler.waiting] == [2, 3]
    assert scheduler.waiting[0].computed == 0


def test_prompt_logprobs_are_computed_in_smaller_chunks() -> None:
    cache = ReferenceCache(GEOMETRY, total=1000)
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=1, chunk_tokens=600)
    scheduler.add(request(0, 500, 1, prompt_logprobs=0))
    assert [chunk.count for chunk in scheduler.schedule()] == [256]


def test_a_budget_that_decoding_could_use_up_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_tokens"):
        Scheduler(ReferenceCache(GEOMETRY, total=1), max_sequences=8, chunk_tokens=8)
