"""GEAR against its definition, one vector and one head at a time in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kvload.servers.kernels.attention import AttentionExtras


def rounded(numbers: np.ndarray, bits: int) -> np.ndarray:
    """One group between its minimum and maximum, both kept in float16."""
    low = np.float64(np.float16(numbers.min()))
    step = np.float64(np.float16((numbers.max() - numbers.min()) / (2**bits - 1)))
    if step == 0:
        return np.full_like(numbers, low)
    return np.clip(np.round((numbers - low) / step), 0, 2**bits - 1) * step + low


def compressed(
    block: np.ndarray, bits: int, group: int, share: float
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Rows are the vectors, channels of keys or tokens of values: rounded numbers, errors, places of outliers."""
    filled, exact = block.copy(), []
    count = math.ceil(share / 2 * block.shape[1])
    for row in range(len(block)):
        order = np.argsort(block[row])
        places = [*order[:count], *order[len(order) - count :]]
        exact.append(places)
        filled[row, places] = block[row].mean()
    coarse = filled.copy()
    size = min(group, block.shape[1])
    for row in range(len(block)):
        for start in range(0, block.shape[1], size):
            coarse[row, start : start + size] = rounded(filled[row, start : start + size], bits)
    return coarse, filled - coarse, exact


def low_rank(error: np.ndarray, rank: int) -> np.ndarray:
    """Power iteration on ``(tokens, head_dim)``, orthonormal in the last of three passes."""
    right = np.random.default_rng(0).standard_normal((error.shape[1], rank))
    for last in (False, False, True):
        left = error @ (np.linalg.qr(right)[0] if last else right)
        left = np.linalg.qr(left)[0] if last else left
        right = error.T @ left
    return np.asarray(left.astype(np.float16).astype(np.float64) @ right.astype(np.float16).astype(np.float64).T)


class Reference:
    """One sequence in one layer."""

    bits = 4

    def __init__(self, _: Any, options: dict[str, Any], extras: AttentionExtras) -> None:
        self.options, self.extras = options, extras
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.packed = 0

    def step(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, prompt: int) -> np.ndarray:
        first = len(self.keys)
        self.keys += list(key)
        self.values += list(value)
        groups = query.shape[1] // key.shape[1]
        out = np.zeros_like(query)
        keys, values = np.stack(self.keys), np.stack(self.values)
        for t in range(len(query)):
            for head in range(query.shape[1]):
                scores = keys[: first + t + 1, head // groups] @ query[t, head] * self.extras.scaling
                weights = np.exp(scores - scores.max())
                out[t, head] = weights @ values[: first + t + 1, head // groups] / weights.sum()
        self.pack(self.options["rank"] if first < prompt else self.options["decode_rank"])
        return out

    def pack(self, rank: int) -> None:
        block = self.options["block"]
        while len(self.keys) - self.packed >= block:
            for tokens, transposed in ((self.keys, True), (self.values, False)):
                cube = np.stack(tokens[self.packed : self.packed + block])
                for head in range(cube.shape[1]):
                    matrix = cube[:, head]
                    vectors = matrix.T if transposed else matrix
                    coarse, error, exact = compressed(
                        vectors, self.bits, self.options["group"], self.options["outliers"]
                    )
                    repaired = coarse + (low_rank(error.T, rank).T if transposed else low_rank(error, rank))
                    for row, places in enumerate(exact):
                        repaired[row, places] = vectors[row, places].astype(np.float16)
                    cube[:, head] = repaired.T if transposed else repaired
                tokens[self.packed : self.packed + block] = list(cube)
            self.packed += block


class TwoBit(Reference):
    """The same with 2 bits."""

    bits = 2


TABLE = {
    "gear-4:group=16,block=16": Reference,
    "gear-2:group=8,block=32,outliers=0.2": TwoBit,
    "gear-2": TwoBit,
    "gear-4:outliers=0": Reference,
}

MIXED = [
    [("a", 37, 37)],
    [("a", 1, 37), ("b", 16, 50)],
    [("b", 17, 50), ("a", 1, 37), ("c", 1, 1)],
    [("b", 17, 50), ("c", 1, 1), ("a", 1, 37)],
    [("a", 0, 0), ("b", 1, 50), ("d", 130, 300)],
    [("d", 170, 300), ("b", 1, 50), ("c", 1, 1)],
    *[[("d", 1, 300), ("c", 1, 1), ("b", 1, 50)]] * 24,
]


@pytest.mark.parametrize("method", TABLE)
def test_mixed_steps_agree_with_the_definition(method: str, driver: Callable[..., Any]) -> None:
    # Factors are kept in float16: three digits.
    driver(method, TABLE[method], tolerance=3e-3).run(*MIXED)


def test_blocks_smaller_than_a_sequence(driver: Callable[..., Any]) -> None:
    run = driver("gear-4:group=16,block=16", Reference, layers=1, tolerance=3e-3)
    run.cache.limit_scratch(2)
    run.run(*MIXED[:20])


@pytest.mark.parametrize("number", [0.0, 3.0, -7.5])
def test_constant_blocks_come_back(number: float, driver: Callable[..., Any]) -> None:
    run = driver("gear-2:group=8,block=8", TwoBit, layers=1)
    run.draw = lambda *shape: torch.full(shape, number)
    run.run([("a", 20, 20)], *[[("a", 1, 20)]] * 10)


def test_both_parts_repair_the_error(driver: Callable[..., Any]) -> None:
    """Outliers and factors each bring the restored keys closer to the true ones."""
    x = torch.randn(1, 64, 2, 16, generator=torch.Generator().manual_seed(3)) ** 3
    errors = {}
    for name in ("gear-2", "gear-2:outliers=0", "gear-2:rank=1"):
        method = driver(name, TwoBit, layers=1).cache.kernels.codec
        errors[name] = float((method.decode_keys(method.encode_keys(x, prompt=True)) - x).square().mean())
    assert errors["gear-2"] < errors["gear-2:outliers=0"]
    assert errors["gear-2"] < errors["gear-2:rank=1"]
