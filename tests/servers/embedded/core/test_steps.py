"""The step log: what a real engine computed, step by step, adds up to what its requests were."""

import queue
import time
from pathlib import Path

import pytest
import torch

from kvload.errors import ServerError, UsageError
from kvload.servers.catalogue.asked import parse_method
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.core.engine import Engine
from kvload.servers.embedded.core.metrics import Metrics
from kvload.servers.embedded.core.runner import Runner
from kvload.servers.embedded.core.sampler import Sampler
from kvload.servers.embedded.core.scheduler import Scheduler
from kvload.servers.embedded.core.sequence import Delta, SamplingParams, Sequence
from kvload.servers.embedded.core.steps import StepLog, read_steps
from kvload.servers.embedded.core.tokenizer import NumericTokenizer
from kvload.servers.embedded.model.attention import ATTENTION_NAME, attention
from kvload.servers.embedded.model.model import inspect_model
from tests.servers.embedded.tiny_models import tiny_config, tiny_module


def test_steps_add_up_to_the_requests(tmp_path: Path) -> None:
    pytest.importorskip("transformers").AttentionInterface.register(ATTENTION_NAME, attention)
    model = inspect_model(tiny_module(tiny_config("llama"), ATTENTION_NAME), "tiny")
    cache = build_cache(model.geometry, parse_method("none"), 1 << 22, chunk_tokens=16)
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=4, chunk_tokens=16)
    log = StepLog(tmp_path / "steps.jsonl")
    runner = Runner(model, cache, Sampler(model.eos_ids, seed=0, device=torch.device("cpu")))
    engine = Engine(runner, scheduler, NumericTokenizer(model.vocab_size), Metrics("m", {}, {}), _deliver, log)
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    before = time.time()

    def on_delta(delta: Delta) -> None:
        if delta.finish_reason is not None:
            ended.put(delta.finish_reason)

    for prompt in (20, 5):
        engine.submit(list(range(1, prompt + 1)), SamplingParams(max_tokens=6, ignore_eos=True), on_delta)
    engine.start()
    assert [ended.get(timeout=60) for _ in range(2)] == ["length", "length"]
    engine.stop(10)
    log.close()
    steps = read_steps(tmp_path / "steps.jsonl")
    # The last token of an answer is sampled, never computed.
    assert sum(step.decode for step in steps) == 2 * 5
    assert sum(tokens for step in steps for tokens, _ in step.prefill) == 25
    assert sum(step.context for step in steps) == sum(range(20, 25)) + sum(range(5, 10))
    assert [step.prefill for step in steps][:2] == [((16, 0),), ((4, 16), (5, 0))]
    assert before <= steps[0].t <= steps[-1].t <= time.time()
    assert all(step.s > 0 for step in steps)


def test_a_log_that_was_cut_off_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('{"t":1.0,"s":0.5,"decode":2,"context":9}\n{"t":2.0,"s', encoding="utf-8")
    assert [step.decode for step in read_steps(path)] == [2]
    path.write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 1 is no step"):
        read_steps(path)
    with pytest.raises(ServerError, match="cannot be written"):
        StepLog(tmp_path / "absent" / "steps.jsonl")


def _deliver(delivery: list) -> None:  # type: ignore[type-arg]
    for put, delta in delivery:
        put(delta)
