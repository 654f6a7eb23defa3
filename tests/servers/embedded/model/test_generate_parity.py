"""The engine's greedy answers against ``transformers``' own ``generate``, token for token."""

from typing import Any

import pytest
import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import KVCache, StepEntry
from kvload.servers.embedded.core.runner import Runner
from kvload.servers.embedded.core.sampler import Sampler
from kvload.servers.embedded.core.scheduler import Scheduler
from kvload.servers.embedded.core.sequence import SamplingParams, Sequence
from kvload.servers.embedded.model.attention import ATTENTION_NAME, attention
from kvload.servers.embedded.model.model import Model, inspect_model, record
from tests.servers.embedded.reference_cache import ReferenceCache
from tests.servers.embedded.tiny_models import FAMILIES, tiny_config, tiny_module

ANSWER = 18
PROMPTS = (3, 17, 9, 26, 1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def load(family: str) -> tuple[Model, Any]:
    """The engine's model of a family, and ``transformers``' own with the same weights."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, attention)
    config = tiny_config(family)
    model = record(inspect_model(tiny_module(config, ATTENTION_NAME), family))
    return model, tiny_module(config, "eager")


def requests(lengths: tuple[int, ...]) -> list[Sequence]:
    """Random prompts."""
    generator = torch.Generator().manual_seed(5)
    params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    found = []
    for number, length in enumerate(lengths):
        tokens = torch.randint(3, 151, (length,), generator=generator).tolist()
        found.append(Sequence(number, tokens, length, params, lambda _: None, 0.0))
    return found


def serve(
    model: Model, cache: KVCache, sequences: list[Sequence], cancel: Sequence | None = None
) -> Scheduler[Sequence]:
    """Run all requests, arriving two steps apart, to their ends."""
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=8, chunk_tokens=13)
    runner = Runner(model, cache, Sampler(model.eos_ids, seed=0, device=torch.device("cpu")))
    coming = list(sequences)
    for step in range(1000):
        if coming and step % 2 == 0:
            scheduler.add(coming.pop(0))
        chunks = scheduler.schedule()
        if not chunks and not coming:
            break
        results = runner.run(chunks) if chunks else []
        scheduler.advance(chunks)
        for chunk, result in zip(chunks, results, strict=True):
            if chunk.completes and result.sampled is not None:
                chunk.sequence.tokens.append(result.sampled.token)
                if chunk.sequence.generated == ANSWER:
                    scheduler.remove(chunk.sequence)
        if cancel is not None and cancel.generated == 4:
            scheduler.remove(cancel)
            cancel = None
    assert not scheduler.running
    assert not scheduler.waiting
    return scheduler


def expect(reference: Any, sequence: Sequence) -> list[int]:
    """What ``generate`` answers."""
    prompt = torch.tensor([sequence.tokens[: sequence.prompt_length]])
    output = reference.generate(
        prompt, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return list(output[0].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_generate(family: str) -> None:
    """Mixed batches, prompts cut into chunks, a pool so small that requests are preempted."""
    model, reference = load(family)
    assert model.recording is not None
    cache = ReferenceCache(model.geometry, total=20)
    sequences = requests(PROMPTS)
    scheduler = serve(model, cache, sequences)
    assert scheduler.preemptions > 0
    assert any(1 in step and max(step) > 1 for step in cache.steps)
    assert cache.used == 0
    for sequence in sequences:
        assert sequence.tokens == expect(reference, sequence)


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma2", "gemma3", "gpt-oss"])
def test_answers_equal_generate_over_the_paged_cache(family: str) -> None:
    """The same over the real cache, uncompressed, one request cancelled in the middle."""
    model, reference = load(family)
    geometry = model.geometry
    token_bytes = 2 * 4 * geometry.layers * geometry.kv_heads * geometry.head_dim
    cache = build_cache(geometry, parse_method("none"), 80 * token_bytes)
    sequences = requests(PROMPTS)
    serve(model, cache, sequences, cancel=sequences[1])
    assert cache.allocated_bytes == 0
    assert sequences[1].generated == 4
    for sequence in sequences:
        assert sequence.tokens == expect(reference, sequence)[: len(sequence.tokens)]


def test_recording_and_module_give_equal_logits() -> None:
    """Bit for bit, over the real cache."""
    model, _ = load("qwen3")
    plain = inspect_model(model.module, "qwen3")
    logits = []
    for candidate in (model, plain):
        cache = build_cache(model.geometry, parse_method("none"), 2**20)
        [sequence] = requests((11,))
        sequence.cache, sequence.prefill_length = cache.open(), 11
        assert cache.reserve(sequence.cache, 11)
        plan = cache.plan([StepEntry(sequence.cache, 11, 11)])
        ids, positions = torch.tensor(sequence.tokens), torch.arange(11)
        logits.append(candidate.forward(ids, positions, positions, cache, plan))
    assert torch.equal(*logits)
