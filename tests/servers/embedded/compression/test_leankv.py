"""LeanKV against a list of tokens for every head, in float64, and its page against the published shape."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvload.servers.embedded.compression.leankv import LeanKV, Precision
from kvload.servers.kernels.attention import AttentionExtras

HIGH, LOW = (8, 4, 1, 2), (4, 2, 2, 4)
"""Bits of keys and values, groups of keys and values."""


def rounded(vector: np.ndarray, bits: int, groups: int) -> np.ndarray:
    """A head's vector in groups of neighbouring channels, between minimum and maximum in float16."""
    out = np.zeros_like(vector)
    size = len(vector) // groups
    for start in range(0, len(vector), size):
        part = vector[start : start + size]
        low = np.float64(np.float16(part.min()))
        step = np.float64(np.float16((part.max() - part.min()) / (2**bits - 1))) or 1.0
        out[start : start + size] = np.clip(np.round((part - low) / step), 0, 2**bits - 1) * step + low
    return out


class Token:
    """One token of one head."""

    def __init__(self, position: int, key: np.ndarray, value: np.ndarray) -> None:
        self.position, self.key, self.value = position, key, value
        self.received, self.judges = 0.0, 0

    def store(self, level: tuple[int, int, int, int]) -> None:
        self.key, self.value = rounded(self.key, level[0], level[2]), rounded(self.value, level[1], level[3])

    @property
    def significance(self) -> float:
        return self.received / self.judges if self.judges else float("inf")


class Reference:
    """One sequence in one layer: for every head a list of tokens at high and one at low precision."""

    def __init__(self, geometry: Any, options: dict[str, Any], extras: AttentionExtras) -> None:
        self.options, self.extras = options, extras
        self.length = 0
        self.high: list[list[Token]] = [[] for _ in range(geometry.kv_heads)]
        self.low: list[list[Token]] = [[] for _ in range(geometry.kv_heads)]

    def step(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, prompt: int) -> np.ndarray:
        groups = query.shape[1] // key.shape[1]
        out = np.zeros_like(query)
        reading = self.length < prompt
        for head in range(key.shape[1]):
            new = [Token(self.length + t, key[t, head], value[t, head]) for t in range(len(key))]
            if not reading:
                self.decide(head, new[0])
            tokens = self.high[head] + self.low[head] + (new if reading else [])
            for t in range(len(query)):
                now = self.length + t
                window = self.extras.sliding_window
                judging = not reading or prompt - self.options["buffer"] <= now
                visible = [x for x in tokens if x.position <= now]
                seen = [x for x in visible if window is None or x.position > now - window]
                weights = np.zeros((groups, len(seen)))
                for member in range(groups):
                    keys = np.stack([x.key for x in seen])
                    scores = keys @ query[t, head * groups + member] * self.extras.scaling
                    exponents = np.exp(scores - scores.max())
                    weights[member] = exponents / exponents.sum()
                    values = np.stack([x.value for x in seen])
                    out[t, head * groups + member] = weights[member] @ values
                if judging:
                    for x in visible:
                        x.judges += 1
                    for index, x in enumerate(seen):
                        x.received += weights[:, index].max()
            if reading:
                for x in new:
                    x.store(HIGH)
                self.high[head] += new
        self.length += len(key)
        if reading and self.length >= prompt:
            self.sort()
        return out

    def sort(self) -> None:
        """At the end of the prompt."""
        for head, tokens in enumerate(self.high):
            self.high[head] = []
            for x in tokens:
                if (
                    x.position >= self.length - self.options["buffer"]
                    or x.significance >= self.options["high"] / self.length
                ):
                    self.high[head].append(x)
                elif x.significance >= self.options["low"] / self.length:
                    x.store(LOW)
                    self.low[head].append(x)

    def decide(self, head: int, new: Token) -> None:
        """Before a generated token: at most one of forgetting, pushing down, appending."""
        old = self.length - self.options["buffer"]
        high = min((x for x in self.high[head] if x.position <= old), key=lambda x: x.significance, default=None)
        low = min((x for x in self.low[head] if x.position <= old), key=lambda x: x.significance, default=None)
        forget, lower = self.options["low"] / self.length, self.options["high"] / self.length
        low_significance = low.significance if low else float("inf")
        new.store(HIGH)
        if high and high.significance < forget and high.significance < low_significance:
            self.high[head].remove(high)
        elif high and high.significance < lower:
            self.high[head].remove(high)
            if low and low_significance < forget:
                self.low[head].remove(low)
            high.store(LOW)
            self.low[head].append(high)
        self.high[head].append(new)


TABLE = {
    "leankv:low=0.4,high=1.0,buffer=8": Reference,
    "leankv:low=0.0,high=3.0,buffer=4": Reference,
    "leankv:low=0.5,high=0.5,buffer=16": Reference,
    "leankv": Reference,
}

MIXED = [
    [("a", 37, 37)],
    [("a", 1, 37), ("b", 16, 50)],
    [("b", 17, 50), ("a", 1, 37), ("c", 1, 1)],
    [("b", 17, 50), ("c", 1, 1), ("a", 1, 37)],
    [("c", 1, 1), ("b", 1, 50), ("a", 1, 37)],
    [("a", 0, 0), ("b", 1, 50), ("d", 99, 100)],
    [("d", 1, 100), ("b", 1, 50), ("c", 1, 1)],
    *[[("d", 1, 100), ("c", 1, 1), ("b", 1, 50)]] * 30,
]


def held_positions(run: Any, name: str, layer: int) -> list[tuple[list[int], list[int]]]:
    """Positions at high and at low precision in each head, read from the pages."""
    cache, row = run.cache, run.sequences[name].row
    tables = cache.account.tables
    found = []
    for head in range(cache.geometry.kv_heads):
        both = []
        for level in (cache.kernels.high_level, cache.kernels.low_level):
            pages = torch.from_numpy(tables.ends(torch.tensor([row]).numpy(), level.end, 0)[0, layer, head])
            meta = level.layout.view(cache.pool.storage[0], "meta")[pages].flatten(0, 1)
            both.append(sorted(int(p) for p in meta[: int(tables.tokens[row, layer, head, level.end]), 1]))
        found.append((both[0], both[1]))
    return found


@pytest.mark.parametrize("method", TABLE)
def test_outputs_and_levels_agree(method: str, driver: Callable[..., Any]) -> None:
    # A restored number often lies halfway between two of float16, where either is right: three digits.
    run = driver(method, TABLE[method], spread=1.5, tolerance=5e-3)
    for step in MIXED:
        run.step(step)
        for name, layers in run.references.items():
            for layer, reference in enumerate(layers):
                expected = [
                    (sorted(x.position for x in high), sorted(x.position for x in low))
                    for high, low in zip(reference.high, reference.low, strict=True)
                ]
                assert held_positions(run, name, layer) == expected, (step, name, layer)


@pytest.mark.parametrize("method", list(TABLE)[:2])
def test_blocks_smaller_than_a_sequence(method: str, driver: Callable[..., Any]) -> None:
    run = driver(method, TABLE[method], layers=1, extras=AttentionExtras(0.25, sliding_window=40), tolerance=5e-3)
    run.cache.limit_scratch(2)
    run.run(*MIXED[:20])


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule_agrees(data: st.DataObject, driver: Callable[..., Any]) -> None:
    """Prompts in random chunks, decoding, preemption; no page is lost or held twice."""
    method = data.draw(st.sampled_from(list(TABLE)))
    heads = data.draw(st.sampled_from([(1, 1), (3, 1), (4, 4), (6, 2)]))
    seed = data.draw(st.integers(0, 99))
    run = driver(method, TABLE[method], query_heads=heads[0], kv_heads=heads[1], layers=1, seed=seed, tolerance=5e-3)
    prompts: dict[str, int] = {}
    for _ in range(data.draw(st.integers(1, 10))):
        step = []
        for name in data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
            length = run.sequences[name].length if name in run.sequences else 0
            if not length:
                prompts[name] = data.draw(st.integers(1, 80))
            if length and data.draw(st.integers(0, 9)) == 0:
                step.append((name, 0, 0))
                continue
            left = prompts[name] - length
            step.append((name, data.draw(st.integers(1, left)) if left > 0 else 1, prompts[name]))
        run.step(step)
        held = sum(sequence.pages for sequence in run.sequences.values())
        assert held * run.cache.pool.page_bytes == run.cache.allocated_bytes
    for name in list(run.sequences):
        run.step([(name, 0, 0)])
    assert run.cache.allocated_bytes == 0
    assert sorted(run.cache.account.free_list.take(run.cache.account.free_pages).tolist()) == list(
        range(run.cache.pool.pages)
    )


@pytest.mark.parametrize(
    ("precision", "tokens"),
    [
        (Precision(8, 8), 24),
        (Precision(8, 4), 32),
        (Precision(8, 4, 1, 2), 32),
        (Precision(8, 2), 37),
        (Precision(4, 4), 46),
        (Precision(4, 2, 2, 4), 52),
        (Precision(4, 2), 60),
        (Precision(4, 1), 69),
    ],
)
def test_tokens_of_the_published_page(precision: Precision, tokens: int) -> None:
    """Head size 128: 6784 bytes, as the paper's code has it."""
    assert LeanKV().page_bytes(128) == 6784
    assert precision.page_tokens(6784, 128) == tokens


def test_forgetting_frees_memory(driver: Callable[..., Any]) -> None:
    """After the same prompt, stricter thresholds leave more pages to others."""
    free = {}
    for method in ("leankv:low=0,high=0", "leankv:low=0,high=1000,buffer=8", "leankv:low=1000,high=1000,buffer=8"):
        run = driver(method, Reference, layers=1, head_dim=64, tolerance=5e-3)
        run.step([("a", 320, 320)])
        free[method] = run.cache.account.free_pages
    everything, halved, newest = free.values()
    assert everything < halved < newest
