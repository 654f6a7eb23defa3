"""KIVI against loops over channels, tokens and groups in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvload.servers.kernels.attention import AttentionExtras


def rounded(numbers: np.ndarray, bits: int) -> np.ndarray:
    """One group after rounding: levels between its minimum and maximum, both kept in float16."""
    low = np.float64(np.float16(numbers.min()))
    step = np.float64(np.float16((numbers.max() - numbers.min()) / (2**bits - 1)))
    if step == 0:
        return np.full_like(numbers, low)
    return np.clip(np.round((numbers - low) / step), 0, 2**bits - 1) * step + low


class Reference:
    """One sequence in one layer: lists of what was stored, and the lengths of the packed parts."""

    bits = 4

    def __init__(self, _: Any, options: dict[str, Any], extras: AttentionExtras) -> None:
        self.group, self.residual = options["group"], options["residual"]
        self.extras = extras
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.packed_keys = self.packed_values = 0

    def step(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, _: int) -> np.ndarray:
        first = len(self.keys)
        self.keys += list(key)
        self.values += list(value)
        groups = query.shape[1] // key.shape[1]
        out = np.zeros_like(query)
        keys, values = np.stack(self.keys), np.stack(self.values)
        for t in range(len(query)):
            window = self.extras.sliding_window or 10**9
            seen = slice(max(0, first + t - window + 1), first + t + 1)
            for head in range(query.shape[1]):
                scores = keys[seen, head // groups] @ query[t, head] * self.extras.scaling
                weights = np.exp(scores - scores.max())
                out[t, head] = weights @ values[seen, head // groups] / weights.sum()
        self.pack()
        return out

    def pack(self) -> None:
        """Whole residuals of keys, channel by channel; values older than the residual, token by token."""
        length = len(self.keys)
        while length - self.packed_keys >= self.residual:
            for start in range(self.packed_keys, self.packed_keys + self.residual, self.group):
                block = np.stack(self.keys[start : start + self.group])
                for head in range(block.shape[1]):
                    for channel in range(block.shape[2]):
                        block[:, head, channel] = rounded(block[:, head, channel], self.bits)
                self.keys[start : start + self.group] = list(block)
            self.packed_keys += self.residual
        while length - self.packed_values > self.residual:
            token = self.values[self.packed_values].copy()
            size = min(self.group, token.shape[1])
            for head in range(token.shape[0]):
                for start in range(0, token.shape[1], size):
                    token[head, start : start + size] = rounded(token[head, start : start + size], self.bits)
            self.values[self.packed_values] = token
            self.packed_values += 1


class TwoBit(Reference):
    """The same with 2 bits."""

    bits = 2


TABLE = {
    "kivi-4:group=8,residual=16": Reference,
    "kivi-4:group=16,residual=16": Reference,
    "kivi-2:group=16,residual=48": TwoBit,
    "kivi-2": TwoBit,
}

MIXED = [
    [("a", 37, 37)],
    [("a", 1, 37), ("b", 16, 50)],
    [("b", 17, 50), ("a", 1, 37), ("c", 1, 1)],
    [("b", 17, 50), ("c", 1, 1), ("a", 1, 37)],
    [("c", 1, 1), ("b", 1, 50), ("a", 1, 37)],
    [("a", 0, 0), ("b", 1, 50), ("d", 130, 300)],
    [("d", 170, 300), ("b", 1, 50), ("c", 1, 1)],
    *[[("d", 1, 31), ("c", 1, 1), ("b", 1, 50)]] * 50,
]


@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize("method", TABLE)
def test_mixed_steps_agree_with_the_definition(method: str, window: int | None, driver: Callable[..., Any]) -> None:
    driver(method, TABLE[method], extras=AttentionExtras(0.25, sliding_window=window)).run(*MIXED)


@pytest.mark.parametrize("method", TABLE)
def test_blocks_smaller_than_a_sequence(method: str, driver: Callable[..., Any]) -> None:
    run = driver(method, TABLE[method], layers=1)
    run.cache.limit_scratch(2)
    run.run(*MIXED[:20])


def test_half_precision(driver: Callable[..., Any]) -> None:
    driver("kivi-4:group=8,residual=16", Reference, dtype=torch.bfloat16, tolerance=3e-2).run(*MIXED[:12])


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule_agrees(data: st.DataObject, driver: Callable[..., Any]) -> None:
    """Random chunking, decoding and preemption; the pool is empty again at the end."""
    method = data.draw(st.sampled_from(list(TABLE)))
    heads = data.draw(st.sampled_from([(1, 1), (3, 1), (4, 4), (6, 2)]))
    run = driver(
        method, TABLE[method], query_heads=heads[0], kv_heads=heads[1], layers=1, seed=data.draw(st.integers(0, 99))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        names = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
        run.step([(name, data.draw(st.integers(0 if name in run.sequences else 1, 40)), 40) for name in names])
    for name in list(run.sequences):
        run.step([(name, 0, 0)])
    assert run.cache.allocated_bytes == 0
    assert run.cache.account.free_pages == run.cache.pool.pages


@pytest.mark.parametrize("number", [0.0, 3.0, -7.5])
def test_constant_groups_come_back(number: float, driver: Callable[..., Any]) -> None:
    run = driver("kivi-2:group=8,residual=8", TwoBit, layers=1)
    run.draw = lambda *shape: torch.full(shape, number)
    run.run([("a", 20, 20)], *[[("a", 1, 20)]] * 10)


def test_what_stays_exact(driver: Callable[..., Any]) -> None:
    """The last R values, and the keys since the last multiple of R, cost full precision and nothing else does."""
    run = driver("kivi-4:group=8,residual=16", Reference, layers=1)
    run.run([("a", 40, 40)], *[[("a", 1, 40)]] * 3)
    reference = run.references["a"][0]
    assert (reference.packed_keys, reference.packed_values) == (32, 27)
    counts = [int(table.counts[run.sequences["a"].row]) for table in run.cache.account.tables]
    per_page = run.cache.account.window_page_tokens
    assert counts == [32 // 8, -(-27 // 8), -(-11 // per_page), -(-16 // per_page)]
