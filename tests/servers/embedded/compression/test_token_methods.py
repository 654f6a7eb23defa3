"""Methods that store every token on its own, against loops over tokens and heads in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvload.servers.kernels.attention import AttentionExtras


class Reference:
    """One sequence in one layer: everything that was ever stored, and who may see it."""

    def __init__(self, geometry: Any, options: dict[str, Any], extras: AttentionExtras) -> None:
        self.geometry, self.options, self.extras = geometry, options, extras
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def stored(self, vector: np.ndarray, _value: bool = False) -> np.ndarray:
        """A head's key, or its value, after storing."""
        return vector

    def sees(self, query: int, key: int) -> bool:
        """By positions."""
        window = self.extras.sliding_window
        return key <= query and (window is None or key > query - window)

    def step(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, _: int) -> np.ndarray:
        first = len(self.keys)
        decoding = len(query) == 1 and first > 0
        heads, groups = key.shape[1], query.shape[1] // key.shape[1]
        lossy = [
            [np.stack([self.stored(x[t, h], x is value) for h in range(heads)]) for t in range(len(x))]
            for x in (key, value)
        ]
        own = lossy if decoding else (list(key), list(value))
        keys, values = np.stack(self.keys + list(own[0])), np.stack(self.values + list(own[1]))
        out = np.zeros_like(query)
        for t in range(len(query)):
            seen = [p for p in range(len(keys)) if self.sees(first + t, p)]
            for head in range(query.shape[1]):
                sink = None if self.extras.sinks is None else float(self.extras.sinks[head])
                scores = keys[seen, head // groups] @ query[t, head] * self.extras.scaling
                if self.extras.softcap is not None:
                    scores = np.tanh(scores / self.extras.softcap) * self.extras.softcap
                weights = np.exp(scores - scores.max())
                rest = 0.0 if sink is None else np.exp(sink - scores.max())
                weights /= weights.sum() + rest
                out[t, head] = weights @ values[seen, head // groups]
        self.keys += lossy[0]
        self.values += lossy[1]
        return out


class Int8Reference(Reference):
    """Rounds as the definition says."""

    def stored(self, vector: np.ndarray, _value: bool = False) -> np.ndarray:
        largest = max(abs(float(x)) for x in vector)
        scale = np.float64(np.float32(largest / 127)) if largest else 1.0
        return np.array([round(float(x) / scale) * scale for x in vector])


class Fp8Reference(Reference):
    """Rounds to the nearest of all numbers of the format, listed from its definition."""

    numbers = np.array(
        sorted(
            {m * 2.0**-9 for m in range(8)}
            | {(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)}
        )
    )

    def stored(self, vector: np.ndarray, _value: bool = False) -> np.ndarray:
        largest = max(abs(float(x)) for x in vector)
        scale = np.float64(np.float32(largest / 448)) if largest else 1.0
        nearest = [self.numbers[np.abs(self.numbers - abs(float(x)) / scale).argmin()] for x in vector]
        return np.asarray(np.sign(vector) * np.array(nearest) * scale)


class Int4Reference(Reference):
    """Rotates by a matrix written element by element, rounds, and rotates back."""

    def stored(self, vector: np.ndarray, _value: bool = False) -> np.ndarray:
        size = len(vector)
        rotation: np.ndarray = np.eye(size)
        if self.options["rotate"]:
            signs = np.random.default_rng(0).integers(0, 2, size) * 2.0 - 1
            hadamard = [[(-1) ** (i & j).bit_count() / size**0.5 for j in range(size)] for i in range(size)]
            rotation = signs[:, None] * np.array(hadamard)
        turned = vector @ rotation
        low = np.float64(np.float16(turned.min()))
        step = np.float64(np.float16((turned.max() - turned.min()) / 15)) or 1.0
        codes = np.clip(np.round((turned - low) / step), 0, 15)
        return np.asarray((codes * step + low) @ rotation.T)


class LeanReference(Reference):
    """Keys and values in groups of channels, each rounded between its minimum and maximum; (bits, groups) of both."""

    key, value = (8, 1), (4, 2)

    def stored(self, vector: np.ndarray, _value: bool = False) -> np.ndarray:
        bits, groups = self.value if _value else self.key
        found = []
        for part in np.split(vector, groups):
            low = np.float64(np.float16(part.min()))
            # In float32, as stored: where a step lies between two float16 numbers, more digits choose the other one.
            spread = np.float32(part.max()) - np.float32(part.min())
            step = np.float64(np.float16(spread / np.float32(2**bits - 1))) or 1.0
            found.append(np.clip(np.round((part - low) / step), 0, 2**bits - 1) * step + low)
        return np.concatenate(found)


class LeanLowReference(LeanReference):
    """The low precision."""

    key, value = (4, 2), (2, 4)


class StreamingReference(Reference):
    """Sinks and a window."""

    def sees(self, query: int, key: int) -> bool:
        window = self.options["recent"]
        return super().sees(query, key) and (key < self.options["start"] or key > query - window)


TABLE = {
    "none": Reference,
    "int8": Int8Reference,
    "fp8-e4m3": Fp8Reference,
    "int4": Int4Reference,
    "int4:rotate=0": Int4Reference,
    "k8v4": LeanReference,
    "k4v2": LeanLowReference,
    "streamingllm:start=4,recent=20": StreamingReference,
    "streamingllm:start=0,recent=1": StreamingReference,
    "streamingllm:start=17,recent=33": StreamingReference,
}

EXTRAS = {
    "plain": AttentionExtras(0.25),
    "window": AttentionExtras(0.25, sliding_window=19),
    "softcap": AttentionExtras(0.25, softcap=3.0),
    "sinks": AttentionExtras(0.25, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}

MIXED = [
    [("a", 37, 37)],
    [("a", 1, 37), ("b", 16, 50)],
    [("b", 17, 50), ("a", 1, 37), ("c", 1, 1)],
    [("b", 17, 50), ("c", 1, 1), ("a", 1, 37)],
    [("c", 1, 1), ("b", 1, 50), ("a", 1, 37)],
    [("a", 0, 0), ("b", 1, 50), ("d", 30, 31)],
    [("d", 1, 31), ("b", 1, 50), ("c", 1, 1)],
    *[[("d", 1, 31), ("c", 1, 1), ("b", 1, 50)]] * 16,
]


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("method", TABLE)
def test_mixed_steps_agree_with_the_definition(method: str, extras: str, driver: Callable[..., Any]) -> None:
    driver(method, TABLE[method], extras=EXTRAS[extras]).run(*MIXED)


@pytest.mark.parametrize("method", TABLE)
def test_blocks_smaller_than_a_sequence(method: str, driver: Callable[..., Any]) -> None:
    """With room for two pages of scratch every read takes several blocks."""
    run = driver(method, TABLE[method], extras=EXTRAS["plain"])
    run.cache.limit_scratch(2)
    run.run(*MIXED)


@pytest.mark.parametrize("method", TABLE)
def test_half_precision(method: str, driver: Callable[..., Any]) -> None:
    driver(method, TABLE[method], dtype=torch.bfloat16, tolerance=3e-2).run(*MIXED[:8])


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_streamingllm_frees_what_nobody_will_see(driver: Callable[..., Any]) -> None:
    run = driver("streamingllm:start=4,recent=32", StreamingReference, layers=1)
    run.run([("a", 40, 200)], [("a", 60, 200)], [("a", 100, 200)], *[[("a", 1, 200)]] * 40)
    sequence = run.sequences["a"]
    assert sequence.length == 240
    # The sinks' page, and the window of 32 in at most three pages.
    assert sequence.pages <= 4
    assert sequence.allocated_bytes == run.cache.allocated_bytes == sequence.pages * 16 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("method", ["int8", "int4", "int4:rotate=0", "fp8-e4m3", "k8v4", "k4v2"])
@pytest.mark.parametrize("number", [0.0, 3.0, -7.5])
def test_constant_vectors_come_back(method: str, number: float, driver: Callable[..., Any]) -> None:
    """Maximum equal to minimum must not divide by zero."""
    run = driver(method, TABLE[method], layers=1)
    run.draw = lambda *shape: torch.full(shape, number)
    run.run([("a", 5, 5)], [("a", 1, 5)], [("a", 1, 5)])


def test_rotation_helps_where_one_channel_is_large(driver: Callable[..., Any]) -> None:
    """What the rotation is for: its error on keys with a dominant channel is the smaller one."""
    errors = {}
    for method in ("int4", "int4:rotate=0"):
        run = driver(method, TABLE[method], layers=1)
        x = torch.randn(64, 2, 16, generator=torch.Generator().manual_seed(1))
        x[..., 3] *= 20
        codec, rotation = run.cache.kernels.codec, run.cache.kernels.rotation
        turned = x if rotation is None else x @ rotation
        back = codec.decode(tuple(part[None] for part in codec.encode(turned)), torch.float32)[0]
        restored = back if rotation is None else back @ rotation.T
        others = [channel for channel in range(16) if channel != 3]
        errors[method] = float((restored - x)[..., others].square().mean())
    assert errors["int4"] < errors["int4:rotate=0"]
