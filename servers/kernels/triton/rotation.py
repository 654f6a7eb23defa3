"""The Hadamard transform inside a kernel; with random signs it is the rotation of ``quantise.random_hadamard``."""

import triton
import triton.language as tl


@triton.jit
def _butterfly(x, ROWS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr):
    """Sums and differences of numbers ``HALF`` apart."""
    pairs = tl.permute(tl.reshape(x, [ROWS, SIZE // (2 * HALF), 2, HALF]), (0, 1, 3, 2))
    upper, lower = tl.split(pairs)
    pairs = tl.permute(tl.join(upper + lower, upper - lower), (0, 1, 3, 2))
    return tl.reshape(pairs, [ROWS, SIZE])


@triton.jit
def hadamard(x, ROWS: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr):
    """``x @ H`` for ``x (ROWS, SIZE)`` float32, ``SIZE = 2**STAGES``, with entries 1 and -1."""
    for stage in tl.static_range(STAGES):
        x = _butterfly(x, ROWS, SIZE, 1 << stage)
    return x
