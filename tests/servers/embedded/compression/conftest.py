"""Drives a cache and a plain reference through the same steps and compares every output.

A reference is one sequence's memory in one layer: it is written from the method's definition with loops over tokens and
heads in float64, and shares no code with the caches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.kernels.attention import AttentionExtras

Step = list[tuple[str, int, int]]
"""What one step does: (sequence, new tokens, prompt tokens) each; 0 new tokens closes the sequence."""


def softmax_row(scores: np.ndarray, sink: float | None) -> np.ndarray:
    """Softmax of one query's scores, with an optional logit that takes weight and gives no value."""
    everything = scores if sink is None else np.append(scores, sink)
    weights = np.exp(everything - everything.max())
    weights /= weights.sum()
    return np.asarray(weights if sink is None else weights[:-1])


def attend_one(
    query: np.ndarray,
    keys: list[np.ndarray],
    values: list[np.ndarray],
    scaling: float,
    softcap: float | None = None,
    sink: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One query head over a list of keys: the output and the weights."""
    scores = np.array([float(query @ key) * scaling for key in keys])
    if softcap is not None:
        scores = np.tanh(scores / softcap) * softcap
    weights = softmax_row(scores, sink)
    out = np.zeros_like(query)
    for weight, value in zip(weights, values, strict=True):
        out += weight * value
    return out, weights


@dataclass
class Driver:
    """A cache under test, the references of its open sequences, and random keys, values and queries."""

    method: str
    reference: Callable[..., Any]
    layers: int = 2
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    dtype: torch.dtype = torch.float32
    total_bytes: int = 4 << 20
    extras: AttentionExtras | None = None
    tolerance: float = 2e-4  # of every number; in half precision, of the root mean square
    seed: int = 0
    spread: float = 1.0
    chunk_tokens: int = 512
    sequences: dict[str, Any] = field(default_factory=dict)
    references: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.geometry = CacheGeometry(
            self.layers, self.query_heads, self.kv_heads, self.head_dim, self.dtype, torch.device("cpu")
        )
        self.spec = parse_method(self.method)
        self.cache: Any = build_cache(self.geometry, self.spec, self.total_bytes, chunk_tokens=self.chunk_tokens)
        self.random = torch.Generator().manual_seed(self.seed)
        if self.extras is None:
            self.extras = AttentionExtras(1 / math.sqrt(self.head_dim))

    def draw(self, *shape: int) -> torch.Tensor:
        """Numbers whose channels differ in size, as those of real keys do."""
        plain = torch.randn(*shape, generator=self.random) * self.spread
        return (plain * (1 + torch.arange(shape[-1]) % 5)).mul_(0.5).to(self.dtype)

    def run(self, *steps: Step) -> None:
        """Carry out the steps and compare all outputs."""
        for step in steps:
            self.step(step)

    def step(self, step: Step) -> None:
        """One engine step."""
        entries = []
        for name, new, prompt in step:
            if new == 0:
                self.cache.close(self.sequences.pop(name))
                del self.references[name]
                continue
            if name not in self.sequences:
                self.sequences[name] = self.cache.open()
                self.references[name] = [
                    self.reference(self.geometry, dict(self.spec.options), self.extras) for _ in range(self.layers)
                ]
            assert self.cache.reserve(self.sequences[name], new)
            entries.append((name, StepEntry(self.sequences[name], new, prompt)))
        if not entries:
            return
        plan = self.cache.plan([entry for _, entry in entries])
        total = sum(entry.new_tokens for _, entry in entries)
        for layer in range(self.layers):
            query = self.draw(total, self.query_heads, self.head_dim)
            key, value = (self.draw(total, self.kv_heads, self.head_dim) for _ in range(2))
            out = self.cache.attend(layer, plan, query, key, value, self.extras)
            assert out.shape == query.shape
            assert out.dtype == query.dtype
            start = 0
            for name, entry in entries:
                part = slice(start, start + entry.new_tokens)
                start += entry.new_tokens
                expected = self.references[name][layer].step(
                    *(x[part].double().numpy() for x in (query, key, value)), entry.prompt_tokens
                )
                got = out[part].double().numpy()
                if self.dtype.itemsize == 2:
                    error = np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))
                    assert error < self.tolerance, f"{name} layer {layer}: relative error {error}"
                    continue
                np.testing.assert_allclose(
                    got, expected, rtol=self.tolerance, atol=self.tolerance, err_msg=f"{name} layer {layer}"
                )
        self.cache.commit(plan)


@pytest.fixture
def driver() -> Callable[..., Driver]:
    """Makes a driver: ``driver(method, reference, ...)``."""
    return Driver


@pytest.fixture
def one_query() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Plain attention of one query head: see :func:`attend_one`."""
    return attend_one
