"""Packed context in full precision again, for the attention of a prompt's later chunks."""

import triton
import triton.language as tl

from kvload.servers.kernels.triton.numbers import POINTER16, POINTER32, low_of, step_of
from kvload.servers.kernels.triton.rotation import hadamard
from kvload.servers.kernels.triton.specialise import kernel


@triton.jit
def _page(
    run,
    AT: tl.constexpr,
    SIDE_AT: tl.constexpr,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    PAD: tl.constexpr,
):
    """Keys or values of one page and head, ``(PAGE, streams, PAD)`` float32."""
    STREAMS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = D // STREAMS
    token = tl.arange(0, PAGE)
    word = tl.arange(0, PAD)
    stream = tl.arange(0, STREAMS)
    inside = word < WORDS
    at = (run + AT).to(POINTER16) + token[:, None] * WORDS + word[None, :]
    words = tl.load(at, mask=inside[None, :] & (token >= 0)[:, None], other=0).to(tl.int32)
    codes = (words[:, None, :] >> (stream * BITS)[None, :, None]) & ((1 << BITS) - 1)
    if PER_CHANNEL:
        at = (run + SIDE_AT).to(POINTER32) + stream[:, None] * WORDS + word[None, :]
        side = tl.load(at, mask=inside[None, :] & (stream >= 0)[:, None], other=0)[None, :, :]
    else:
        group = stream // (STREAMS // GROUPS)
        side = tl.load((run + SIDE_AT).to(POINTER32) + group[None, :] * PAGE + token[:, None])[:, :, None]
    if SYMMETRIC:
        found = (codes - 128).to(tl.float32) * step_of(side, SYMMETRIC)
    else:
        found = codes.to(tl.float32) * step_of(side, SYMMETRIC) + low_of(side, SYMMETRIC)
    return found


@triton.jit
def _write(
    x,
    out_ptr,
    new_ptr,
    ring_ptr,
    signs_ptr,
    position,
    packed,
    start,
    length,
    out_row,
    new_row,
    new_stride,
    head,
    BITS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    HEADS: tl.constexpr,
    PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    ROTATED: tl.constexpr,
    LOG_D: tl.constexpr,
):
    STREAMS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = D // STREAMS
    if ROTATED:
        x = hadamard(tl.reshape(x, [PAGE, D]), PAGE, D, LOG_D) * tl.load(signs_ptr + tl.arange(0, D))[None, :]
        channel = tl.arange(0, D)[None, :]
        inside = channel >= 0
    else:
        word = tl.arange(0, PAD)[None, None, :]
        channel = tl.arange(0, STREAMS)[None, :, None] * WORDS + word
        inside = (word < WORDS) & (channel >= 0)
        x = tl.reshape(x, [PAGE, STREAMS * PAD])
        channel = tl.reshape(channel, [1, STREAMS * PAD])
        inside = tl.reshape(inside, [1, STREAMS * PAD])
    if WINDOW:
        mask = ((position >= packed) & (position < start))[:, None] & inside
        recent = tl.load(ring_ptr + (position % RING)[:, None] * D + channel, mask=mask, other=0.0)
        x = tl.where(mask, recent.to(tl.float32), x)
    mask = ((position >= start) & (position < length))[:, None] & inside
    token = new_row + position - start
    new = tl.load(new_ptr + (token * new_stride)[:, None] + head * D + channel, mask=mask, other=0.0)
    x = tl.where(mask, new.to(tl.float32), x)
    at = out_ptr + ((out_row + position) * HEADS + head)[:, None] * D + channel
    tl.store(at, x.to(out_ptr.dtype.element_ty), mask=(position < length)[:, None] & inside)


@kernel
def dequantise_kernel(
    key_out_ptr,
    value_out_ptr,
    key_ptr,
    value_ptr,
    pages_ptr,
    table_ptr,
    starts_ptr,
    lengths_ptr,
    rows_ptr,
    out_rows_ptr,
    ring_ptr,
    slots_ptr,
    ring_from_ptr,
    signs_ptr,
    work_rows_ptr,
    work_pages_ptr,
    key_stride,
    value_stride,
    table_stride,
    KEY_BITS: tl.constexpr,
    KEY_GROUPS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    WINDOW: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    RUN: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    ROTATED: tl.constexpr,
    LOG_D: tl.constexpr,
):
    """What a chunk attends to, dense: its context as stored and its own tokens as they are.

    Grid ``(pages, kv_heads, 2)``; ``work_rows`` and ``work_pages`` say which sequence and which 64 of its tokens, new
    ones included. Sequence ``b`` is written from row ``out_rows[b]`` of ``(tokens, kv_heads, D)``.
    """
    i = tl.program_id(0)
    head = tl.program_id(1)
    b = tl.load(work_rows_ptr + i).to(tl.int64)
    index = tl.load(work_pages_ptr + i)
    start = tl.load(starts_ptr + b)
    length = tl.load(lengths_ptr + b)
    new_row = tl.load(rows_ptr + b).to(tl.int64)
    out_row = tl.load(out_rows_ptr + b).to(tl.int64)
    packed = start
    ring = ring_ptr
    if WINDOW:
        slot = tl.load(slots_ptr + b).to(tl.int64)
        full = start // PAGE * PAGE
        packed = tl.maximum(tl.maximum(full - PAGE, tl.minimum(full, tl.load(ring_from_ptr + slot))), 0)
        ring += (slot * HEADS + head) * (2 * RING * D)
    position = index * PAGE + tl.arange(0, PAGE)
    # Behind the packed tokens the page may not be written yet; what is read there is not used.
    page = tl.load(table_ptr + b * table_stride + index).to(tl.int64)
    run = pages_ptr + (page * HEADS + head) * RUN
    VALUE_AT: tl.constexpr = PAGE * D * KEY_BITS // 8
    SIDE_AT: tl.constexpr = VALUE_AT + PAGE * D * VALUE_BITS // 8
    VALUE_SIDE_AT: tl.constexpr = SIDE_AT + (4 * D if PER_CHANNEL else 4 * PAGE * KEY_GROUPS)
    if tl.program_id(2) == 0:
        key = _page(run, 0, SIDE_AT, KEY_BITS, KEY_GROUPS, PER_CHANNEL, SYMMETRIC, D, PAGE, KEY_PAD)
        _write(
            key,
            key_out_ptr,
            key_ptr,
            ring,
            signs_ptr,
            position,
            packed,
            start,
            length,
            out_row,
            new_row,
            key_stride,
            head,
            KEY_BITS,
            D,
            PAGE,
            RING,
            HEADS,
            KEY_PAD,
            WINDOW,
            ROTATED,
            LOG_D,
        )
    else:
        value = _page(run, VALUE_AT, VALUE_SIDE_AT, VALUE_BITS, VALUE_GROUPS, False, SYMMETRIC, D, PAGE, VALUE_PAD)
        _write(
            value,
            value_out_ptr,
            value_ptr,
            ring + RING * D,
            signs_ptr,
            position,
            packed,
            start,
            length,
            out_row,
            new_row,
            value_stride,
            head,
            VALUE_BITS,
            D,
            PAGE,
            RING,
            HEADS,
            VALUE_PAD,
            WINDOW,
            ROTATED,
            LOG_D,
        )
