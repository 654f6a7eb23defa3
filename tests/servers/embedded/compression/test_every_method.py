"""What holds for every method: the claim is what is held, the pool is never overdrawn, everything comes back."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import parse_method
from kvload.servers.catalogue.claims import Stored
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.embedded.bench.memory_table import fill, geometry, measure, sequences_that_fit
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.kernels.attention import AttentionExtras

METHOD_TABLE = {
    "none": 1,
    "fp8-e4m3": 1,
    "int8": 1,
    "int4": 1,
    "kivi-4": 4,
    "kivi-2": 4,
    "gear-4": 3,
    "gear-2": 3,
    "streamingllm": 2,
    "h2o": 1,
    "h2o-block": 1,
    "h2o-prompt": 1,
    "snapkv": 1,
    "leankv": 2,
    "k8v4": 1,
    "k4v2": 1,
}
"""Every method with the number of tables a head's tokens are spread over, each with at most one unfinished page."""


def test_table_is_complete() -> None:
    assert set(METHOD_TABLE) == set(METHODS)


@pytest.mark.parametrize("tokens", [1, 17, 512, 700, 2048])
@pytest.mark.parametrize("method", METHOD_TABLE)
def test_claimed_bytes_are_held(method: str, tokens: int) -> None:
    """What is held beyond the claim are unfinished pages, one a table, and never less than the claim."""
    row = measure(parse_method(method), 64, tokens)
    claimed, held = row.claimed_bytes * tokens, row.held_bytes * tokens
    # Arrays in a page are padded to 16 bytes (64 in leankv), and a window's page may not divide into whole tokens.
    slack = METHOD_TABLE[method] * row.page_bytes + 0.03 * claimed
    assert held <= claimed + slack
    if not METHODS[method].at_most:
        assert held >= claimed - 1e-6


@pytest.mark.parametrize("method", METHOD_TABLE)
def test_smaller_methods_hold_more_requests(method: str) -> None:
    """1024-token prompts in 2 MiB of one layer: as many as the claim says, give or take pages."""
    spec = parse_method(method)
    shape = geometry(64)
    fit = sequences_that_fit(spec, 64, 1024, 2 << 20)
    if METHODS[method].at_most:
        baseline = sequences_that_fit(parse_method("none"), 64, 1024, 2 << 20)
        assert fit > 1.8 * baseline
        return
    kept = METHODS[method].claim(Stored(1024, 64, 2, spec.options)) * 1024 * shape.kv_heads
    prompt = 1024 * 2 * 64 * 2 * shape.kv_heads if METHODS[method].evicts else kept
    # The last prompt must fit as it is read: eviction methods shrink it only then.
    expected = 1 + int(((2 << 20) - prompt) / kept)
    assert expected * 0.85 - 1 <= fit <= expected + 1


def keys_and_values(shape: CacheGeometry, tokens: int, random: torch.Generator) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(tokens, heads, shape.head_dim, generator=random).to(shape.dtype)
        for heads in (shape.query_heads, shape.kv_heads, shape.kv_heads)
    )


@pytest.mark.parametrize("method", METHOD_TABLE)
def test_a_full_pool_refuses_and_preemption_frees(method: str) -> None:
    """Requests arrive until the pool is full; then one is dropped and read again, as a preemption does."""
    shape = CacheGeometry(2, 4, 2, 32, torch.float32, torch.device("cpu"))
    cache = build_cache(shape, parse_method(method), 3 << 19, chunk_tokens=64)
    random = np.random.default_rng(5)
    noise = torch.Generator().manual_seed(5)
    extras = AttentionExtras(1 / math.sqrt(32))
    waiting = [int(n) for n in random.integers(1, 300, 12)]
    assert all(cache.fits(prompt, 20) for prompt in waiting)
    running: list[tuple[Any, int]] = []
    preempted = finished = 0
    goals: dict[int, int] = {}
    for _ in range(600):
        while waiting and cache.admits(waiting[0]):
            running.append((cache.open(), waiting.pop(0)))
        entries: list[StepEntry] = []
        for sequence, prompt in list(running):
            if sequence.closed:
                continue
            left = prompt - sequence.length
            new = min(64, left) if left > 0 else 1
            before = cache.allocated_bytes
            while not cache.reserve(sequence, new):
                assert cache.allocated_bytes == before
                victim = running.pop()
                cache.close(victim[0])
                cache.close(victim[0])
                before = cache.allocated_bytes
                waiting.insert(0, max(victim[1], victim[0].length))
                entries = [entry for entry in entries if entry.sequence is not victim[0]]
                preempted += 1
                if victim[0] is sequence:
                    break
            else:
                entries.append(StepEntry(sequence, new, prompt))
        if entries:
            plan = cache.plan(entries)
            tokens = sum(entry.new_tokens for entry in entries)
            for layer in range(shape.layers):
                query, key, value = keys_and_values(shape, tokens, noise)
                out = cache.attend(layer, plan, query, key, value, extras)
                assert bool(torch.isfinite(out).all())
            cache.commit(plan)
        assert cache.allocated_bytes == sum(sequence.allocated_bytes for sequence, _ in running)
        assert cache.allocated_bytes <= cache.total_bytes <= 3 << 19
        for sequence, prompt in list(running):
            goal = goals.setdefault(id(sequence), prompt + 20)
            if sequence.length >= goal:
                cache.close(sequence)
                running.remove((sequence, prompt))
                finished += 1
        if not running and not waiting:
            break
    assert finished == 12
    assert cache.allocated_bytes == 0


@pytest.mark.parametrize("method", METHOD_TABLE)
def test_sinks_and_softcap_change_the_answer_as_they_do_uncompressed(method: str) -> None:
    """The first chunk is exact in every method: with a layer's extras it equals the uncompressed cache's answer."""
    shape = CacheGeometry(1, 4, 2, 32, torch.float32, torch.device("cpu"))
    random = torch.Generator().manual_seed(2)
    query, key, value = keys_and_values(shape, 40, random)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    for extras in (AttentionExtras(0.2, softcap=2.0), AttentionExtras(0.2, sinks=sinks), AttentionExtras(0.2, 9)):
        found = []
        for name in (method, "none"):
            cache = build_cache(shape, parse_method(name), 1 << 20)
            sequence = cache.open()
            assert cache.reserve(sequence, 40)
            plan = cache.plan([StepEntry(sequence, 40, 80)])
            found.append(cache.attend(0, plan, query, key, value, extras))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHOD_TABLE)
def test_fits_is_honest_at_the_edge(method: str) -> None:
    """The longest sequence that is said to fit really does, with the pool to itself."""
    shape = geometry(64)
    cache = build_cache(shape, parse_method(method), 1 << 20, chunk_tokens=512)
    longest = max((n for n in range(16, 6000, 16) if cache.fits(n - 1, 1)), default=0)
    assert longest
    assert fill(cache, shape, longest) > 0


@pytest.mark.parametrize(
    ("method", "head_dim"), [("leankv", 24), ("int4", 33), ("k4v2", 24), ("kivi-4", 48), ("gear-4", 272)]
)
def test_shapes_a_method_cannot_serve_are_refused(method: str, head_dim: int) -> None:
    shape = CacheGeometry(1, 2, 1, head_dim, torch.float32, torch.device("cpu"))
    with pytest.raises(UsageError):
        build_cache(shape, parse_method(method), 1 << 20)
