"""The random Hadamard rotation inside a kernel: signs, then a fast transform, as ``quantise.random_hadamard`` makes it."""

import triton
import triton.language as tl


@triton.jit
def hadamard(x, ROWS: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr):
    """``x @ H`` for ``x (ROWS, SIZE)`` float32, ``SIZE = 2**STAGES``, with entries 1 and -1."""
    for stage in tl.static_range(STAGES):
        half: tl.constexpr = 1 << stage
        y = tl.permute(tl.reshape(x, [ROWS, SIZE // (2 * half), 2, half]), (0, 1, 3, 2))
        upper, lower = tl.split(y)
        y = tl.permute(tl.join(upper + lower, upper - lower), (0, 1, 3, 2))
        x = tl.reshape(y, [ROWS, SIZE])
    return x
