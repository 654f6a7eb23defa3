"""Pages of two precisions with tables of their own for every layer and head."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from kvload.servers.kernels import attention
from kvload.servers.kernels.api import KernelSet, Step
from kvload.servers.kernels.attention import AttentionExtras, Sight
from kvload.servers.kernels.layout import CacheGeometry, Field, PageLayout

HIGH, LOW = 0, 1
"""Which of a pair is meant: the high precision's, or the low one's."""


class PrecisionCodec(Protocol):
    """How tokens become bytes at one precision."""

    def fields(self, tokens: int, head_dim: int) -> tuple[Field, ...]:
        """The arrays of a page of one head: keys, scales, values, scales, score and position."""

    def page_tokens(self, page_bytes: int, head_dim: int) -> int:
        """Tokens that fit into a page."""

    def encode(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The first four fields."""

    def decode_key(self, data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Keys in float32."""

    def decode_value(self, data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Values in float32."""


class HeadRule(Protocol):
    """Precisions and thresholds; see :class:`kvload.servers.embedded.compression.leankv.LeanKV`."""

    @property
    def low(self) -> float:
        """Forgotten below this multiple of an even share of attention."""

    @property
    def high(self) -> float:
        """Low precision below this multiple."""

    @property
    def buffer(self) -> int:
        """Newest tokens that keep the high precision; queries that judge a prompt."""

    @property
    def precisions(self) -> "tuple[PrecisionCodec, PrecisionCodec]":
        """High and low."""

    @property
    def page_alignment(self) -> int:
        """Bytes that every field of a page starts at a multiple of."""

    def page_bytes(self, head_dim: int) -> int:
        """Bytes of the pages of both."""


Pair = tuple[torch.Tensor, torch.Tensor]
SCORE, POSITION = 0, 1


@dataclass
class Level:
    """One precision in the cache.

    Attributes:
        end: the end of the tables its pages are at.
        precision: how its tokens are encoded.
        tokens: of a page.
        layout: of a page.
    """

    end: int
    precision: PrecisionCodec
    tokens: int
    layout: PageLayout


@dataclass
class Group:
    """Some sequences of one step: many with one generated token, or one with a part of its prompt.

    Attributes:
        sequences: which of the step's sequences.
        tokens: rows of the packed batch.
        pages: of each end, ``(layers, b, heads, n)``.
        counts: tokens of each end before the step, and after it as layers are carried out, ``(layers, b, heads)``.
        length: ``(b, 1)`` tokens before the step.
        prompt: ``(b, 1)`` length of the prompt.
    """

    sequences: list[int]
    tokens: torch.Tensor
    pages: Pair
    counts: Pair
    length: torch.Tensor
    prompt: torch.Tensor


class HeadKernels(KernelSet[Group, Group, None]):
    """A page holds tokens of one head in one layer, at one of two precisions.

    While a prompt is read all its tokens are at high precision; a chunk sees itself exactly and earlier chunks as
    stored. A generated token is stored first, at high precision, and read as stored.

    Args:
        geometry: shape of the model's keys and values.
        rule: precisions and thresholds.
    """

    stores_first = True

    def __init__(self, geometry: CacheGeometry, rule: HeadRule) -> None:
        super().__init__(geometry)
        self.rule = rule
        self.page_bytes = rule.page_bytes(geometry.head_dim)
        high, low = rule.precisions
        self.high_level = self._level(HIGH, high)
        self.low_level = self._level(LOW, low)

    def _level(self, end: int, precision: PrecisionCodec) -> Level:
        head_dim = self.geometry.head_dim
        tokens = precision.page_tokens(self.page_bytes, head_dim)
        layout = PageLayout(precision.fields(tokens, head_dim), self.page_bytes, self.rule.page_alignment)
        return Level(end, precision, tokens, layout)

    def bind(self, storage: torch.Tensor) -> None:
        """See the base class; there is a single plane."""
        super().bind(storage)
        self.rows = storage[0]
        self.null_page, self.waste_page = len(self.rows) - 2, len(self.rows) - 1

    def limit_scratch(self, blocks: int) -> None:
        """Read at most this many pages at once, but always one of each head."""
        self._scratch_blocks = blocks

    def store(self, layer: int, step: Step[Group, Group, None], key: torch.Tensor, value: torch.Tensor) -> None:
        """Generated tokens; a prompt's are stored by its attention, whose weights are their scores."""
        for group in step.decodes:
            self._store_single(layer, group, key.index_select(0, group.tokens), value.index_select(0, group.tokens))

    def _meta(self, level: Level, pages: torch.Tensor) -> torch.Tensor:
        """Scores and positions of pages ``(b, heads, n)`` as ``(b, heads, slots, 2)``."""
        return level.layout.take(self.rows, "meta", pages).flatten(2, 3)

    def _judged(self, position: torch.Tensor, length: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """How many judging queries saw the tokens at these positions, of a sequence of this length."""
        first = torch.maximum(position, prompt - self.rule.buffer)
        return (prompt - first).clamp_(min=0) + length - torch.maximum(position, prompt)

    def _weakest(self, level: Level, layer: int, group: Group) -> Pair:
        """Significance and slot of the least significant token behind the buffer, ``(b, heads)`` each."""
        meta = self._meta(level, group.pages[level.end][layer])
        position = meta[..., POSITION]
        length, prompt = group.length[..., None], group.prompt[..., None]
        mean = meta[..., SCORE] / self._judged(position, length, prompt)
        slots = torch.arange(position.shape[-1], device=position.device)
        old = (slots < group.counts[level.end][layer][..., None]) & (position <= length - self.rule.buffer)
        found = mean.masked_fill_(~old, torch.inf).min(-1)
        return found.values, found.indices

    def _spots(self, level: Level, layer: int, group: Group, slots: torch.Tensor) -> Pair:
        pages = group.pages[level.end][layer].gather(2, (slots // level.tokens)[..., None])[..., 0]
        return pages, slots % level.tokens

    def _store_single(self, layer: int, group: Group, key: torch.Tensor, value: torch.Tensor) -> None:
        """One page event a head: the new token overwrites the weakest one, pushes it down a level, or is appended."""
        high_mean, high_slot = self._weakest(self.high_level, layer, group)
        low_mean, low_slot = self._weakest(self.low_level, layer, group)
        forget = self.rule.low / group.length
        prune = (high_mean < forget) & (high_mean < low_mean)
        demote = ~prune & (high_mean < self.rule.high / group.length)
        replace = demote & (low_mean < forget)
        high_count, low_count = (counts[layer] for counts in group.counts)
        victim = self._spots(self.high_level, layer, group, torch.where(prune | demote, high_slot, 0))
        freed = self._spots(self.high_level, layer, group, torch.where(prune | demote, high_slot, high_count))
        target = self._spots(self.low_level, layer, group, torch.where(replace, low_slot, low_count))
        target = torch.where(demote, target[0], self.waste_page), target[1]
        old = [view[victim] for view in self.high_level.layout.views(self.rows)]
        precision = self.high_level.precision
        self.write(self.low_level, target, self.lowered(old))
        meta = torch.zeros((*high_count.shape, 2), device=key.device)
        meta[..., POSITION] = group.length
        self.write(self.high_level, freed, (*precision.encode(key, value), meta))
        high_count += ~(prune | demote)
        low_count += demote & ~replace

    def write(self, level: Level, spots: Pair, parts: tuple[torch.Tensor, ...]) -> None:
        for view, part in zip(level.layout.views(self.rows), parts, strict=True):
            view.index_put_(spots, part)

    def attend_decode(
        self,
        layer: int,
        group: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Over all tokens at both precisions; each adds what it received to its score."""
        del key, value
        query = query.index_select(0, group.tokens)
        sight = Sight(extras.sliding_window)
        keys: list[Callable[[], Pair]] = []
        values: list[Callable[[], torch.Tensor]] = []
        metas = []
        for level in (self.high_level, self.low_level):
            pages = group.pages[level.end][layer]
            meta = self._meta(level, pages)
            slots = torch.arange(meta.shape[2], device=meta.device)
            position = meta[..., POSITION].masked_fill(slots >= group.counts[level.end][layer][..., None], -1)
            mask = sight.mask(group.length[..., None], position, torch.float32)[:, :, None, None]
            self._add_blocks(level, pages, mask, keys, values)
            metas.append((level, pages, meta))
        attended, received = attention.attend_judged(
            query.view(-1, *self.grouped), keys, values, judges=0, extras=extras, largest=True
        )
        column = 0
        for level, pages, meta in metas:
            meta[..., SCORE] += received[..., column : column + meta.shape[2]]
            column += meta.shape[2]
            level.layout.view(self.rows, "meta").index_put_((pages,), meta.view(*pages.shape, level.tokens, 2))
        return attended.flatten(1, 3)

    def _add_blocks(
        self,
        level: Level,
        pages: torch.Tensor,
        mask: torch.Tensor,
        keys: list[Callable[[], Pair]],
        values: list[Callable[[], torch.Tensor]],
    ) -> None:
        """Readers of pages ``(b, heads, n)``, a bounded number at a time."""
        step = max(1, self._scratch_blocks // (pages.shape[0] * pages.shape[1]))
        for start in range(0, pages.shape[2], step):
            part = pages[:, :, start : start + step]
            seen = mask[..., start * level.tokens : (start + part.shape[2]) * level.tokens]
            keys.append(partial(self._keys, level, part, seen))
            values.append(partial(self._values, level, part))

    def _keys(self, level: Level, pages: torch.Tensor, mask: torch.Tensor) -> Pair:
        data, scale = (level.layout.take(self.rows, x, pages).flatten(2, 3) for x in ("key", "key_scale"))
        return level.precision.decode_key(data, scale), mask

    def _values(self, level: Level, pages: torch.Tensor) -> torch.Tensor:
        data, scale = (level.layout.take(self.rows, x, pages) for x in ("value", "value_scale"))
        return level.precision.decode_value(data[..., : level.tokens, :].flatten(2, 3), scale.flatten(2, 3))

    def attend_prefill(
        self,
        layer: int,
        chunk: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """A chunk sees itself exactly and earlier chunks as stored; it is stored with the attention it received."""
        query, key, value = (x.index_select(0, chunk.tokens) for x in (query, key, value))
        level, group = self.high_level, chunk
        sight = Sight(extras.sliding_window)
        length, count = int(group.length), len(query)
        position = torch.arange(length, length + count, device=query.device)
        stored = group.pages[HIGH][layer][..., : -(-length // level.tokens)]
        slots = torch.arange(stored.shape[-1] * level.tokens, device=query.device)
        earlier = torch.where(slots < length, slots, -1)
        keys: list[Callable[[], Pair]] = []
        values: list[Callable[[], torch.Tensor]] = []
        mask = sight.mask(position[:, None], earlier, torch.float32)[None, None, None]
        self._add_blocks(level, stored, mask, keys, values)
        own = sight.mask(position[:, None], position, torch.float32)[None, None, None]
        keys.append(lambda: (key.transpose(0, 1)[None], own))
        values.append(lambda: value.transpose(0, 1)[None])
        judges = min(count, max(0, int(group.prompt) - self.rule.buffer - length))
        attended, received = attention.attend_judged(
            attention.by_head(query, self.geometry.kv_heads), keys, values, judges=judges, extras=extras, largest=True
        )
        if stored.shape[-1] and judges < count:
            meta = self._meta(level, stored)
            meta[..., SCORE] += received[..., : meta.shape[2]]
            level.layout.view(self.rows, "meta").index_put_((stored,), meta.view(*stored.shape, level.tokens, 2))
        meta = torch.stack([received[0, :, len(slots) :].T, position[:, None].expand(-1, key.shape[1]).float()], -1)
        pages = group.pages[HIGH][layer][0][:, position // level.tokens].T
        self.write(level, (pages, (position % level.tokens)[:, None]), (*level.precision.encode(key, value), meta))
        group.counts[HIGH][layer] += count
        return attention.by_token(attended)

    def shares(self, pages: torch.Tensor, length: int) -> torch.Tensor:
        """Significance of a whole prompt's tokens in one head, relative to an even share of attention.

        Args:
            pages: the head's pages of high precision, ``(n,)``.
            length: of the prompt.

        Returns:
            ``(length,)`` in the order of the slots.
        """
        meta = self.high_level.layout.take(self.rows, "meta", pages).flatten(0, 1)[:length]
        position = torch.arange(length, device=meta.device)
        whole = torch.full((), length, device=meta.device)
        return meta[:, SCORE] / self._judged(position, whole, whole) * length

    def take_tokens(self, pages: torch.Tensor, chosen: torch.Tensor) -> list[torch.Tensor]:
        """The fields of some tokens of one head, taken out of its pages of high precision.

        Args:
            pages: ``(n,)``.
            chosen: which slots, boolean, ``(length,)``.
        """
        rows = self.rows.index_select(0, pages)
        views = self.high_level.layout.views(rows)
        return [view[:, : self.high_level.tokens].flatten(0, 1)[: len(chosen)][chosen] for view in views]

    def lowered(self, parts: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Tokens of high precision at low precision."""
        precision = self.high_level.precision
        moved = self.low_level.precision.encode(
            precision.decode_key(parts[0], parts[1]), precision.decode_value(parts[2], parts[3])
        )
        return (*moved, parts[4])
