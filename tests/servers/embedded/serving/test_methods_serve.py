"""Every method under the real scheduler and a model: a crowd in a small pool is served to the end."""

import pytest
import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.serving.server import settle_context
from tests.servers.embedded.model.test_generate_parity import ANSWER, load, requests, serve

SMALL = {
    "kivi-4": "kivi-4:group=16,residual=16",
    "kivi-2": "kivi-2:group=16,residual=16",
    "gear-4": "gear-4:group=16,block=16",
    "gear-2": "gear-2:group=16,block=16",
    "streamingllm": "streamingllm:start=2,recent=16",
    "h2o": "h2o:budget=16,recent=8",
    "snapkv": "snapkv:budget=16,window=4",
    "leankv": "leankv:buffer=8",
}
"""Options that let a method act on requests of a few dozen tokens."""


@pytest.mark.parametrize("method", METHODS)
def test_a_crowd_is_served_and_every_page_comes_back(method: str) -> None:
    torch.set_num_threads(1)
    model, _ = load("llama")
    spec = parse_method(SMALL.get(method, method))
    token_bytes = 2 * 4 * model.geometry.layers * model.geometry.kv_heads * model.geometry.head_dim
    cache = build_cache(model.geometry, spec, 220 * token_bytes, 0, 13)
    limit = settle_context(cache, None, 4096)
    lengths = tuple(length for length in (3, 41, 17, 9, 26, 33, 1, 12, 40, 5) if length + ANSWER <= limit)
    sequences = requests(lengths)
    serve(model, cache, sequences, cancel=sequences[2])
    assert len(sequences) > 5
    assert cache.allocated_bytes == 0
    assert sequences[2].generated == 4
    for sequence in sequences[:2] + sequences[3:]:
        assert sequence.generated == ANSWER
        assert all(0 <= token < model.vocab_size for token in sequence.tokens)
