"""Reading and writing codes and side data inside a kernel.

A code in the low bits of a float16 *is* the number ``code * 2**-24`` (a subnormal, which tensor cores keep), so packed
words become operands of a product by one mask, without a conversion. A code that stands ``b`` bits higher in its byte
is ``2**b`` times as large: :func:`weight_of`, which the other operand or the result is divided by.
"""

import triton
import triton.language as tl

POINTER16 = tl.pointer_type(tl.int16)
POINTER32 = tl.pointer_type(tl.int32)

CODE_UNIT = tl.constexpr(16777216.0)
"""Codes as float16 are this many times too small."""

_ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: added to and taken from a float32 it rounds it to an integer, halves to even."""

_FLOAT16_LARGEST = tl.constexpr(65504.0)


@triton.jit
def _masked_pairs(words, MASK: tl.constexpr, UPPER: tl.constexpr, NATIVE: tl.constexpr):
    """``(words >> 8 if UPPER) & MASK`` as float16; two words a register on the GPU."""
    if NATIVE:
        if UPPER:
            found = tl.inline_asm_elementwise(
                "{ .reg .b32 t; shr.u32 t, $1, 8; and.b32 $0, t, " + MASK + "; }",
                "=r,r",
                [words],
                dtype=tl.float16,
                is_pure=True,
                pack=2,
            )
        else:
            found = tl.inline_asm_elementwise(
                "and.b32 $0, $1, " + MASK + ";", "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2
            )
    else:
        low: tl.constexpr = int(MASK, 16) & 0xFFFF
        if UPPER:
            words = words >> 8
        found = (words & low).to(tl.int16).to(tl.float16, bitcast=True)
    return found


@triton.jit
def codes_of(words, BITS: tl.constexpr, STREAM: tl.constexpr, NATIVE: tl.constexpr):
    """Code ``STREAM`` of each word as a float16 of ``code * weight * 2**-24``."""
    upper: tl.constexpr = BITS * STREAM >= 8
    if BITS == 8:
        found = _masked_pairs(words, "0x00ff00ff", upper, NATIVE)
    elif BITS == 4:
        if STREAM % 2 == 0:
            found = _masked_pairs(words, "0x000f000f", upper, NATIVE)
        else:
            found = _masked_pairs(words, "0x00f000f0", upper, NATIVE)
    elif STREAM % 4 == 0:
        found = _masked_pairs(words, "0x00030003", upper, NATIVE)
    elif STREAM % 4 == 1:
        found = _masked_pairs(words, "0x000c000c", upper, NATIVE)
    elif STREAM % 4 == 2:
        found = _masked_pairs(words, "0x00300030", upper, NATIVE)
    else:
        found = _masked_pairs(words, "0x00c000c0", upper, NATIVE)
    return found


@triton.jit
def weight_of(BITS: tl.constexpr, STREAM: tl.constexpr):
    """What :func:`codes_of` multiplies a code by, besides ``2**-24``."""
    return 1.0 * (1 << ((BITS * STREAM) % 8))


@triton.jit
def low_half(x):
    """The lower 16 bits as float16."""
    return (x & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def high_half(x):
    """The upper 16 bits as float16."""
    return ((x >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def step_of(side, SYMMETRIC: tl.constexpr):
    """The step, float32, of side data."""
    if SYMMETRIC:
        found = side.to(tl.float32, bitcast=True)
    else:
        found = low_half(side).to(tl.float32)
    return found


@triton.jit
def low_of(side, SYMMETRIC: tl.constexpr):
    """What is added to ``code * step``, float32."""
    if SYMMETRIC:
        found = side.to(tl.float32, bitcast=True) * -128.0
    else:
        found = high_half(side).to(tl.float32)
    return found


@triton.jit
def rounded(x):
    """To the nearest integer, halves to even; ``|x| < 2**22``."""
    return (x + _ROUND) - _ROUND


@triton.jit
def affine_side(smallest, largest, BITS: tl.constexpr):
    """Step and low (float32, exact in float16) of numbers between two bounds, and both as side data."""
    levels: tl.constexpr = (1 << BITS) - 1
    low = tl.minimum(tl.maximum(smallest, -_FLOAT16_LARGEST), _FLOAT16_LARGEST)
    step = tl.minimum(tl.div_rn(largest - low, levels * 1.0), _FLOAT16_LARGEST).to(tl.float16)
    step = tl.where(step == 0.0, 1.0, step).to(tl.float16)
    low = low.to(tl.float16)
    side = (step.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF) | (low.to(tl.int16, bitcast=True).to(tl.int32) << 16)
    return step.to(tl.float32), low.to(tl.float32), side


@triton.jit
def affine_codes(x, step, low, BITS: tl.constexpr):
    """Codes, int32; ``step`` and ``low`` broadcast to ``x``."""
    levels: tl.constexpr = ((1 << BITS) - 1) * 1.0
    found = rounded(tl.minimum(tl.maximum(tl.div_rn(x - low, step), -1.0), levels + 1.0))
    return tl.minimum(tl.maximum(found, 0.0), levels).to(tl.int32)


@triton.jit
def words_of(codes, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """Codes ``(tokens, GROUPS, streams of a group, words)`` as words ``(tokens, words)``."""
    SHARED: tl.constexpr = 16 // BITS // GROUPS
    stream = tl.arange(0, GROUPS)[None, :, None, None] * SHARED + tl.arange(0, SHARED)[None, None, :, None]
    return tl.sum(tl.sum(codes << (stream * BITS), 2), 1).to(tl.int16)
