"""The paged, compressed KV cache: :func:`build_cache` makes the one that a method needs."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec
from kvload.servers.embedded.cache.api import CacheGeometry, KVCache
from kvload.servers.embedded.cache.block_cache import BlockCache
from kvload.servers.embedded.cache.head_cache import HeadCache
from kvload.servers.embedded.cache.scored_cache import ScoredCache
from kvload.servers.embedded.cache.token_cache import TokenCache
from kvload.servers.embedded.compression import build_method
from kvload.servers.kernels.api import KernelSet

STRUCTURES: dict[str, Any] = {"tokens": TokenCache, "blocks": BlockCache, "scored": ScoredCache, "heads": HeadCache}
"""The cache for each structure a method may name."""

KERNELS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "triton": {"tokens": "kvload.servers.kernels.triton.tokens:PackedTokenKernels"},
        "torch": {
            "tokens": "kvload.servers.kernels.reference.tokens:TokenKernels",
            "blocks": "kvload.servers.kernels.reference.blocks:BlockKernels",
            "scored": "kvload.servers.kernels.reference.scored:ScoredKernels",
            "heads": "kvload.servers.kernels.reference.heads:HeadKernels",
        },
    }
)
"""Kernel sets by name and structure. ``auto`` takes the first without an obstacle, on a CPU the reference, which stands
last."""


def build_cache(
    geometry: CacheGeometry,
    method: MethodSpec,
    total_bytes: int,
    seed: int = 0,
    chunk_tokens: int = 512,
    kernels: str = "auto",
) -> KVCache:
    """The cache of one engine.

    Args:
        geometry: shape of the model's keys and values.
        method: the compression method and its options.
        total_bytes: upper bound on the bytes of the pool.
        seed: of the methods that draw random numbers.
        chunk_tokens: most tokens of one prompt in one step; eviction methods need to know it to bound what a prompt
            holds while it is read.
        kernels: ``auto``, or a name of :data:`KERNELS`.

    Raises:
        UsageError: the method is not one of the engine's, an option does not fit the model's shape, the kernels cannot
            be used, or the pool would hold no page.
    """
    built = build_method(method, seed)
    found = _kernels(geometry, built, kernels)
    try:
        cache: KVCache = STRUCTURES[built.structure](geometry, built, total_bytes, chunk_tokens, found)
    except ValueError as error:
        raise UsageError(str(error), where=f"--method {method}") from error
    if cache.total_bytes == 0:
        raise UsageError(
            f"{total_bytes} bytes hold no page of the cache", where="--kv-memory", hint="give at least a few MiB"
        )
    return cache


def _kernels(geometry: CacheGeometry, method: Any, wanted: str) -> type[KernelSet[Any, Any, Any]]:
    if wanted not in {"auto", *KERNELS}:
        raise UsageError(f"no kernels '{wanted}'", where="--kernels", hint=f"known: auto, {', '.join(KERNELS)}")
    against = f"the {wanted} kernels do not serve this method"
    for name, places in KERNELS.items():
        if wanted not in {"auto", name} or method.structure not in places:
            continue
        if wanted == "auto" and name != "torch" and geometry.device.type == "cpu":
            continue
        module, _, attribute = places[method.structure].partition(":")
        try:
            found: type[KernelSet[Any, Any, Any]] = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            against = f"the {name} kernels cannot be used: {error}"
            continue
        obstacle = found.obstacle(geometry, method)
        if obstacle is None:
            return found
        against = f"the {name} kernels cannot be used: {obstacle}"
    raise UsageError(against, where=f"--kernels {wanted}", hint="--kernels auto takes what can")
