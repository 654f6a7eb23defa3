"""Which program reads which pages of a batch, and how their partial results become the output.

Two ways to split the work. *Balanced*: as many programs as the device holds at once, each with the same number of
pages of the whole batch, across the borders of sequences; for all but the smallest batches. *Static*: every sequence is
cut into the same number of parts; for few sequences, where it starts faster. Neither grid depends on lengths, which are
read on the device, so both can be captured in a graph.
"""

import triton.language as tl

from kvload.servers.kernels.triton.attend import NOTHING, _segment
from kvload.servers.kernels.triton.rotation import hadamard
from kvload.servers.kernels.triton.specialise import kernel


@kernel
def plan_kernel(
    lengths_ptr,
    slots_ptr,
    ring_from_ptr,
    packed_ptr,
    ends_ptr,
    owners_ptr,
    sequences,
    programs,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    RING_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a step needs to know of its batch, once for all layers; a single program.

    Writes each sequence's tokens in pages, the running sum of pages ``(sequences + 1)`` (a ring counts as the pages its
    bytes amount to), and the first sequence of each program of the balanced grid.
    """
    b = tl.arange(0, BLOCK)
    real = b < sequences
    length = tl.load(lengths_ptr + b, mask=real, other=0)
    if WINDOW:
        slot = tl.load(slots_ptr + b, mask=real, other=0)
        ring_from = tl.load(ring_from_ptr + slot, mask=real, other=0)
        full = length // PAGE * PAGE
        packed = tl.maximum(tl.maximum(full - PAGE, tl.minimum(full, ring_from)), 0)
        pages = packed // PAGE + tl.cdiv((length - packed) * RING_WEIGHT, PAGE)
    else:
        packed = length
        pages = tl.cdiv(length, PAGE)
    tl.store(packed_ptr + b, packed, mask=real)
    sums = tl.cumsum(pages, 0)
    tl.store(ends_ptr, 0)
    tl.store(ends_ptr + 1 + b, sums, mask=real)
    share = tl.maximum(tl.cdiv(tl.max(sums, 0), programs), 1)
    for p in range(0, programs, 16):
        program = p + tl.arange(0, 16)
        before = tl.sum((sums[None, :] <= (program * share)[:, None]).to(tl.int32), 1)
        tl.store(owners_ptr + program, tl.minimum(before, sequences - 1), mask=program < programs)


@kernel
def balanced_kernel(
    query_ptr,
    pages_ptr,
    table_ptr,
    lengths_ptr,
    packed_ptr,
    ends_ptr,
    owners_ptr,
    ring_ptr,
    slots_ptr,
    partials_ptr,
    logs_ptr,
    query_stride,
    table_stride,
    sequences,
    programs,
    scale_log2,
    D: tl.constexpr,
    KEY_BITS: tl.constexpr,
    KEY_GROUPS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    WINDOW: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    RUN: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    STAGES: tl.constexpr,
    RING_TILE: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Grid ``(kv_heads, programs)``. The partial of program ``p`` over sequence ``b`` goes to slot ``p + b``.

    Slots do not collide: ``p`` and ``b`` only grow along the batch, one of them with every partial.
    """
    head = tl.program_id(0)
    program = tl.program_id(1)
    share = tl.cdiv(tl.load(ends_ptr + sequences), programs)
    low = program * share
    high = tl.minimum(low + share, tl.load(ends_ptr + sequences))
    b = tl.load(owners_ptr + program)
    while low < high:
        start = tl.load(ends_ptr + b)
        end = tl.load(ends_ptr + b + 1)
        stop = tl.minimum(high, end)
        length = tl.load(lengths_ptr + b)
        packed = tl.load(packed_ptr + b)
        wide = b.to(tl.int64)
        ring = ring_ptr
        if WINDOW:
            ring += (tl.load(slots_ptr + b).to(tl.int64) * HEADS + head) * (2 * RING * D)
        partial = (program + wide) * HEADS + head
        _segment(
            query_ptr + wide * TOKENS * query_stride + head * GROUP * D,
            query_stride,
            partials_ptr + partial * (TOKENS * GROUP * D),
            logs_ptr + partial * (TOKENS * GROUP),
            pages_ptr,
            table_ptr + wide * table_stride,
            ring,
            head,
            length,
            packed,
            low - start,
            tl.minimum(stop - start, tl.cdiv(packed, PAGE)),
            stop == end,
            scale_log2,
            D,
            KEY_BITS,
            KEY_GROUPS,
            PER_CHANNEL,
            VALUE_BITS,
            VALUE_GROUPS,
            SYMMETRIC,
            WINDOW,
            PAGE,
            RING,
            RUN,
            HEADS,
            TOKENS,
            GROUP,
            COLUMNS,
            KEY_PAD,
            VALUE_PAD,
            D_PAD,
            STAGES,
            RING_TILE,
            NATIVE,
        )
        low = stop
        b += 1


@kernel
def static_kernel(
    query_ptr,
    pages_ptr,
    table_ptr,
    lengths_ptr,
    packed_ptr,
    ends_ptr,
    ring_ptr,
    slots_ptr,
    partials_ptr,
    logs_ptr,
    query_stride,
    table_stride,
    splits,
    scale_log2,
    D: tl.constexpr,
    KEY_BITS: tl.constexpr,
    KEY_GROUPS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    WINDOW: tl.constexpr,
    PAGE: tl.constexpr,
    RING: tl.constexpr,
    RUN: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    STAGES: tl.constexpr,
    RING_TILE: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Grid ``(kv_heads, splits, sequences)``; the last split also reads the ring."""
    head = tl.program_id(0)
    split = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + b)
    packed = tl.load(packed_ptr + b)
    share = tl.cdiv(tl.load(ends_ptr + b + 1) - tl.load(ends_ptr + b), splits)
    pages = tl.cdiv(packed, PAGE)
    first = tl.minimum(split * share, pages)
    stop = tl.minimum(first + share, pages)
    last = split == splits - 1
    partial = (b * splits + split) * HEADS + head
    if (first >= stop) & ((not WINDOW) | (not last)):
        columns = tl.arange(0, COLUMNS)
        nothing = tl.full([COLUMNS], NOTHING, tl.float32)
        tl.store(logs_ptr + partial * (TOKENS * GROUP) + columns, nothing, mask=columns < TOKENS * GROUP)
    else:
        ring = ring_ptr
        if WINDOW:
            ring += (tl.load(slots_ptr + b).to(tl.int64) * HEADS + head) * (2 * RING * D)
        _segment(
            query_ptr + b * TOKENS * query_stride + head * GROUP * D,
            query_stride,
            partials_ptr + partial * (TOKENS * GROUP * D),
            logs_ptr + partial * (TOKENS * GROUP),
            pages_ptr,
            table_ptr + b * table_stride,
            ring,
            head,
            length,
            packed,
            first,
            stop,
            last,
            scale_log2,
            D,
            KEY_BITS,
            KEY_GROUPS,
            PER_CHANNEL,
            VALUE_BITS,
            VALUE_GROUPS,
            SYMMETRIC,
            WINDOW,
            PAGE,
            RING,
            RUN,
            HEADS,
            TOKENS,
            GROUP,
            COLUMNS,
            KEY_PAD,
            VALUE_PAD,
            D_PAD,
            STAGES,
            RING_TILE,
            NATIVE,
        )


@kernel
def combine_kernel(
    partials_ptr,
    logs_ptr,
    ends_ptr,
    out_ptr,
    signs_ptr,
    out_stride,
    splits,
    programs,
    sequences,
    BALANCED: tl.constexpr,
    ROTATED: tl.constexpr,
    CHUNK: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    LOG_D: tl.constexpr,
):
    """Join the partials of one query head; grid ``(sequences, kv_heads, tokens * group)``. Undoes the rotation."""
    b = tl.program_id(0)
    head = tl.program_id(1)
    column = tl.program_id(2)
    if BALANCED:
        share = tl.maximum(tl.cdiv(tl.load(ends_ptr + sequences), programs), 1)
        start = tl.load(ends_ptr + b)
        end = tl.load(ends_ptr + b + 1)
        first = start // share + b
        stop = tl.where(end > start, (end - 1) // share + b + 1, first)
    else:
        first = b * splits
        stop = first + splits
    channels = tl.arange(0, D_PAD)
    index = tl.arange(0, CHUNK)
    top = NOTHING
    total = 0.0
    out = tl.zeros([D_PAD], tl.float32)
    for i in range(first, stop, CHUNK):
        at = ((i + index).to(tl.int64) * HEADS + head) * (TOKENS * GROUP) + column
        logs = tl.load(logs_ptr + at, mask=i + index < stop, other=NOTHING)
        new_top = tl.maximum(top, tl.max(logs, 0))
        weights = tl.where(logs > NOTHING, tl.math.exp2(logs - new_top), 0.0)
        shrink = tl.math.exp2(top - new_top)
        mask = (weights > 0)[:, None] & (channels < D)[None, :]
        part = tl.load(partials_ptr + at[:, None] * D + channels[None, :], mask=mask, other=0.0)
        out = out * shrink + tl.sum(part * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        top = new_top
    out = out / tl.maximum(total, 1e-30)
    if ROTATED:
        out = tl.reshape(hadamard(tl.reshape(out, [1, D_PAD]), 1, D_PAD, LOG_D), [D_PAD])
        # The signs carry the transform's factor.
        out = out * tl.load(signs_ptr + channels)
    row = b.to(tl.int64) * TOKENS + column // GROUP
    at = out_ptr + row * out_stride + (head * GROUP + column % GROUP) * D + channels
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=channels < D)
