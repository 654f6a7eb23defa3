"""Pages of tokens that are stored each on its own."""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from kvload.servers.kernels import attention
from kvload.servers.kernels.api import KernelSet, Step
from kvload.servers.kernels.attention import AttentionExtras, Block, Load, Sight
from kvload.servers.kernels.layout import CacheGeometry, Field, PageLayout, PageShape
from kvload.servers.kernels.quantise import random_hadamard


class TokenCodec(Protocol):
    """How tokens become bytes; see :class:`kvload.servers.embedded.compression.base.TokenMethod`."""

    @property
    def packed_format(self) -> str | None:
        """The page format of :mod:`kvload.servers.kernels.formats` that holds the same numbers; None for none."""

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""

    @property
    def sink_tokens(self) -> int:
        """First tokens that every query sees."""

    @property
    def recent_tokens(self) -> int | None:
        """Newest tokens a query sees; None for all."""

    @property
    def rotation_seed(self) -> int | None:
        """Seed of the rotation of queries, keys and values; None for none."""

    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of one page for the keys."""

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys as one array for each field."""

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """The reverse."""

    def value_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of one page for the values."""

    def encode_value(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Values as one array for each field."""

    def decode_value(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """The reverse."""


@dataclass
class Group:
    """Some sequences' queries of one step, with the pages they read.

    Attributes:
        tokens: rows of the packed batch, ``(b,)``: one query of each sequence, or all of one sequence's.
        pages: ``(b, blocks)``.
        lengths: ``(b,)`` tokens each sequence stores, the step's own included where they are stored first.
        key_position: ``(b, 1, 1, 1, slots)`` logical positions, -1 where there is no token.
        query_position: ``(b, 1, 1, t, 1)``; both empty for kernels that make no masks of them.
        step: blocks read at once.
        masks: masks of this step, by what the layer lets a query see and the first block they cover.
    """

    tokens: torch.Tensor
    pages: torch.Tensor
    lengths: torch.Tensor
    key_position: torch.Tensor
    query_position: torch.Tensor
    step: int
    masks: dict[tuple[Sight, int], torch.Tensor] = field(default_factory=dict)


@dataclass
class Chunk:
    """Several new tokens of one sequence.

    Attributes:
        tokens: its rows of the packed batch.
        position: ``(t,)`` logical positions.
        context: what was stored of the sequence before; None for nothing.
        before: tokens stored before.
        masks: masks of the chunk over itself, by what the layer lets a query see.
    """

    tokens: slice
    position: torch.Tensor
    context: Group | None
    before: int
    masks: dict[Sight, torch.Tensor] = field(default_factory=dict)


@dataclass
class Slots:
    """Where each token of a step is written: page and slot in it, ``(tokens,)`` each."""

    pages: torch.Tensor
    slots: torch.Tensor


class TokenKernels(KernelSet[Group, Chunk, Slots]):
    """Within a page the keys' fields come first and the values' fields after them.

    Args:
        geometry: shape of the model's keys and values.
        codec: how tokens are encoded.
    """

    stores_first = True

    def __init__(self, geometry: CacheGeometry, codec: TokenCodec) -> None:
        super().__init__(geometry)
        self.codec = codec
        self.page_tokens = codec.page_tokens
        shape = PageShape(self.page_tokens, geometry.kv_heads, geometry.head_dim, geometry.dtype)
        self.layouts = PageLayout(codec.fields(shape)), PageLayout(codec.value_fields(shape))
        self.page_bytes = sum(layout.page_bytes for layout in self.layouts)
        self._workspace = attention.Workspace()
        self.rotation = None
        if codec.rotation_seed is not None:
            self.rotation = random_hadamard(geometry.head_dim, codec.rotation_seed).to(geometry.device)

    def bind(self, storage: torch.Tensor) -> None:
        """See the base class."""
        super().bind(storage)
        self._sides = torch.split(storage, [layout.page_bytes for layout in self.layouts], -1)

    def limit_scratch(self, blocks: int) -> None:
        """One buffer for all reads: fresh memory of this size costs more in page faults than the copy itself."""
        self._scratch = [
            torch.empty((blocks, layout.page_bytes), dtype=torch.uint8, device=self.geometry.device)
            for layout in self.layouts
        ]

    def prepare(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values turned alike, in float32, where the codec rotates."""
        if self.rotation is None:
            return query, key, value
        turned = (x.float() @ self.rotation for x in (query, key, value))
        return next(turned), next(turned), next(turned)

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        """Turned back."""
        return output if self.rotation is None else (output.float() @ self.rotation.T).to(self.geometry.dtype)

    def store(self, layer: int, step: Step[Group, Chunk, Slots], key: torch.Tensor, value: torch.Tensor) -> None:
        """Encode every token into its slot."""
        spots = step.writes.pages, step.writes.slots
        both = self.codec.encode(key), self.codec.encode_value(value)
        for layout, side, parts in zip(self.layouts, self._sides, both, strict=True):
            for view, part in zip(layout.views(side[layer]), parts, strict=True):
                view.index_put_(spots, part)

    def _sight(self, extras: AttentionExtras) -> Sight:
        return Sight(extras.sliding_window, self.codec.recent_tokens, self.codec.sink_tokens)

    def attend_decode(
        self,
        layer: int,
        group: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """A generated token reads itself as stored, with all others."""
        del key, value
        dtype = self.geometry.dtype
        grouped = query.index_select(0, group.tokens).to(dtype).view(-1, *self.grouped)
        blocks = self._blocks(layer, group, self._sight(extras), dtype)
        attended = attention.attend(
            grouped, blocks, scaling=extras.scaling, softcap=extras.softcap, sinks=extras.grouped_sinks(self.geometry)
        )
        return attended.flatten(1, 3)

    def attend_prefill(
        self,
        layer: int,
        chunk: Chunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """A prompt's chunk sees itself exactly and earlier chunks as stored."""
        dtype, sight = self.geometry.dtype, self._sight(extras)
        grouped = attention.by_head(query[chunk.tokens].to(dtype), self.geometry.kv_heads)
        own_key, own_value = (x[chunk.tokens].to(dtype).transpose(0, 1)[None] for x in (key, value))
        if chunk.context is None and extras.plain and sight.sees_all(len(chunk.position)):
            return attention.by_token(attention.causal(grouped, own_key, own_value, extras.scaling))
        blocks = [] if chunk.context is None else self._blocks(layer, chunk.context, sight, dtype)
        own = own_key, own_value, _own_mask(chunk, sight, dtype)
        blocks.append(lambda: own)
        attended = attention.attend(
            grouped,
            blocks,
            scaling=extras.scaling,
            softcap=extras.softcap,
            sinks=extras.grouped_sinks(self.geometry),
            # What is read of a second block would take the first one's place.
            together=self._workspace if len(blocks) <= 2 else None,
        )
        return attention.by_token(attended)

    def _blocks(self, layer: int, group: Group, sight: Sight, dtype: torch.dtype) -> list[Load]:
        """The stored keys and values of a group, a bounded number of pages at a time."""
        starts = range(0, group.pages.shape[1], group.step)
        return [partial(self._block, layer, group, start, sight, dtype) for start in starts]

    def _block(self, layer: int, group: Group, start: int, sight: Sight, dtype: torch.dtype) -> Block:
        pages = group.pages[:, start : start + group.step]
        mask = group.masks.get((sight, start))
        if mask is None:
            first = start * self.page_tokens
            positions = group.key_position[..., first : first + pages.shape[1] * self.page_tokens]
            mask = group.masks[sight, start] = sight.mask(group.query_position, positions, dtype)
        key = self.codec.decode(self._read(layer, pages, 0), dtype)
        value = self.codec.decode_value(self._read(layer, pages, 1), dtype)
        by_head = (x.reshape(len(pages), -1, *x.shape[2:]).transpose(1, 2) for x in (key, value))
        return next(by_head), next(by_head), mask

    def _read(self, layer: int, pages: torch.Tensor, side: int) -> tuple[torch.Tensor, ...]:
        """The keys' or the values' fields of pages ``(b, blocks)``, each ``(b * blocks, tokens, heads, ...)``."""
        taken = self._scratch[side][: pages.numel()]
        torch.index_select(self._sides[side][layer], 0, pages.flatten(), out=taken)
        return self.layouts[side].views(taken)


def _own_mask(chunk: Chunk, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
    mask = chunk.masks.get(sight)
    if mask is None:
        mask = sight.mask(chunk.position[:, None], chunk.position, dtype)[None, None, None]
        chunk.masks[sight] = mask
    return mask
