"""Pages whose slots hold different tokens in different heads, each with its position and its score."""

from dataclasses import dataclass
from typing import Protocol

import torch

from kvload.servers.kernels import attention
from kvload.servers.kernels.api import KernelSet, Step
from kvload.servers.kernels.attention import AttentionExtras, Sight
from kvload.servers.kernels.layout import CacheGeometry, Field, PageLayout


class ScoredRule(Protocol):
    """Which tokens stay; see :class:`kvload.servers.embedded.compression.base.ScoredMethod`."""

    @property
    def page_tokens(self) -> int:
        """Slots of a page."""

    @property
    def kept_tokens(self) -> int:
        """Tokens that stay at the end of the prompt."""

    @property
    def newest_tokens(self) -> int:
        """How many of them are the newest."""

    @property
    def judging_queries(self) -> int | None:
        """How many of the prompt's last queries give scores; None: all, and the generated ones."""

    @property
    def evicts_while_decoding(self) -> bool:
        """Whether generated tokens push others out."""

    @property
    def evicts_at_once(self) -> int:
        """How many tokens go together."""

    def smoothed(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores as they are compared at the end of the prompt."""


@dataclass
class Decodes:
    """Generated tokens of some sequences.

    Attributes:
        tokens: rows of the packed batch, ``(b,)``.
        sequences: rows of the tables.
        pages: ``(b, blocks)``.
        slots: ``(b, 1)`` where a token goes while there is room; ``full`` where each head has free slots of its own.
        full: ``(b, 1)``; None where no sequence is full.
        holes: ``(b,)`` which of its free slots a token takes.
        evicts: ``(b, 1)`` whether tokens are dropped after it.
        length: ``(b, 1, 1)`` position of the new token.
        used: ``(b, 1, 1)`` slots in use, the new token's included.
    """

    tokens: torch.Tensor
    sequences: torch.Tensor
    pages: torch.Tensor
    slots: torch.Tensor
    full: torch.Tensor | None
    holes: torch.Tensor
    evicts: torch.Tensor
    length: torch.Tensor
    used: torch.Tensor


@dataclass
class Chunk:
    """Several tokens of one prompt. Nothing of the prompt is dropped before its last chunk.

    Attributes:
        tokens: rows of the packed batch.
        position: ``(t,)`` logical positions, which are slots as well.
        own: pages and slots of the chunk's tokens.
        judges: first of the chunk's queries whose weights count.
        kept: how many tokens stay after it; None for all.
        pages: all pages of the sequence.
    """

    tokens: slice
    position: torch.Tensor
    own: tuple[torch.Tensor, torch.Tensor]
    judges: int
    kept: int | None
    pages: torch.Tensor


class ScoredKernels(KernelSet[Decodes, Chunk, None]):
    """Exact attention over what is kept; then scores are added, and the lowest make room.

    A page holds the keys, values, positions and scores of ``page_tokens`` slots of all heads. A head's dropped token
    leaves a hole (position -1) that its next token fills.

    Args:
        geometry: shape of the model's keys and values.
        rule: which tokens stay.
    """

    stores_first = True

    def __init__(self, geometry: CacheGeometry, rule: ScoredRule) -> None:
        super().__init__(geometry)
        self.rule = rule
        self.page_tokens = rule.page_tokens
        slots = (self.page_tokens, geometry.kv_heads)
        self.layout = PageLayout(
            (
                Field("key", geometry.dtype, (*slots, geometry.head_dim)),
                Field("value", geometry.dtype, (*slots, geometry.head_dim)),
                Field("position", torch.int32, slots),
                Field("score", torch.float32, slots),
            )
        )
        self.page_bytes = self.layout.page_bytes
        # The slots that each head's next tokens take once the budget is used up.
        holes = geometry.layers, 0, rule.evicts_at_once, geometry.kv_heads
        self._holes = torch.zeros(holes, dtype=torch.int64, device=geometry.device)
        self._heads = torch.arange(geometry.kv_heads, device=geometry.device)

    def make_room(self, sequences: int) -> None:
        """Keep holes for this many rows of the tables."""
        missing = sequences - self._holes.shape[1]
        if missing > 0:
            self._holes = torch.nn.functional.pad(self._holes, (0, 0, 0, 0, 0, missing))

    def store(self, layer: int, step: Step[Decodes, Chunk, None], key: torch.Tensor, value: torch.Tensor) -> None:
        """New tokens with score 0: a generated one into its heads' holes where there are some."""
        for group in step.decodes:
            slots = group.slots.expand(-1, self.geometry.kv_heads)
            if group.full is not None:
                slots = torch.where(group.full, self._holes[layer, group.sequences, group.holes], slots)
            pages = group.pages.gather(1, slots // self.page_tokens)
            spots = pages, slots % self.page_tokens, self._heads.expand_as(slots)
            position = group.length[:, 0].expand_as(slots)
            self._put(layer, spots, key.index_select(0, group.tokens), value.index_select(0, group.tokens), position)
        for chunk in step.prefills:
            position = chunk.position[:, None].expand(-1, self.geometry.kv_heads)
            self._put(layer, chunk.own, key[chunk.tokens], value[chunk.tokens], position)

    def _put(
        self,
        layer: int,
        spots: tuple[torch.Tensor, ...],
        key: torch.Tensor,
        value: torch.Tensor,
        position: torch.Tensor,
    ) -> None:
        keys, values, positions, scores = self.layout.views(self.storage[layer])
        keys.index_put_(spots, key)
        values.index_put_(spots, value)
        positions.index_put_(spots, position.to(torch.int32))
        scores.index_put_(spots, torch.zeros((), device=scores.device))

    def attend_decode(
        self,
        layer: int,
        group: Decodes,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Over all slots in use; what the method evicts while decoding it evicts afterwards."""
        del key, value
        rows = self.storage[layer]
        held_key, held_value = (self._slots_first(self.layout.take(rows, x, group.pages)) for x in ("key", "value"))
        sight = Sight(extras.sliding_window)
        grouped = query.index_select(0, group.tokens).view(-1, *self.grouped)
        if self.rule.judging_queries is not None:
            position = self._valid(group.length.expand(-1, 1, held_key.shape[2]), group.used)
            if extras.sliding_window is not None:
                position = self._valid(self._taken(rows, "position", group), group.used)
            block = held_key, held_value, sight.mask(group.length, position, query.dtype)[:, :, None, None]
            attended = attention.attend(
                grouped,
                [lambda: block],
                scaling=extras.scaling,
                softcap=extras.softcap,
                sinks=extras.grouped_sinks(self.geometry),
            )
            return attended.flatten(1, 3)
        position = self._valid(self._taken(rows, "position", group), group.used)
        mask = sight.mask(group.length, position, torch.float32)[:, :, None, None]
        attended, received = attention.attend_judged(
            grouped, [lambda: (held_key, mask)], [lambda: held_value], judges=0, extras=extras, largest=False
        )
        total = self._taken(rows, "score", group) + received
        self.layout.view(rows, "score").index_put_((group.pages,), self._pages_first(total))
        if self.rule.evicts_while_decoding:
            self._evict(layer, group, position, total)
        return attended.flatten(1, 3)

    def _taken(self, rows: torch.Tensor, name: str, group: Decodes) -> torch.Tensor:
        return self._slots_first(self.layout.take(rows, name, group.pages))

    def _evict(self, layer: int, group: Decodes, position: torch.Tensor, total: torch.Tensor) -> None:
        """Make holes in every head of the sequences whose time it is."""
        positions = self.layout.view(self.storage[layer], "position")
        safe = (position < 0) | (position > group.length - self.rule.newest_tokens)
        victims = total.masked_fill(safe, torch.inf).topk(self.rule.evicts_at_once, -1, largest=False).indices
        victims = victims.transpose(1, 2)
        spots = (
            group.pages[:, None].expand(-1, victims.shape[1], -1).gather(2, victims // self.page_tokens),
            victims % self.page_tokens,
            self._heads.expand_as(victims),
        )
        evicts = group.evicts[:, None]
        positions.index_put_(spots, torch.where(evicts, -1, positions[spots]).to(torch.int32))
        held = self._holes[layer, group.sequences]
        self._holes[layer, group.sequences] = torch.where(evicts, victims, held)

    def attend_prefill(
        self,
        layer: int,
        chunk: Chunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Over all of the prompt so far; at its end, what stays moves into the first slots."""
        del key, value
        rows = self.storage[layer]
        names = (field.name for field in self.layout.fields)
        stored = [self._slots_first(self.layout.take(rows, name, chunk.pages[None])) for name in names]
        count = len(chunk.position)
        slots = torch.arange(stored[0].shape[2], device=query.device)
        mask = Sight(extras.sliding_window).mask(chunk.position[:, None], slots, torch.float32)[None, None, None]
        attended, received = attention.attend_judged(
            attention.by_head(query[chunk.tokens], self.geometry.kv_heads),
            [lambda: (stored[0], mask)],
            [lambda: stored[1]],
            judges=chunk.judges,
            extras=extras,
            largest=False,
        )
        if chunk.judges < count:
            stored[3] = stored[3] + received
            self.layout.view(rows, "score").index_put_((chunk.pages[None],), self._pages_first(stored[3]))
        if chunk.kept is not None:
            self._compact(layer, chunk, chunk.kept, stored)
        return attention.by_token(attended)

    def _compact(self, layer: int, chunk: Chunk, kept: int, stored: list[torch.Tensor]) -> None:
        """At the end of the prompt: move what stays into the first slots."""
        newest = self.rule.newest_tokens
        length = int(chunk.position[-1]) + 1
        older = self.rule.smoothed(stored[3][0, :, : length - newest])
        best = older.topk(kept - newest, -1).indices.sort(-1).values
        last = torch.arange(length - newest, length, device=best.device).expand(best.shape[0], -1)
        index = torch.cat([best, last], -1)
        slots = torch.arange(kept, device=best.device)
        spots = chunk.pages[slots // self.page_tokens], slots % self.page_tokens
        for view, old in zip(self.layout.views(self.storage[layer]), stored, strict=True):
            wide = index if old.dim() == 3 else index[..., None].expand(-1, -1, old.shape[-1])
            view.index_put_(spots, old[0].gather(1, wide).transpose(0, 1))

    @staticmethod
    def _slots_first(pages: torch.Tensor) -> torch.Tensor:
        """``(b, blocks, page_tokens, heads, ...)`` as ``(b, heads, slots, ...)``."""
        return pages.flatten(1, 2).transpose(1, 2)

    def _pages_first(self, slots: torch.Tensor) -> torch.Tensor:
        """The reverse of :meth:`_slots_first`."""
        flat = slots.transpose(1, 2)
        return flat.reshape(flat.shape[0], -1, self.page_tokens, *flat.shape[2:])

    @staticmethod
    def _valid(position: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """Positions ``(b, heads, slots)`` with -1 where a slot is not in use."""
        slots = torch.arange(position.shape[-1], device=position.device)
        return torch.where(slots < used, position, -1)
