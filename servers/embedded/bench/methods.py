"""Decode speed of every method beside the uncompressed cache's, in one run.

``python -m kvload.servers.embedded.bench.methods [--streams 16] [--tokens 1024] [--device cpu]``

It times the cache alone: planning, storing, attention and eviction in all layers for one token of every stream. The
model's own arithmetic is the same for all methods and brings their ratios closer to 1 in an engine. Methods take turns,
and a method's figure is its fastest round, so that other work on the machine weighs on none of them in particular.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import CacheGeometry, KVCache, StepEntry
from kvload.servers.kernels.attention import AttentionExtras

CHUNK = 512


@dataclass(frozen=True)
class Speed:
    """One method's figures.

    Attributes:
        method: with its options.
        tokens_per_s: generated tokens of all streams a second, in the cache alone.
        ratio: that, relative to ``none`` in the same run.
        allocated_bytes: of all streams together.
    """

    method: str
    tokens_per_s: float
    ratio: float
    allocated_bytes: int


class Streams:
    """Sequences that are filled once and then decode in step.

    Args:
        text: the method.
        geometry: shape of the model's keys and values.
        count: sequences.
        tokens: length of each prompt.
    """

    def __init__(self, text: str, geometry: CacheGeometry, count: int, tokens: int) -> None:
        self.geometry = geometry
        self.extras = AttentionExtras(geometry.head_dim**-0.5)
        size = geometry.layers * geometry.kv_heads * 2 * geometry.head_dim * geometry.dtype.itemsize
        self.cache: KVCache = build_cache(
            geometry, parse_method(text), int(1.5 * size * (count + 1) * (tokens + 64)), chunk_tokens=CHUNK
        )
        self.sequences: list[Any] = [self.cache.open() for _ in range(count)]
        self.prompt = tokens
        self.seconds: list[float] = []
        random = torch.Generator().manual_seed(0)
        for sequence in self.sequences:
            while sequence.length < tokens:
                self._step([sequence], min(CHUNK, tokens - sequence.length), random)
        self._random = random

    def _step(self, sequences: list[Any], new: int, random: torch.Generator) -> None:
        shapes = (self.geometry.query_heads, self.geometry.kv_heads, self.geometry.kv_heads)
        query, key, value = (
            torch.randn(new * len(sequences), heads, self.geometry.head_dim, generator=random).to(
                self.geometry.device, self.geometry.dtype
            )
            for heads in shapes
        )
        start = self._now()
        for sequence in sequences:
            if not self.cache.reserve(sequence, new):
                raise MemoryError("the benchmark's pool is too small")
        plan = self.cache.plan([StepEntry(sequence, new, self.prompt) for sequence in sequences])
        for layer in range(self.geometry.layers):
            self.cache.attend(layer, plan, query, key, value, self.extras)
        self.cache.commit(plan)
        if new == 1:
            self.seconds.append(self._now() - start)

    def _now(self) -> float:
        if self.geometry.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def decode(self, steps: int) -> None:
        """Generate one token of every stream, ``steps`` times."""
        for _ in range(steps):
            self._step(self.sequences, 1, self._random)


def run(methods: Sequence[str], geometry: CacheGeometry, streams: int, tokens: int, rounds: int) -> list[Speed]:
    """Fill, warm up, and let the methods take turns; ``none`` is always among them."""
    names = ["none", *(name for name in methods if name != "none")]
    running = {name: Streams(name, geometry, streams, tokens) for name in names}
    for _ in range(rounds):
        for one in running.values():
            one.decode(4)
    best = {name: min(one.seconds) for name, one in running.items()}
    return [
        Speed(name, streams / best[name], best["none"] / best[name], running[name].cache.allocated_bytes)
        for name in names
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print tokens per second and the ratio to ``none`` of each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5, help="of 4 steps each")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--query-heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    geometry = CacheGeometry(
        given.layers,
        given.query_heads,
        given.kv_heads,
        given.head_dim,
        getattr(torch, given.dtype),
        torch.device(given.device),
    )
    speeds = run(given.methods, geometry, given.streams, given.tokens, given.rounds)
    if given.json:
        json.dump([asdict(speed) for speed in speeds], sys.stdout, indent=2)
        return
    write = sys.stdout.write
    write(f"{given.streams} streams at {given.tokens} tokens, {given.layers} layers, {given.device} {given.dtype}\n")
    write(f"{'method':<24}{'tokens/s':>12}{'ratio':>8}{'MiB':>9}\n")
    for speed in speeds:
        write(
            f"{speed.method:<24}{speed.tokens_per_s:>12.0f}{speed.ratio:>8.2f}{speed.allocated_bytes / 2**20:>9.1f}\n"
        )


if __name__ == "__main__":
    main()
