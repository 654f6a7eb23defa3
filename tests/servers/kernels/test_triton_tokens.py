"""The embedded engine's cache on the Triton kernels against the same cache on the torch reference.

With CUDA the kernels are compiled and run on the GPU; elsewhere they are interpreted, on tiny shapes in float32.
"""

import os
from typing import Any

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from kvload.errors import UsageError  # noqa: E402
from kvload.servers.catalogue.asked import parse_method  # noqa: E402
from kvload.servers.embedded.cache import build_cache  # noqa: E402
from kvload.servers.embedded.cache.api import StepEntry  # noqa: E402
from kvload.servers.kernels.attention import AttentionExtras  # noqa: E402
from kvload.servers.kernels.layout import CacheGeometry  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
SIZE, QUERY_HEADS, KV_HEADS = (128, 32, 8) if CUDA else (32, 2, 1)
HEADS = QUERY_HEADS, KV_HEADS, KV_HEADS
SCALING = SIZE**-0.5
ERROR = 6e-3 if CUDA else 2e-3
"""Relative error of an output: the kernels multiply codes in float16."""

STEPS = ([("a", 66)], [("a", 1), ("b", 9)], [("b", 60), ("a", 1), ("c", 1)], [("c", 1), ("b", 1), ("a", 1)])
"""Prompts whole and in chunks, over pages' ends, and generated tokens beside them, in any order."""


def geometry(**changed: Any) -> CacheGeometry:
    shape = {"layers": 1, "query_heads": QUERY_HEADS, "kv_heads": KV_HEADS, "head_dim": SIZE, "dtype": DTYPE}
    return CacheGeometry(**{**shape, "device": DEVICE, "scaling": SCALING, **changed})


@pytest.mark.parametrize("method", ["int8", "int4", "int4:rotate=0", "k8v4", "k4v2"])
def test_outputs_are_those_of_the_reference(method: str) -> None:
    shape = geometry()
    caches = [build_cache(shape, parse_method(method), 1 << 20, kernels=name) for name in ("triton", "torch")]
    assert [cache.kernels_name for cache in caches] == ["triton", "torch"]
    if not CUDA:
        caches[0].kernels.kernels.programs = 2  # type: ignore[attr-defined]
    sequences: list[dict[str, Any]] = [{}, {}]
    noise = torch.Generator().manual_seed(3)
    for number, step in enumerate(STEPS):
        tokens = sum(count for _, count in step)
        both = []
        drawn = [
            [
                torch.randn(tokens, heads, SIZE, generator=noise).to(DEVICE, DTYPE)
                for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS)
            ]
            for _ in range(shape.layers)
        ]
        for cache, held in zip(caches, sequences, strict=True):
            for name, _ in step:
                held.setdefault(name, cache.open())
            assert all(cache.reserve(held[name], count) for name, count in step)
            plan = cache.plan([StepEntry(held[name], count, 200) for name, count in step])
            # As transformers hands them over: tokens are not the outer dimension.
            apart = [[x.transpose(0, 1).contiguous().transpose(0, 1) for x in layer] for layer in drawn]
            extras = AttentionExtras(SCALING)
            outs = [cache.attend(n, plan, q, k, v, extras) for n, (q, k, v) in enumerate(apart)]
            both.append(torch.stack(outs).float())
            cache.commit(plan)
        error = (both[0] - both[1]).norm() / both[1].norm()
        assert float(error) < ERROR, number
    lengths = [{name: sequence.length for name, sequence in mine.items()} for mine in sequences]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize(
    ("method", "changed", "why"),
    [
        ("none", {}, "no pages for this method"),
        ("int8", {"scaling": None}, "add something to plain"),
        ("int4", {"head_dim": 96}, "rotation at head size 96"),
        ("int8", {"query_heads": 32 * KV_HEADS}, "query heads"),
    ],
)
def test_what_they_do_not_serve_is_refused_and_left_to_the_reference(
    method: str, changed: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        build_cache(geometry(**changed), parse_method(method), 8 << 20, kernels="triton")
    assert build_cache(geometry(**changed), parse_method(method), 8 << 20).kernels_name == "torch"


def test_a_cpu_takes_the_reference_by_itself() -> None:
    on_cpu = geometry(device=torch.device("cpu"))
    assert build_cache(on_cpu, parse_method("int8"), 1 << 20).kernels_name == "torch"
