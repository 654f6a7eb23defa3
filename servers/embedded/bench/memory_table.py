"""Print what every method claims to hold and what the allocator gives out.

``python -m kvload.servers.embedded.bench.memory_table [--head-dim 128] [--json]``
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from kvload.servers.catalogue.asked import MethodSpec, parse_method
from kvload.servers.catalogue.claims import Stored
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import CacheGeometry, KVCache, StepEntry
from kvload.servers.kernels.attention import AttentionExtras

LENGTHS = (512, 2048, 8192)
CHUNK = 512
POOL_BYTES = 64 << 20


@dataclass(frozen=True)
class Row:
    """One method at one length.

    Attributes:
        method: with its options.
        tokens: length of the sequence.
        claimed_bytes: per token, layer and KV head, by the method's definition.
        held_bytes: the same, as the allocator gave it out.
        page_bytes: bytes of a page per KV head; what is held beyond the claim are unused ends of pages.
    """

    method: str
    tokens: int
    claimed_bytes: float
    held_bytes: float
    page_bytes: float


def geometry(head_dim: int, kv_heads: int = 2) -> CacheGeometry:
    """One layer in half precision, with two query heads to a KV head."""
    return CacheGeometry(1, 2 * kv_heads, kv_heads, head_dim, torch.float16, torch.device("cpu"))


def fill(cache: KVCache, shape: CacheGeometry, tokens: int, seed: int = 0) -> int:
    """Put one sequence of random keys and values through the cache; returns the bytes it holds.

    Args:
        shape: of the cache.
        tokens: length; the last one is generated, the others are the prompt.
        seed: of the random numbers.
    """
    random = torch.Generator().manual_seed(seed)
    sequence = cache.open()
    extras = AttentionExtras(shape.head_dim**-0.5)
    prompt = tokens - 1
    while sequence.length < tokens:
        new = min(CHUNK, prompt - sequence.length) or 1
        if not cache.reserve(sequence, new):
            cache.close(sequence)
            return 0
        plan = cache.plan([StepEntry(sequence, new, prompt)])
        query, key, value = (
            torch.randn(new, heads, shape.head_dim, generator=random).to(shape.dtype)
            for heads in (shape.query_heads, shape.kv_heads, shape.kv_heads)
        )
        for layer in range(shape.layers):
            cache.attend(layer, plan, query, key, value, extras)
        cache.commit(plan)
    return int(sequence.allocated_bytes)


def measure(spec: MethodSpec, head_dim: int, tokens: int) -> Row:
    """Fill a cache with one sequence and compare with the claim."""
    shape = geometry(head_dim)
    cache = build_cache(shape, spec, POOL_BYTES, chunk_tokens=CHUNK)
    held = fill(cache, shape, tokens)
    claimed = METHODS[spec.name].claim(Stored(tokens, head_dim, shape.dtype.itemsize, spec.options))
    return Row(str(spec), tokens, claimed, held / tokens / shape.kv_heads, cache.page_bytes / cache.page_heads)


def sequences_that_fit(spec: MethodSpec, head_dim: int, tokens: int, pool_bytes: int) -> int:
    """How many sequences of this length a pool holds at once."""
    shape = geometry(head_dim)
    cache = build_cache(shape, spec, pool_bytes, chunk_tokens=CHUNK)
    count = 0
    while fill(cache, shape, tokens, seed=count):
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table for the methods with their defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="methods with options; all by default")
    parser.add_argument("--pool-mib", type=int, default=8, help="pool for the count of 1024-token sequences")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    given = parser.parse_args(arguments)
    specs = [parse_method(text) for text in given.methods]
    rows = [measure(spec, given.head_dim, tokens) for spec in specs for tokens in LENGTHS]
    fits = {str(spec): sequences_that_fit(spec, given.head_dim, 1024, given.pool_mib << 20) for spec in specs}
    if given.json:
        json.dump({"rows": [asdict(row) for row in rows], "sequences_of_1024": fits}, sys.stdout, indent=2)
        return
    write = sys.stdout.write
    write(f"Bytes per token, layer and KV head at head size {given.head_dim}: claimed / held\n")
    write(f"{'method':<28}" + "".join(f"{length:>17}" for length in LENGTHS) + f"{'page':>8}{'fit':>6}\n")
    for spec in specs:
        own = [row for row in rows if row.method == str(spec)]
        cells = "".join(f"{f'{row.claimed_bytes:.1f} / {row.held_bytes:.1f}':>17}" for row in own)
        name = spec.name if spec.options == parse_method(spec.name).options else str(spec)
        write(f"{name:<28}{cells}{own[0].page_bytes:>8.0f}{fits[str(spec)]:>6}\n")
    write(
        f"page: bytes of a page per KV head; fit: 1024-token sequences in {given.pool_mib} MiB, one layer of 2 heads\n"
    )


if __name__ == "__main__":
    main()
