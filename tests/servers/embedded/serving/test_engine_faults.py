"""Faults stay with the requests they concern, and the engine serves on."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from kvload.servers.embedded.core.engine import Delivery, Engine
from kvload.servers.embedded.core.metrics import Metrics
from kvload.servers.embedded.core.runner import Runner
from kvload.servers.embedded.core.sampler import Sampler
from kvload.servers.embedded.core.scheduler import Scheduler
from kvload.servers.embedded.core.sequence import Delta, FinishReason, SamplingParams, Sequence
from kvload.servers.embedded.core.tokenizer import NumericTokenizer
from kvload.servers.embedded.model.attention import ATTENTION_NAME, attention
from kvload.servers.embedded.model.model import inspect_model, record
from tests.servers.embedded.reference_cache import ReferenceCache
from tests.servers.embedded.tiny_models import tiny_config, tiny_module


@dataclass
class Harness:
    """An engine in its own thread and what it delivered."""

    engine: Engine
    cache: ReferenceCache
    metrics: Metrics
    delivered: "queue.SimpleQueue[tuple[str, Delta]]"

    def submit(self, name: str, **params: Any) -> Any:
        return self.engine.submit(
            [5, 6, 7],
            SamplingParams(**{"max_tokens": 4, "ignore_eos": True, **params}),
            lambda delta: self.delivered.put((name, delta)),
        )

    def last(self, *names: str) -> dict[str, Delta]:
        """Each request's last delta."""
        found: dict[str, Delta] = {}
        while found.keys() != set(names):
            name, delta = self.delivered.get(timeout=30)
            if delta.finish_reason is not None:
                found[name] = delta
        return found


@pytest.fixture(params=["recorded", "module"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, attention)
    torch.set_num_threads(1)
    model = inspect_model(tiny_module(tiny_config("llama"), ATTENTION_NAME), "tiny")
    model = record(model) if request.param == "recorded" else model
    cache = ReferenceCache(model.geometry, total=20)
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=4, chunk_tokens=16)
    metrics = Metrics("tiny", {}, {})

    def deliver(delivery: Delivery) -> None:
        for put, delta in delivery:
            put(delta)

    runner = Runner(model, cache, Sampler(model.eos_ids, seed=0, device=torch.device("cpu")))
    engine = Engine(runner, scheduler, NumericTokenizer(151), metrics, deliver)
    engine.start()
    yield Harness(engine, cache, metrics, queue.SimpleQueue())
    engine.stop(10)
    assert not engine.alive


def test_a_failed_step_fails_its_requests_and_no_others(harness: Harness) -> None:
    harness.cache.fault = torch.OutOfMemoryError("no memory for scores")
    harness.submit("a")
    assert harness.last("a")["a"].error == "OutOfMemoryError: no memory for scores"
    harness.submit("b")
    assert harness.last("b")["b"].finish_reason is FinishReason.LENGTH
    assert harness.cache.used == 0
    assert harness.metrics.finished[FinishReason.ERROR] == 1
    assert harness.metrics.finished[FinishReason.LENGTH] == 1


def test_a_fault_in_one_requests_text_fails_that_request_only(harness: Harness) -> None:
    class Refusing:
        def push(self, *_: Any, **__: Any) -> Any:
            raise ValueError("no text")

    sequence = harness.submit("bad")
    sequence.output = Refusing()
    harness.submit("good", max_tokens=8)
    ends = harness.last("bad", "good")
    assert ends["bad"].error == "ValueError: no text"
    assert ends["good"].finish_reason is FinishReason.LENGTH
    assert harness.cache.used == 0


def test_a_request_that_outgrows_the_pool_fails_instead_of_waiting_for_ever(harness: Harness) -> None:
    harness.submit("big", max_tokens=200)
    assert harness.last("big")["big"].error == "the KV cache cannot hold this request"
    assert harness.cache.used == 0


def test_a_cancelled_request_frees_its_pages(harness: Harness) -> None:
    sequence = harness.submit("gone", max_tokens=70)
    while harness.delivered.get(timeout=30)[1].finish_reason is not None:
        pass
    harness.engine.cancel(sequence)
    harness.submit("next")
    harness.last("next")
    assert harness.cache.used == 0
    assert harness.metrics.finished[FinishReason.ABORT] == 1
