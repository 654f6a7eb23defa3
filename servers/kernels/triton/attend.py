"""Decode attention over packed pages: one warp serves all query heads of a KV head.

The words of a page are the first operand of every product and the query heads, padded to 8, are its columns: scores are
``K q^T`` and the output is ``V^T p^T``. Steps and lows stay outside of the products: a token's key step multiplies its
score and a token's value step its probability; lows enter as ``sum(q) * low`` and as a running sum of ``p * low``; a
channel's step multiplies the query. Everything is exact algebra on the stored numbers.

Each program leaves a partial result, normalised, with the base-2 logarithm of its sum; :func:`combine` joins them.
"""

import triton
import triton.language as tl

from kvload.servers.kernels.triton.numbers import (
    CODE_UNIT,
    POINTER16,
    POINTER32,
    codes_of,
    high_half,
    low_half,
    low_of,
    step_of,
    weight_of,
)

SHIFT = tl.constexpr(10.0)
"""Probabilities are ``2**(score - maximum + SHIFT)``: the factor cancels in the end, and keeps a probability times a
small step out of float16's subnormal range."""

QUERY_FACTOR = tl.constexpr(16.0)
"""Queries are this much larger inside a product, for the same reason."""

NOTHING = tl.constexpr(-1e30)
"""The logarithm of an empty sum."""


@triton.jit
def _exact(x, NATIVE: tl.constexpr):
    """An operand of a product; Triton's interpreter multiplies bfloat16 wrongly."""
    if not NATIVE:
        x = x.to(tl.float32)
    return x


@triton.jit
def _loaded(pointers, index, limit: tl.constexpr, padded: tl.constexpr, AXIS: tl.constexpr):
    """Load a tile whose axis ``AXIS`` is padded from ``limit`` to ``padded``; padding reads 0."""
    if limit == padded:
        found = tl.load(pointers)
    elif AXIS == 0:
        found = tl.load(pointers, mask=(index < limit)[:, None], other=0)
    elif AXIS == 1:
        found = tl.load(pointers, mask=(index < limit)[None, :], other=0)
    else:
        found = tl.load(pointers, mask=index < limit, other=0)
    return found


@triton.jit
def _segment(
    query_ptr,
    query_stride,
    partial_ptr,
    sum_ptr,
    pages_ptr,
    table_ptr,
    ring_ptr,
    head,
    length,
    packed,
    first,
    stop,
    ends,
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
    """Pages ``[first, stop)`` of one sequence and KV head and, where the sequence ends here, its ring: one partial."""
    KEYS: tl.constexpr = 16 // KEY_BITS
    VALUES: tl.constexpr = 16 // VALUE_BITS
    KEY_WORDS: tl.constexpr = D // KEYS
    VALUE_WORDS: tl.constexpr = D // VALUES
    KEY_SHARED: tl.constexpr = KEYS // KEY_GROUPS
    VALUE_SHARED: tl.constexpr = VALUES // VALUE_GROUPS
    VALUE_AT: tl.constexpr = PAGE * D * KEY_BITS // 8
    KEY_SIDE_AT: tl.constexpr = VALUE_AT + PAGE * D * VALUE_BITS // 8
    VALUE_SIDE_AT: tl.constexpr = KEY_SIDE_AT + (4 * D if PER_CHANNEL else 4 * PAGE * KEY_GROUPS)

    columns = tl.arange(0, COLUMNS)
    real = columns < TOKENS * GROUP
    query_rows = query_ptr + (columns // GROUP) * query_stride + (columns % GROUP) * D
    key_words = tl.arange(0, KEY_PAD)
    value_words = tl.arange(0, VALUE_PAD)
    tokens = tl.arange(0, PAGE)
    scale = scale_log2 * QUERY_FACTOR

    queries = ()
    for s in tl.static_range(KEYS):
        mask = real[None, :] & (key_words < KEY_WORDS)[:, None]
        x = tl.load(query_rows[None, :] + (s * KEY_WORDS + key_words)[:, None], mask=mask, other=0.0)
        queries = queries + ((x.to(tl.float32) * (scale / weight_of(KEY_BITS, s))).to(tl.float16),)
    query_sums = ()
    if not PER_CHANNEL:
        for s in tl.static_range(KEYS):
            stream_sum = tl.sum(queries[s].to(tl.float32), 0) * (weight_of(KEY_BITS, s) / QUERY_FACTOR)
            if s % KEY_SHARED == 0:
                query_sum = stream_sum
            else:
                query_sum += stream_sum
            if s % KEY_SHARED == KEY_SHARED - 1:
                query_sums = query_sums + (query_sum,)

    top = tl.full([COLUMNS], NOTHING, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    lows = ()
    for _ in tl.static_range(VALUE_GROUPS):
        lows = lows + (tl.zeros([COLUMNS], tl.float32),)
    sums = ()
    for _ in tl.static_range(VALUES):
        sums = sums + (tl.zeros([VALUE_PAD, COLUMNS], tl.float32),)

    for t in tl.range(first, stop, num_stages=STAGES):
        page = tl.load(table_ptr + t).to(tl.int64)
        run = pages_ptr + (page * HEADS + head) * RUN
        key_at = run.to(POINTER16) + tokens[:, None] * KEY_WORDS + key_words[None, :]
        words = _loaded(key_at, key_words, KEY_WORDS, KEY_PAD, 1)
        key_side = (run + KEY_SIDE_AT).to(POINTER32)
        if PER_CHANNEL:
            scores = tl.zeros([PAGE, COLUMNS], tl.float32)
            zero = tl.zeros([1, COLUMNS], tl.float32)
            for s in tl.static_range(KEYS):
                side = _loaded(key_side + s * KEY_WORDS + key_words, key_words, KEY_WORDS, KEY_PAD, 2)
                scores = tl.dot(codes_of(words, KEY_BITS, s, NATIVE), queries[s] * low_half(side)[:, None], scores)
                zero += tl.dot(high_half(side)[None, :], queries[s]) * weight_of(KEY_BITS, s)
            # Only whole pages that lie before every query: no mask.
            scores = scores * (CODE_UNIT / QUERY_FACTOR) + zero * (1.0 / QUERY_FACTOR)
        else:
            scores = tl.zeros([PAGE, COLUMNS], tl.float32)
            for s in tl.static_range(KEYS):
                if s % KEY_SHARED == 0:
                    part = tl.zeros([PAGE, COLUMNS], tl.float32)
                part = tl.dot(codes_of(words, KEY_BITS, s, NATIVE), queries[s], part)
                if s % KEY_SHARED == KEY_SHARED - 1:
                    side = tl.load(key_side + (s // KEY_SHARED) * PAGE + tokens)
                    scores += part * (step_of(side, SYMMETRIC) * (CODE_UNIT / QUERY_FACTOR))[:, None]
                    scores += query_sums[s // KEY_SHARED][None, :] * low_of(side, SYMMETRIC)[:, None]
            position = t * PAGE + tokens
            if TOKENS == 1:
                scores = tl.where((position < length)[:, None], scores, NOTHING)
            else:
                seen = length - (TOKENS - 1) + columns // GROUP
                scores = tl.where(position[:, None] < seen[None, :], scores, NOTHING)
        new_top = tl.maximum(top, tl.max(scores, 0))
        shrink = tl.math.exp2(top - new_top)
        weights = tl.math.exp2(scores - (new_top - SHIFT)[None, :])
        top = new_top
        total = total * shrink + tl.sum(weights, 0)
        value_at = (run + VALUE_AT).to(POINTER16) + tokens[None, :] * VALUE_WORDS + value_words[:, None]
        words = _loaded(value_at, value_words, VALUE_WORDS, VALUE_PAD, 0)
        new_lows = ()
        new_sums = ()
        for s in tl.static_range(VALUES):
            if s % VALUE_SHARED == 0:
                side = tl.load((run + VALUE_SIDE_AT).to(POINTER32) + (s // VALUE_SHARED) * PAGE + tokens)
                if not PER_CHANNEL:
                    # A page's unwritten tokens have weight 0, but what lies there may be read as NaN.
                    side = tl.where(t * PAGE + tokens < length, side, 0)
                low = tl.sum(weights * low_of(side, SYMMETRIC)[:, None], 0)
                new_lows = new_lows + (lows[s // VALUE_SHARED] * shrink + low,)
                scaled = (weights * step_of(side, SYMMETRIC)[:, None]).to(tl.float16)
            # Added outside of the product: a tensor core's own running sum is cut off instead of rounded, which over
            # thousands of tokens is more than the output may lose.
            product = tl.dot(codes_of(words, VALUE_BITS, s, NATIVE), scaled)
            new_sums = new_sums + (tl.fma(sums[s], tl.broadcast_to(shrink[None, :], product.shape), product),)
        lows = new_lows
        sums = new_sums

    if WINDOW:
        if ends:
            channels = tl.arange(0, D_PAD)
            query_mask = real[None, :] & (channels < D)[:, None]
            query = tl.load(query_rows[None, :] + channels[:, None], mask=query_mask, other=0.0)
            tile = tl.arange(0, RING_TILE)
            for t in tl.range(packed, length, RING_TILE):
                position = t + tile
                inside = position < length
                slot = position % RING
                key_mask = inside[:, None] & (channels < D)[None, :]
                key = tl.load(ring_ptr + slot[:, None] * D + channels[None, :], mask=key_mask, other=0.0)
                scores = tl.dot(_exact(key, NATIVE), _exact(query, NATIVE)) * scale_log2
                if TOKENS == 1:
                    scores = tl.where(inside[:, None], scores, NOTHING)
                else:
                    seen = length - (TOKENS - 1) + columns // GROUP
                    scores = tl.where(position[:, None] < seen[None, :], scores, NOTHING)
                new_top = tl.maximum(top, tl.max(scores, 0))
                shrink = tl.math.exp2(top - new_top)
                weights = tl.math.exp2(scores - (new_top - SHIFT)[None, :])
                top = new_top
                total = total * shrink + tl.sum(weights, 0)
                operand = _exact(weights.to(key.dtype), NATIVE)
                new_lows = ()
                new_sums = ()
                for g in tl.static_range(VALUE_GROUPS):
                    new_lows = new_lows + (lows[g] * shrink,)
                for s in tl.static_range(VALUES):
                    at = ring_ptr + (RING + slot)[None, :] * D + (s * VALUE_WORDS + value_words)[:, None]
                    value_mask = inside[None, :] & (value_words < VALUE_WORDS)[:, None]
                    value = _exact(tl.load(at, mask=value_mask, other=0.0), NATIVE)
                    # In the unit of the codes' sums.
                    unit = weight_of(VALUE_BITS, s) / CODE_UNIT
                    new_sums = new_sums + (sums[s] * shrink[None, :] + tl.dot(value, operand) * unit,)
                lows = new_lows
                sums = new_sums

    inverse = 1.0 / tl.maximum(total, 1e-30)
    for s in tl.static_range(VALUES):
        at = partial_ptr + columns[None, :] * D + (s * VALUE_WORDS + value_words)[:, None]
        mask = real[None, :] & (value_words < VALUE_WORDS)[:, None]
        found = sums[s] * (CODE_UNIT / weight_of(VALUE_BITS, s)) + lows[s // VALUE_SHARED][None, :]
        tl.store(at, found * inverse[None, :], mask=mask)
    logarithm = top - SHIFT + tl.math.log2(tl.maximum(total, 1e-30))
    tl.store(sum_ptr + columns, tl.where(total > 0, logarithm, NOTHING), mask=real)
