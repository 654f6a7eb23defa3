"""Compiles every kernel for a Hopper GPU, without one: ``python compile_kernels.py METHOD...``, or ``eviction:BLOCK``.

The interpreter accepts what the compiler refuses. Launches are those of ``PackedKernels`` on tiny tensors; where Triton
would look for a GPU, the kernel is compiled and not run.
"""

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kvload.servers.kernels.formats import page_format
from kvload.servers.kernels.triton import eviction
from kvload.servers.kernels.triton.launch import PackedKernels
from kvload.servers.kernels.triton.shapes import Chunks, Heads
from kvload.servers.kernels.triton.specialise import COUNTS, INDEX_POINTERS

TYPES = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")


def compiled(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """Stands in for ``JITFunction.run``."""
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, aligned = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[index,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            aligned[index,] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(f"{kernel.__name__}: {len(binary.asm['cubin'])} bytes, {binary.metadata.shared} bytes shared", flush=True)  # noqa: T201


def launch_all(method: str, size: int, rotate: bool) -> None:
    fmt = page_format(method, size)
    kernels = PackedKernels(fmt, Heads(8, 2, size, torch.bfloat16, 0.1), torch.device("cpu"), 0 if rotate else None)
    pages = torch.zeros(4, 2, fmt.run_bytes, dtype=torch.uint8)
    table, one = torch.zeros(8, 4, dtype=torch.int32), torch.ones(8, dtype=torch.int32)
    key = value = torch.zeros(8, 2, size, dtype=torch.bfloat16)
    query = torch.zeros(8, 8, size, dtype=torch.bfloat16)
    ring = torch.zeros(8, 2, 2, 128, size, dtype=torch.bfloat16)
    plan = kernels.new_plan(8)
    kernels.plan(plan, one, one, one)
    chunks = Chunks(table, one, one, one, one)
    if fmt.window:
        kernels.append(key, value, pages, table, one, ring, one)
        kernels.store_chunks(key, value, pages, chunks, kernels.filled([(0, 64)]), ring)
    else:
        kernels.store(key, value, pages, one.long(), query, query)
    kernels.dequantise(key, value, pages, chunks, kernels.held([64]), one, key, value, ring, one)
    kernels.decode(plan, query, pages, table, one, query, ring, one)
    kernels.decode(plan, query[:1], pages, table, one[:1], query[:1], ring, one)


def launch_eviction(block: int) -> None:
    """The kernels of methods that evict, over blocks of so many tokens."""
    cache = torch.zeros(4, 2, block, 64, dtype=torch.bfloat16)
    pages = eviction.Pages(cache, cache, torch.zeros(4, 2, block))
    one = torch.ones(3, dtype=torch.int32)
    rows = eviction.Rows(torch.zeros(3, 5, dtype=torch.int32), one, torch.zeros(4, dtype=torch.int32), one, one, one)
    eviction.shift(rows, block, torch.zeros(3, 5, dtype=torch.int32), one)
    query = torch.zeros(7, 8, 64, dtype=torch.bfloat16)
    lse, scratch = torch.zeros(8, 7), torch.zeros(3, 2, 64, dtype=torch.int32)
    for most_new in (1, 5):
        eviction.score(query, pages, rows, lse, scale=0.1, judges=None, most_new=most_new, most_held=300)
        eviction.add_start(query, query, lse, pages, rows, scale=0.1, start=4, recent=40, most_new=most_new)
    counts = torch.zeros(3, dtype=torch.int64)
    eviction.compact(pages, rows, scratch, counts, judges=32, newest=32, smoothing=5, most_held=300)
    for kernel in (eviction._shift, eviction._score, eviction._compact, eviction._add_start):
        for parameter in kernel.params:
            if parameter.name in COUNTS:
                assert parameter.do_not_specialize, (kernel, parameter.name)
            if parameter.name in INDEX_POINTERS:
                assert parameter.do_not_specialize_on_alignment, (kernel, parameter.name)


if __name__ == "__main__":
    JITFunction.run = compiled
    for word in sys.argv[1:]:
        if word.startswith("eviction"):
            launch_eviction(int(word.partition(":")[2]))
            continue
        method, _, size = word.partition(":")
        launch_all(method.removesuffix("+rotate"), int(size), method.endswith("+rotate"))
