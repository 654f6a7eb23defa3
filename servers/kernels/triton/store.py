"""Writing keys and values into packed pages and rings.

The arithmetic is that of :mod:`kvload.servers.kernels.packed`, to the byte; rotated numbers may differ in the last bit
of a float32 before they are rounded.
"""

import triton
import triton.language as tl

from kvload.servers.kernels.triton.numbers import POINTER16, POINTER32, affine_codes, affine_side, rounded
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
def _words(codes, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """Codes ``(tokens, GROUPS, streams of a group, words)`` as words ``(tokens, words)``."""
    SHARED: tl.constexpr = 16 // BITS // GROUPS
    stream = tl.arange(0, GROUPS)[None, :, None, None] * SHARED + tl.arange(0, SHARED)[None, None, :, None]
    return tl.sum(tl.sum(codes << (stream * BITS), 2), 1).to(tl.int16)


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
    tl.store(at, _words(codes, BITS, GROUPS), mask=real[:, None] & (word < WORDS)[None, :])
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
    tl.store(at, _words(codes, BITS, 1), mask=(word < WORDS)[None, :])
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
    tl.store(at, _words(codes, BITS, GROUPS), mask=(word < WORDS)[None, :])
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
