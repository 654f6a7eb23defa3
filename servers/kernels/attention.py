"""Attention of a few queries over keys and values that come in blocks.

Shapes: ``b`` sequences, ``H`` key-value heads, ``G`` query heads of each, ``t`` queries a sequence, ``n`` keys a block,
``D`` head size. Queries and outputs are ``(b, H, G, t, D)``, keys and values ``(b, H, n, D)``, masks are added to the
scores and broadcast to ``(b, H, G, t, n)``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from kvload.servers.kernels.layout import CacheGeometry

SCORE_BYTES = 64 << 20
"""Most bytes of float32 scores that exist at once; more queries than that allows are taken in turn."""

Block = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Keys, values and mask of some keys."""

Load = Callable[[], Block]
"""Reads a block; what it returns is valid until the next one is read."""


@dataclass(frozen=True)
class AttentionExtras:
    """What a layer adds to plain causal attention.

    Attributes:
        scaling: factor on the scores.
        sliding_window: newest positions a query may see, itself included; None for all.
        softcap: tanh cap on the scores; None for none.
        sinks: per query head logit of an empty slot, ``(query_heads,)``; None for none.
    """

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether scores are neither capped nor beside an empty slot."""
        return self.softcap is None and self.sinks is None

    def grouped_sinks(self, geometry: CacheGeometry) -> torch.Tensor | None:
        """The sinks by key-value head, ``(kv_heads, query heads of each, 1)``."""
        return None if self.sinks is None else self.sinks.view(geometry.kv_heads, -1, 1)


@dataclass(frozen=True)
class Sight:
    """How far back a query sees.

    Attributes:
        sliding_window: newest positions a query may see, itself included; None for all.
        recent: the same once more, for the cache's method rather than the model's layer.
        sinks: positions below this are exempt from ``recent``.
    """

    sliding_window: int | None = None
    recent: int | None = None
    sinks: int = 0

    def sees_all(self, tokens: int) -> bool:
        """Whether every query among this many tokens sees all that come before it."""
        limits = (self.sliding_window, self.recent)
        return all(limit is None or tokens <= limit for limit in limits)

    def mask(self, query_position: torch.Tensor, key_position: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores: 0 for a key the query sees, minus infinity for others.

        Args:
            query_position, key_position: logical positions that broadcast; a negative key position is an empty slot.
            dtype: of the mask.
        """
        seen = (key_position <= query_position) & (key_position >= 0)
        if self.sliding_window is not None:
            seen &= key_position > query_position - self.sliding_window
        if self.recent is not None:
            seen &= (key_position > query_position - self.recent) | (key_position < self.sinks)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def attend(
    query: torch.Tensor,
    blocks: Sequence[Load],
    *,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    together: "Workspace | None" = None,
) -> torch.Tensor:
    """Softmax attention, one block of keys after the other, with a running maximum and sum.

    The running form is that of FlashAttention (arXiv 2205.14135); no more than one block need exist at a time.

    Args:
        query: ``(b, H, G, t, D)``.
        blocks: at least one; every query sees at least one key in all of them together.
        scaling, softcap: as in ``AttentionExtras``.
        sinks: logits of an empty slot that broadcast to ``(b, H, G, t)``; None for none.
        together: where the blocks are joined, if they are few enough and stay valid long enough to be read at once.

    Returns:
        ``(b, H, G, t, D)`` in the query's dtype.
    """
    plain = softcap is None and sinks is None
    if len(blocks) == 1 and plain:
        return _fused(query, *blocks[0](), scaling)
    if together is not None and plain:
        keys, values, masks = zip(*(load() for load in blocks), strict=True)
        wide = [mask.expand(len(query), -1, -1, query.shape[3], -1) for mask in masks]
        key, value = (together.joined(index, side, query.dtype) for index, side in enumerate((keys, values)))
        return _fused(query, key, value, torch.cat(wide, -1), scaling)
    running = RunningSoftmax(query, scaling, softcap, sinks)
    for load in blocks:
        running.add(*load())
    return running.result()


class Workspace:
    """Memory that blocks are joined in, used again and again: fresh memory costs more in page faults than the copy."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(0), torch.empty(0)]

    def joined(self, side: int, blocks: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Blocks ``(b, H, n, D)`` as one, valid until the next call with the same ``side`` (0 or 1)."""
        # Blocks come as views of (b, n, H, D): joined in that order whole tokens are copied.
        tokens_first = [block.to(dtype).transpose(1, 2) for block in blocks]
        b, _, heads, size = tokens_first[0].shape
        shape = b, sum(block.shape[1] for block in tokens_first), heads, size
        count = b * shape[1] * heads * size
        buffer = self._buffers[side]
        if buffer.numel() < count or buffer.dtype != dtype:
            buffer = self._buffers[side] = torch.empty(count, dtype=dtype, device=blocks[0].device)
        out = buffer[:count].view(shape)
        torch.cat(tokens_first, 1, out=out)
        return out.transpose(1, 2)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    b, heads, groups, tokens, size = query.shape
    key, value = key.to(query.dtype), value.to(query.dtype)
    mask = mask.to(query.dtype)
    if tokens == 1:
        # The query heads of a key-value head stand in as queries of one head: nothing is repeated.
        mask = mask.squeeze(3).expand(b, -1, -1, -1)
        out = functional.scaled_dot_product_attention(query.squeeze(3), key, value, attn_mask=mask, scale=scaling)
        return out.unsqueeze(3)
    mask = mask.expand(b, heads, 1, tokens, -1).flatten(0, 1)
    key, value = (x.flatten(0, 1).unsqueeze(1).expand(-1, groups, -1, -1) for x in (key, value))
    out = functional.scaled_dot_product_attention(query.flatten(0, 1), key, value, attn_mask=mask, scale=scaling)
    return out.view(b, heads, groups, tokens, size)


class RunningSoftmax:
    """Attention over blocks that are seen once: the maximum, the sum and the output so far.

    Args:
        query, scaling, softcap, sinks: see :func:`attend`.
    """

    def __init__(self, query: torch.Tensor, scaling: float, softcap: float | None, sinks: torch.Tensor | None) -> None:
        self._dtype = query.dtype
        self._query = query.float() * scaling
        self._softcap = softcap
        shape = query.shape[:4]
        if sinks is None:
            self._top = torch.full(shape, -torch.inf, device=query.device)
            self._total = torch.zeros(shape, device=query.device)
        else:
            self._top = sinks.float().expand(shape).clone()
            self._total = torch.ones(shape, device=query.device)
        self._out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)

    def add(self, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> None:
        """Attend over one more block."""
        b, heads, groups, tokens, _ = self._query.shape
        step = max(1, SCORE_BYTES // (4 * b * heads * groups * key.shape[2]))
        value = value.float()
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            masked = mask if mask.shape[3] == 1 else mask[:, :, :, part]
            weights = scores(self._query[:, :, :, part], key, masked, self._softcap)
            top = torch.maximum(self._top[..., part], weights.amax(-1))
            # A query that has seen nothing yet has the maximum -inf; 0 in its place keeps differences numbers.
            base = top.masked_fill(top == -torch.inf, 0.0)
            weights.sub_(base[..., None]).exp_()
            shrink = (self._top[..., part] - base).exp_()
            self._total[..., part] = self._total[..., part] * shrink + weights.sum(-1)
            self._out[..., part, :] = self._out[..., part, :] * shrink[..., None] + weighted(weights, value)
            self._top[..., part] = top

    def result(self) -> torch.Tensor:
        """The attention over all blocks added, ``(b, H, G, t, D)``."""
        return (self._out / self._total[..., None]).to(self._dtype)


def scores(scaled: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Masked scores ``(b, H, G, t, n)`` in float32 of queries that have the scaling in them."""
    b, heads, groups, tokens, size = scaled.shape
    # Keys are laid out head by head first: a product with their transposed view would copy number by number.
    flat = key.float().reshape(b * heads, -1, size)
    found = torch.bmm(scaled.reshape(b * heads, groups * tokens, size), flat.transpose(1, 2))
    if softcap is not None:
        found = found.div_(softcap).tanh_().mul_(softcap)
    return found.view(b, heads, groups, tokens, -1).add_(mask)


def weighted(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Weights ``(b, H, G, t, n)`` times values ``(b, H, n, D)``: ``(b, H, G, t, D)``."""
    b, heads, groups, tokens, n = weights.shape
    flat = value.reshape(b * heads, n, -1)
    return torch.bmm(weights.reshape(b * heads, groups * tokens, n), flat).view(b, heads, groups, tokens, -1)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention inside one prompt of which nothing is stored yet.

    Args:
        query: ``(1, H, G, t, D)``.
        key, value: ``(1, H, t, D)``.

    Returns:
        ``(1, H, G, t, D)``.
    """
    groups = query.shape[2]
    key, value = (x[0].unsqueeze(1).expand(-1, groups, -1, -1) for x in (key, value))
    return functional.scaled_dot_product_attention(query[0], key, value, is_causal=True, scale=scaling)[None]


def by_head(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """One sequence's queries ``(t, H * G, D)`` as ``(1, H, G, t, D)``."""
    return query.view(query.shape[0], kv_heads, -1, query.shape[2]).permute(1, 2, 0, 3)[None]


def by_token(out: torch.Tensor) -> torch.Tensor:
    """The reverse of :func:`by_head`."""
    return out[0].permute(2, 0, 1, 3).flatten(1, 2)


def attend_judged(
    query: torch.Tensor,
    keys: Sequence[Callable[[], tuple[torch.Tensor, torch.Tensor]]],
    values: Sequence[Callable[[], torch.Tensor]],
    *,
    judges: int,
    extras: AttentionExtras,
    largest: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention that also says how much weight each key received.

    Keys and values are read in blocks, all keys before the first values; what exists at once is a block, and the
    scores of as many queries as :data:`SCORE_BYTES` allows.

    Args:
        query: ``(b, H, G, t, D)``.
        keys: blocks of keys ``(b, H, n, D)`` with their masks.
        values: the same tokens' values.
        judges: first query whose weights count.
        extras: what the layer adds.
        largest: whether a key's weight from the query heads that share it is the largest one, or their sum.

    Returns:
        the output ``(b, H, G, t, D)`` in the query's dtype; the weights each key received, summed over the queries
        from ``judges`` on, ``(b, H, N)`` with all blocks side by side.
    """
    b, heads, groups, tokens, _ = query.shape
    sinks = None if extras.sinks is None else extras.sinks.float().view(heads, groups, 1)
    scaled = query.float() * extras.scaling
    out = torch.empty_like(query)
    received = torch.zeros(())
    start = 0
    step = tokens
    while start < tokens:
        found: list[torch.Tensor] = []
        for load in keys:
            key, mask = load()
            if start == 0 and not found:
                columns = key.shape[2] * len(keys)
                step = max(1, min(tokens, SCORE_BYTES // (4 * b * heads * groups * columns)))
            part = slice(start, start + step)
            masked = mask if mask.shape[3] == 1 else mask[:, :, :, part]
            found.append(scores(scaled[:, :, :, part], key, masked, extras.softcap))
        part = slice(start, start + step)
        together = found[0] if len(found) == 1 else torch.cat(found, -1)
        if sinks is None:
            weights = together.softmax(-1)
        else:
            total = torch.logaddexp(together.logsumexp(-1), sinks)
            weights = (together - total[..., None]).exp_()
        column = 0
        summed = torch.zeros(scaled[:, :, :, part].shape, device=query.device)
        for read in values:
            value = read()
            summed += weighted(weights[..., column : column + value.shape[2]], value.float())
            column += value.shape[2]
        out[:, :, :, part] = summed.to(query.dtype)
        if start + step > judges:
            judged = weights[..., max(0, judges - start) :, :]
            received = received.to(query.device) + (judged.amax(2) if largest else judged.sum(2)).sum(2)
        start += step
    return out, received.expand(b, heads, -1) if received.dim() else torch.zeros(b, heads, column, device=query.device)
