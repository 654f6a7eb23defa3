"""The embedded engine's h2o-block against the reference that vLLM's answers under the plugin are held against."""

from typing import Any

import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import StepEntry
from kvload.servers.embedded.model.model import load_model
from kvload.servers.probe import MODEL_DIR
from tests.vllm.eviction_reference import Reference


def test_tokens_are_those_of_the_reference_for_engines_with_blocks() -> None:
    device = torch.device("cpu")
    model = load_model(
        str(MODEL_DIR), load_format="auto", device=device, dtype=torch.float32, seed=0, on_progress=lambda _: None
    )
    random = torch.Generator().manual_seed(1)
    prompt = [1, *torch.randint(20, model.vocab_size, (150,), generator=random).tolist()]
    expected = Reference(MODEL_DIR, "h2o", budget=64, recent=32).greedy(prompt, 40)
    cache: Any = build_cache(model.geometry, parse_method("h2o-block:budget=64,recent=32"), 8 << 20)
    sequence = cache.open()
    tokens = list(prompt)
    held = []
    while len(tokens) < len(prompt) + 40:
        new = tokens[sequence.length :][:100]  # the prompt in two chunks
        assert cache.reserve(sequence, len(new))
        plan = cache.plan([StepEntry(sequence, len(new), len(prompt))])
        positions = torch.arange(sequence.length, sequence.length + len(new))
        logits = model.forward(torch.tensor(new), positions, torch.tensor([len(new) - 1]), cache, plan)
        cache.commit(plan)
        if sequence.length == len(tokens):
            tokens.append(int(logits[0].argmax()))
            held.append(sequence.pages)
    assert tokens[len(prompt) :] == expected
    assert max(held) == 5  # 64 tokens, and 16 slots that are filled again and again
