"""How fast this device reads memory."""

import triton
import triton.language as tl


@triton.jit
def read_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr, TIMES: tl.constexpr):
    """Read ``BLOCK * TIMES`` int32 a program and write next to nothing."""
    start = tl.program_id(0).to(tl.int64) * BLOCK * TIMES
    found = tl.zeros([BLOCK], tl.int32)
    for i in tl.static_range(TIMES):
        found ^= tl.load(x_ptr + start + i * BLOCK + tl.arange(0, BLOCK))
    total = tl.sum(found, 0)
    if total == 123456789:
        tl.store(out_ptr, total)
