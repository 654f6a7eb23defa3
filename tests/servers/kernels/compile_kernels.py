"""Compiles every kernel for a Hopper GPU, without one: ``python compile_kernels.py METHOD...``.

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
from kvload.servers.kernels.triton.launch import Chunks, Heads, PackedKernels

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


if __name__ == "__main__":
    JITFunction.run = compiled
    for word in sys.argv[1:]:
        method, _, size = word.partition(":")
        launch_all(method.removesuffix("+rotate"), int(size), method.endswith("+rotate"))
