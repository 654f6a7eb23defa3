"""The torch reference of packed pages: what the Triton kernels are tested against, and what runs without a GPU.

Shapes: pages ``(pages, kv_heads, run_bytes)`` uint8; rings ``(slots, kv_heads, 2, RING_TOKENS, head_size)`` in the
model's dtype, keys before values; new keys and values ``(tokens, kv_heads, head_size)``.
"""

import torch

from kvload.servers.kernels.formats import PAGE_TOKENS, RING_TOKENS, Codes, PageFormat, packed_tokens
from kvload.servers.kernels.quantise import affine


def quantise(x: torch.Tensor, codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Round vectors to codes.

    Args:
        x: ``(..., channels)``.

    Returns:
        codes ``(..., channels)`` uint8 and side data ``(..., groups)`` int32.
    """
    if codes.symmetric:
        wide = x.float()
        scale = wide.abs().amax(-1) / 127.0
        scale = torch.where(scale == 0, 1.0, scale)
        found = (wide / scale[..., None]).round_().to(torch.int16) + codes.zero
        return found.to(torch.uint8), scale.view(torch.int32)[..., None]
    found, step, low = affine(x.reshape(*x.shape[:-1], codes.groups, -1), codes.bits)
    return found.flatten(-2), torch.stack([step, low], -1).view(torch.int32)[..., 0]


def steps(side: torch.Tensor, codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and lows, float32, of side data; ``(code - codes.zero) * step + low`` is the number."""
    if codes.symmetric:
        scale = side.view(torch.float32)
        return scale, torch.zeros_like(scale)
    both = side.contiguous().view(torch.float16).view(*side.shape, 2).float()
    return both[..., 0], both[..., 1]


def to_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes ``(..., channels)`` as bytes ``(..., channels * bits / 8)``; see :mod:`kvload.servers.kernels.formats`."""
    words = torch.zeros((), dtype=torch.int32, device=codes.device)
    for stream, part in enumerate(codes.to(torch.int32).chunk(16 // bits, -1)):
        words = words | (part << (bits * stream))
    # The upper half may look negative: taken apart as bytes it does not matter.
    return torch.stack([words & 255, words >> 8], -1).to(torch.uint8).flatten(-2)


def from_words(data: torch.Tensor, bits: int) -> torch.Tensor:
    """The reverse of :func:`to_words`, float32."""
    pairs = data.to(torch.int32).view(*data.shape[:-1], data.shape[-1] // 2, 2)
    words = pairs[..., 0] | (pairs[..., 1] << 8)
    return torch.cat([(words >> (bits * stream)) & (2**bits - 1) for stream in range(16 // bits)], -1).float()


def _unflattened(x: torch.Tensor, parts: int) -> torch.Tensor:
    """The last dimension as ``parts`` rows."""
    return x.view(*x.shape[:-1], parts, x.shape[-1] // parts)


def _parts(fmt: PageFormat, runs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Key words, value words, key side data and value side data of runs ``(..., run_bytes)``, sharing their memory."""
    words = _unflattened(runs[..., : fmt.value_offset], PAGE_TOKENS)
    value_words = _unflattened(runs[..., fmt.value_offset : fmt.key_side_offset], PAGE_TOKENS)
    side = runs[..., fmt.key_side_offset : fmt.value_side_offset].view(torch.int32)
    if not fmt.key.per_channel:
        side = _unflattened(side, fmt.key.groups)
    value_side = runs[..., fmt.value_side_offset : fmt.run_bytes].view(torch.int32)
    return words, value_words, side, _unflattened(value_side, fmt.value.groups)


def store_tokens(
    fmt: PageFormat, pages: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Write tokens of a format without a window.

    Args:
        slots: ``(tokens,)``, ``page * PAGE_TOKENS + offset`` of each; negative: the token is not stored.
    """
    real = slots >= 0
    page, offset = slots[real] // PAGE_TOKENS, slots[real] % PAGE_TOKENS
    words, value_words, side, value_side = _parts(fmt, pages)
    for x, codes, target, target_side in (
        (key, fmt.key, words, side),
        (value, fmt.value, value_words, value_side),
    ):
        found, steps_of = quantise(x[real], codes)
        target[page, :, offset] = to_words(found, codes.bits)
        target_side[page, :, :, offset] = steps_of


def pack_pages(fmt: PageFormat, pages: torch.Tensor, ids: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Write whole pages of a format with a window.

    Args:
        ids: ``(n,)`` page ids.
        key, value: ``(n, PAGE_TOKENS, kv_heads, head_size)``.
    """
    words, value_words, side, value_side = _parts(fmt, pages)
    found, channel_side = quantise(key.permute(0, 2, 3, 1), fmt.key)
    words[ids] = to_words(found.transpose(2, 3), fmt.key.bits)
    side[ids] = channel_side[..., 0]
    found, token_side = quantise(value.transpose(1, 2), fmt.value)
    value_words[ids] = to_words(found, fmt.value.bits)
    value_side[ids] = token_side.transpose(2, 3)


def load_pages(fmt: PageFormat, pages: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, float32 ``(n, kv_heads, PAGE_TOKENS, head_size)``, of pages ``ids (n,)``."""
    words, value_words, side, value_side = _parts(fmt, pages[ids])
    step, low = steps(side, fmt.key)
    if fmt.key.per_channel:
        key = from_words(words, fmt.key.bits) * step[:, :, None] + low[:, :, None]
    else:
        key = _scaled(words, step, low, fmt.key)
    return key, _scaled(value_words, *steps(value_side, fmt.value), fmt.value)


def _scaled(words: torch.Tensor, step: torch.Tensor, low: torch.Tensor, codes: Codes) -> torch.Tensor:
    """Words ``(..., tokens, bytes)`` with steps and lows ``(..., groups, tokens)`` as numbers."""
    grouped = _unflattened(from_words(words, codes.bits) - codes.zero, step.shape[-2])
    found = grouped * step.transpose(-1, -2)[..., None] + low.transpose(-1, -2)[..., None]
    return found.flatten(-2)


def store_windowed(
    fmt: PageFormat,
    pages: torch.Tensor,
    row: torch.Tensor,
    ring: torch.Tensor,
    start: int,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """Write consecutive tokens of one sequence: pages that become full are packed, the newest tokens go to the ring.

    Args:
        row: ``(blocks,)`` the sequence's page ids.
        ring: its ring, ``(kv_heads, 2, RING_TOKENS, head_size)``.
        start: position of the first token.
    """
    stop = start + len(key)
    first = start // PAGE_TOKENS * PAGE_TOKENS
    if (full := stop // PAGE_TOKENS * PAGE_TOKENS) > first:
        older = torch.arange(first, start, device=ring.device) % RING_TOKENS
        both = []
        for side, new in enumerate((key, value)):
            joined = torch.cat([ring[:, side, older].transpose(0, 1), new[: full - start]])
            both.append(joined.view(-1, PAGE_TOKENS, *joined.shape[1:]))
        pack_pages(fmt, pages, row[first // PAGE_TOKENS : full // PAGE_TOKENS], *both)
    newest = slice(max(0, len(key) - RING_TOKENS), None)
    slots = torch.arange(start, stop, device=ring.device)[newest] % RING_TOKENS
    ring[:, 0, slots] = key[newest].transpose(0, 1)
    ring[:, 1, slots] = value[newest].transpose(0, 1)


def load_sequence(
    fmt: PageFormat,
    pages: torch.Tensor,
    row: torch.Tensor,
    length: int,
    ring: torch.Tensor | None = None,
    ring_from: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention sees of one sequence: keys and values, float32 ``(kv_heads, length, head_size)``.

    Args:
        row: ``(blocks,)`` its page ids.
        length: tokens stored.
        ring: its ring; None for formats without a window.
        ring_from: first position that was written to the ring.
    """
    packed = packed_tokens(length, ring_from) if fmt.window else length
    blocks = -(-packed // PAGE_TOKENS)
    both = [x.transpose(0, 1).flatten(1, 2)[:, :packed] for x in load_pages(fmt, pages, row[:blocks].long())]
    if ring is not None and packed < length:
        slots = torch.arange(packed, length, device=ring.device) % RING_TOKENS
        both = [torch.cat([x, ring[:, side, slots].float()], 1) for side, x in enumerate(both)]
    return both[0], both[1]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention of a sequence's newest queries over all its keys, in the keys' precision.

    Args:
        query: ``(tokens, query_heads, head_size)``, the last tokens of the sequence.
        key, value: ``(kv_heads, length, head_size)``.

    Returns:
        ``(tokens, query_heads, head_size)`` in the keys' dtype.
    """
    tokens, heads, size = query.shape
    length = key.shape[1]
    grouped = query.to(key.dtype).view(tokens, key.shape[0], -1, size)
    scores = torch.einsum("thgd,hnd->thgn", grouped, key) * scaling
    position = torch.arange(length, device=key.device)
    own = position[length - tokens :]
    scores = scores.masked_fill((position > own[:, None])[:, None, None], -torch.inf)
    return torch.einsum("thgn,hnd->thgd", scores.softmax(-1), value).reshape(tokens, heads, size)
