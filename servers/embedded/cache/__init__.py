"""The paged, compressed KV cache: :func:`build_cache` makes the one that a method needs."""

from typing import Any

from kvload.errors import UsageError
from kvload.servers.catalogue.methods import MethodSpec
from kvload.servers.embedded.cache.api import CacheGeometry, KVCache
from kvload.servers.embedded.cache.block_cache import BlockCache
from kvload.servers.embedded.cache.head_cache import HeadCache
from kvload.servers.embedded.cache.scored_cache import ScoredCache
from kvload.servers.embedded.cache.token_cache import TokenCache
from kvload.servers.embedded.compression import build_method

STRUCTURES: dict[str, Any] = {"tokens": TokenCache, "blocks": BlockCache, "scored": ScoredCache, "heads": HeadCache}
"""The cache for each structure a method may name."""


def build_cache(
    geometry: CacheGeometry, method: MethodSpec, total_bytes: int, seed: int = 0, chunk_tokens: int = 512
) -> KVCache:
    """The cache of one engine.

    Args:
        geometry: shape of the model's keys and values.
        method: the compression method and its options.
        total_bytes: upper bound on the bytes of the pool.
        seed: of the methods that draw random numbers.
        chunk_tokens: most tokens of one prompt in one step; eviction methods need to know it to bound what a prompt
            holds while it is read.

    Raises:
        UsageError: the method is not one of the engine's, an option does not fit the model's shape, or the pool would
            hold no page.
    """
    built = build_method(method, seed)
    cache: KVCache = STRUCTURES[built.structure](geometry, built, total_bytes, chunk_tokens)
    if cache.total_bytes == 0:
        raise UsageError(
            f"{total_bytes} bytes hold no page of the cache", where="--kv-memory", hint="give at least a few MiB"
        )
    return cache
