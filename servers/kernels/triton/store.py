"""Writing tokens into packed pages, each on its own: the formats without a window.

The arithmetic is that of :mod:`kvload.servers.kernels.packed`, to the byte; rotated numbers may differ in the last bit
of a float32 before they are rounded.
"""

import triton
import triton.language as tl

from kvload.servers.kernels.triton.numbers import POINTER16, POINTER32, affine_codes, affine_side, rounded, words_of
from kvload.servers.kernels.triton.rotation import hadamard
from kvload.servers.kernels.triton.specialise import kernel


@triton.jit
def _rows(
    x_ptr,
    rows,
    real,
    signs_ptr,
    stride,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    WORDS: tl.constexpr,
    PAD: tl.constexpr,
    ROTATED: tl.constexpr,
    LOG_D: tl.constexpr,
):
    """Heads of tokens as ``(ROWS, GROUPS, SHARED, PAD)`` float32, and which of them are channels."""
    start = (rows // HEADS).to(tl.int64) * stride + (rows % HEADS) * D
    word = tl.arange(0, PAD)[None, None, None, :]
    stream = tl.arange(0, GROUPS)[None, :, None, None] * SHARED + tl.arange(0, SHARED)[None, None, :, None]
    inside = (word < WORDS) & (stream >= 0)
    if ROTATED:
        channel = tl.arange(0, D)
        x = tl.load(x_ptr + start[:, None] + channel[None, :], mask=real[:, None], other=0.0).to(tl.float32)
        # The signs carry the transform's factor.
        x = hadamard(x * tl.load(signs_ptr + channel)[None, :], ROWS, D, LOG_D)
        x = tl.reshape(x, [ROWS, GROUPS, SHARED, PAD])
    else:
        at = x_ptr + start[:, None, None, None] + stream * WORDS + word
        x = tl.load(at, mask=real[:, None, None, None] & inside, other=0.0).to(tl.float32)
    return x, inside


@triton.jit
def _store_side(
    x_ptr,
    pages_ptr,
    slots_ptr,
    signs_ptr,
    stride,
    tokens,
    words_at,
    side_at,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RUN: tl.constexpr,
    HEADS: tl.constexpr,
    PAD: tl.constexpr,
    ROTATED: tl.constexpr,
    LOG_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    STREAMS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = D // STREAMS
    SHARED: tl.constexpr = STREAMS // GROUPS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots_ptr + rows // HEADS, mask=rows // HEADS < tokens, other=-1)
    real = slot >= 0
    x, inside = _rows(x_ptr, rows, real, signs_ptr, stride, HEADS, ROWS, D, GROUPS, SHARED, WORDS, PAD, ROTATED, LOG_D)
    run = pages_ptr + ((slot // PAGE).to(tl.int64) * HEADS + rows % HEADS) * RUN
    offset = (slot % PAGE).to(tl.int32)
    if SYMMETRIC:
        largest = tl.max(tl.max(tl.abs(x), 3), 2)
        scale = tl.div_rn(largest, 127.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
        side = scale.to(tl.int32, bitcast=True)
        codes = rounded(tl.div_rn(x, tl.broadcast_to(scale[:, :, None, None], x.shape))).to(tl.int32) + 128
    else:
        smallest = tl.min(tl.min(tl.where(inside, x, float("inf")), 3), 2)
        largest = tl.max(tl.max(tl.where(inside, x, float("-inf")), 3), 2)
        step, low, side = affine_side(smallest, largest, BITS)
        codes = affine_codes(
            x,
            tl.broadcast_to(step[:, :, None, None], x.shape),
            tl.broadcast_to(low[:, :, None, None], x.shape),
            BITS,
        )
    group = tl.arange(0, GROUPS)
    word = tl.arange(0, PAD)
    at = (run + words_at).to(POINTER16)[:, None] + offset[:, None] * WORDS + word[None, :]
    tl.store(at, words_of(codes, BITS, GROUPS), mask=real[:, None] & (word < WORDS)[None, :])
    at = (run + side_at).to(POINTER32)[:, None] + group[None, :] * PAGE + offset[:, None]
    tl.store(at, side, mask=real[:, None] & (group >= 0)[None, :])


@kernel
def store_kernel(
    key_ptr,
    value_ptr,
    query_ptr,
    rotated_ptr,
    pages_ptr,
    slots_ptr,
    signs_ptr,
    key_stride,
    value_stride,
    query_stride,
    tokens,
    queries,
    KEY_BITS: tl.constexpr,
    KEY_GROUPS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RUN: tl.constexpr,
    HEADS: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    ROTATED: tl.constexpr,
    LOG_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Tokens of formats without a window; grid ``(blocks of rows, 2)``, or 3 where queries are rotated as well.

    A row is one head of one token. Queries are rotated into ``rotated_ptr (queries, query_heads, D)``.
    """
    VALUE_AT: tl.constexpr = PAGE * D * KEY_BITS // 8
    SIDE_AT: tl.constexpr = VALUE_AT + PAGE * D * VALUE_BITS // 8
    if tl.program_id(1) == 0:
        _store_side(
            key_ptr,
            pages_ptr,
            slots_ptr,
            signs_ptr,
            key_stride,
            tokens,
            0,
            SIDE_AT,
            KEY_BITS,
            KEY_GROUPS,
            SYMMETRIC,
            D,
            PAGE,
            RUN,
            HEADS,
            KEY_PAD,
            ROTATED,
            LOG_D,
            ROWS,
        )
    elif tl.program_id(1) == 1:
        _store_side(
            value_ptr,
            pages_ptr,
            slots_ptr,
            signs_ptr,
            value_stride,
            tokens,
            VALUE_AT,
            SIDE_AT + 4 * PAGE * KEY_GROUPS,
            VALUE_BITS,
            VALUE_GROUPS,
            SYMMETRIC,
            D,
            PAGE,
            RUN,
            HEADS,
            VALUE_PAD,
            ROTATED,
            LOG_D,
            ROWS,
        )
    elif ROTATED:
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        real = rows < queries * QUERY_HEADS
        x, _ = _rows(query_ptr, rows, real, signs_ptr, query_stride, QUERY_HEADS, ROWS, D, 1, 1, D, D, ROTATED, LOG_D)
        x = tl.reshape(x, [ROWS, D])
        at = rotated_ptr + rows[:, None] * D + tl.arange(0, D)[None, :]
        tl.store(at, x.to(rotated_ptr.dtype.element_ty), mask=real[:, None])
