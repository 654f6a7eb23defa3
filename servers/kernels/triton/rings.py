"""Writing tokens of the formats with a window: the newest stand in rings, and a page is packed once it is full.

The arithmetic is that of :mod:`kvload.servers.kernels.packed`, to the byte.
"""

import triton
import triton.language as tl

from kvload.servers.kernels.triton.numbers import POINTER16, POINTER32, affine_codes, affine_side, words_of
from kvload.servers.kernels.triton.specialise import kernel


@triton.jit
def _page_part(
    new_ptr,
    stride,
    ring_ptr,
    position,
    start,
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,
    WORDS: tl.constexpr,
    PAD: tl.constexpr,
    RING: tl.constexpr,
    D: tl.constexpr,
):
    """A page's tokens ``(PAGE, GROUPS, SHARED, PAD)``: from the ring before ``start``, new ones from there on."""
    word = tl.arange(0, PAD)[None, None, None, :]
    stream = tl.arange(0, GROUPS)[None, :, None, None] * SHARED + tl.arange(0, SHARED)[None, None, :, None]
    inside = (word < WORDS) & (stream >= 0)
    channel = stream * WORDS + word
    wide = position[:, None, None, None]
    from_ring = tl.load(ring_ptr + (wide % RING) * D + channel, mask=(wide < start) & inside, other=0.0)
    row = (wide - start).to(tl.int64) * stride
    from_new = tl.load(new_ptr + row + channel, mask=(wide >= start) & inside, other=0.0)
    return tl.where(wide < start, from_ring.to(tl.float32), from_new.to(tl.float32)), inside


@triton.jit
def _pack_keys(
    new_ptr,
    stride,
    ring_ptr,
    run,
    first,
    start,
    BITS: tl.constexpr,
    SIDE_AT: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    PAD: tl.constexpr,
):
    """One page of one head: every channel has a step."""
    STREAMS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = D // STREAMS
    position = first + tl.arange(0, PAGE)
    x, _ = _page_part(new_ptr, stride, ring_ptr, position, start, 1, STREAMS, WORDS, PAD, RING, D)
    step, low, side = affine_side(tl.min(x, 0), tl.max(x, 0), BITS)
    codes = affine_codes(
        x, tl.broadcast_to(step[None, :, :, :], x.shape), tl.broadcast_to(low[None, :, :, :], x.shape), BITS
    )
    word = tl.arange(0, PAD)
    at = run.to(POINTER16) + tl.arange(0, PAGE)[:, None] * WORDS + word[None, :]
    tl.store(at, words_of(codes, BITS, 1), mask=(word < WORDS)[None, :])
    channel = tl.arange(0, STREAMS)[None, :, None] * WORDS + word[None, None, :]
    inside = (word < WORDS)[None, None, :] & (channel >= 0)
    tl.store((run + SIDE_AT).to(POINTER32) + channel, side, mask=inside)


@triton.jit
def _pack_values(
    new_ptr,
    stride,
    ring_ptr,
    run,
    first,
    start,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    WORDS_AT: tl.constexpr,
    SIDE_AT: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    PAD: tl.constexpr,
):
    """One page of one head: every token has a step for each group of channels."""
    STREAMS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = D // STREAMS
    token = tl.arange(0, PAGE)
    position = first + token
    x, inside = _page_part(new_ptr, stride, ring_ptr, position, start, GROUPS, STREAMS // GROUPS, WORDS, PAD, RING, D)
    smallest = tl.min(tl.min(tl.where(inside, x, float("inf")), 3), 2)
    largest = tl.max(tl.max(tl.where(inside, x, float("-inf")), 3), 2)
    step, low, side = affine_side(smallest, largest, BITS)
    codes = affine_codes(
        x, tl.broadcast_to(step[:, :, None, None], x.shape), tl.broadcast_to(low[:, :, None, None], x.shape), BITS
    )
    word = tl.arange(0, PAD)
    at = (run + WORDS_AT).to(POINTER16) + token[:, None] * WORDS + word[None, :]
    tl.store(at, words_of(codes, BITS, GROUPS), mask=(word < WORDS)[None, :])
    tl.store((run + SIDE_AT).to(POINTER32) + tl.arange(0, GROUPS)[None, :] * PAGE + token[:, None], side)


@triton.jit
def _pack(
    key_ptr,
    value_ptr,
    key_stride,
    value_stride,
    ring_ptr,
    run,
    first,
    start,
    side,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
):
    """The keys (``side`` 0) or the values of a page; the pointers stand at the head's token of position ``start``."""
    VALUE_AT: tl.constexpr = PAGE * D * KEY_BITS // 8
    SIDE_AT: tl.constexpr = VALUE_AT + PAGE * D * VALUE_BITS // 8
    if side == 0:
        _pack_keys(key_ptr, key_stride, ring_ptr, run, first, start, KEY_BITS, SIDE_AT, D, PAGE, RING, KEY_PAD)
    else:
        _pack_values(
            value_ptr,
            value_stride,
            ring_ptr + RING * D,
            run,
            first,
            start,
            VALUE_BITS,
            VALUE_GROUPS,
            VALUE_AT,
            SIDE_AT + 4 * D,
            D,
            PAGE,
            RING,
            VALUE_PAD,
        )


@kernel
def append_kernel(
    key_ptr,
    value_ptr,
    pages_ptr,
    table_ptr,
    lengths_ptr,
    ring_ptr,
    slots_ptr,
    key_stride,
    value_stride,
    table_stride,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    RUN: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """One new token of every sequence into its ring, and its page where that is full now; grid ``(kv_heads, 2, rows)``.

    Rows of length 0 are padding.
    """
    head = tl.program_id(0)
    side = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + b)
    if length > 0:
        position = length - 1
        ring = ring_ptr + (tl.load(slots_ptr + b).to(tl.int64) * HEADS + head) * (2 * RING * D)
        key = key_ptr + b * key_stride + head * D
        value = value_ptr + b * value_stride + head * D
        if position % PAGE == PAGE - 1:
            page = tl.load(table_ptr + b * table_stride + position // PAGE).to(tl.int64)
            run = pages_ptr + (page * HEADS + head) * RUN
            _pack(
                key,
                value,
                key_stride,
                value_stride,
                ring,
                run,
                length - PAGE,
                position,
                side,
                KEY_BITS,
                VALUE_BITS,
                VALUE_GROUPS,
                D,
                PAGE,
                RING,
                KEY_PAD,
                VALUE_PAD,
            )
        channel = tl.arange(0, D_PAD)
        at = ring + (side * RING + position % RING) * D + channel
        if side == 0:
            x = tl.load(key + channel, mask=channel < D, other=0.0)
        else:
            x = tl.load(value + channel, mask=channel < D, other=0.0)
        tl.store(at, x, mask=channel < D)


@kernel
def pack_kernel(
    key_ptr,
    value_ptr,
    pages_ptr,
    table_ptr,
    starts_ptr,
    rows_ptr,
    ring_ptr,
    slots_ptr,
    work_rows_ptr,
    work_pages_ptr,
    key_stride,
    value_stride,
    table_stride,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    RUN: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
):
    """Pages that a step's chunks fill, before the chunks go to the rings; grid ``(pages, kv_heads, 2)``.

    ``work_rows`` and ``work_pages`` say which sequence and which of its pages; ``starts`` are the positions of the
    sequences' first new tokens, ``rows`` their places among the new keys and values.
    """
    i = tl.program_id(0)
    head = tl.program_id(1)
    b = tl.load(work_rows_ptr + i).to(tl.int64)
    index = tl.load(work_pages_ptr + i)
    start = tl.load(starts_ptr + b)
    row = tl.load(rows_ptr + b).to(tl.int64)
    ring = ring_ptr + (tl.load(slots_ptr + b).to(tl.int64) * HEADS + head) * (2 * RING * D)
    page = tl.load(table_ptr + b * table_stride + index).to(tl.int64)
    _pack(
        key_ptr + row * key_stride + head * D,
        value_ptr + row * value_stride + head * D,
        key_stride,
        value_stride,
        ring,
        pages_ptr + (page * HEADS + head) * RUN,
        index * PAGE,
        start,
        tl.program_id(2),
        KEY_BITS,
        VALUE_BITS,
        VALUE_GROUPS,
        D,
        PAGE,
        RING,
        KEY_PAD,
        VALUE_PAD,
    )


@kernel
def ring_kernel(
    key_ptr,
    value_ptr,
    starts_ptr,
    lengths_ptr,
    rows_ptr,
    ring_ptr,
    slots_ptr,
    key_stride,
    value_stride,
    D: tl.constexpr,
    RING: tl.constexpr,
    HEADS: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """The newest tokens of chunks into their rings; grid ``(sequences, kv_heads, 2)``."""
    b = tl.program_id(0)
    head = tl.program_id(1)
    side = tl.program_id(2)
    start = tl.load(starts_ptr + b)
    length = tl.load(lengths_ptr + b)
    row = tl.load(rows_ptr + b).to(tl.int64)
    ring = ring_ptr + (tl.load(slots_ptr + b).to(tl.int64) * HEADS + head) * (2 * RING * D)
    position = tl.maximum(start, length - RING) + tl.arange(0, RING)
    channel = tl.arange(0, D_PAD)
    mask = (position < length)[:, None] & (channel < D)[None, :]
    token = row + position - start
    if side == 0:
        x = tl.load(key_ptr + (token * key_stride)[:, None] + head * D + channel[None, :], mask=mask, other=0.0)
    else:
        x = tl.load(value_ptr + (token * value_stride)[:, None] + head * D + channel[None, :], mask=mask, other=0.0)
    tl.store(ring + (side * RING + position % RING)[:, None] * D + channel[None, :], x, mask=mask)
