"""Packed pages behind a window of full precision."""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from kvload.servers.kernels import attention
from kvload.servers.kernels.api import KernelSet, Step
from kvload.servers.kernels.attention import AttentionExtras, Block, Load, Sight
from kvload.servers.kernels.layout import CacheGeometry, Field, PageLayout, PageShape


class BlockCodec(Protocol):
    """How blocks become bytes; see :class:`kvload.servers.embedded.compression.base.BlockMethod`."""

    @property
    def page_tokens(self) -> int:
        """Tokens of a packed page."""

    @property
    def sliding_values(self) -> bool:
        """Whether values leave the window one by one."""

    def key_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of a page of packed keys."""

    def value_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of a page of packed values."""

    def encode_keys(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """Keys as the fields of pages."""

    def encode_values(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """Values as the fields of pages, or of tokens where they slide."""

    def decode_keys(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The reverse."""

    def decode_values(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The reverse."""


Masks = dict[tuple[Sight, int], torch.Tensor]


@dataclass
class Part:
    """Some positions of a group's sequences: which pages hold their keys and values.

    Attributes:
        keys, values: page ids, ``(b, pages)`` each.
        position: ``(b, 1, 1, 1, slots)`` logical positions, -1 where a slot does not count here.
        step: pages read at once.
        masks: masks of this step, by what the layer lets a query see and the first page.
    """

    keys: torch.Tensor
    values: torch.Tensor
    position: torch.Tensor
    step: int
    masks: Masks = field(default_factory=dict)


@dataclass
class Seam(Part):
    """Positions whose keys are packed while their values are still in the window.

    Attributes:
        value_slots: slot inside its page of each value; ``values`` is then ``(b, slots)``.
    """

    value_slots: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Group:
    """Some sequences' queries of one step.

    Attributes:
        tokens: rows of the packed batch, ``(b,)``, or a slice where one sequence has them all.
        query_position: ``(b, 1, 1, t, 1)``.
        packed: positions of which keys and values are packed.
        seam: positions between; None where keys and values leave the window together.
        window: positions of which both are in full precision.
        own: masks of the step's own tokens.
    """

    tokens: torch.Tensor | slice
    query_position: torch.Tensor
    packed: Part | None
    seam: Seam | None
    window: Part | None
    own: Masks = field(default_factory=dict)

    @property
    def rows(self) -> torch.Tensor:
        """``tokens`` of a group of several sequences."""
        assert isinstance(self.tokens, torch.Tensor)  # noqa: S101  a slice is one sequence's
        return self.tokens

    @property
    def read_at_once(self) -> bool:
        """Whether all pages fit into scratch memory together."""
        return self.packed is None or self.packed.step >= self.packed.keys.shape[1]


Spots = tuple[torch.Tensor, torch.Tensor]
"""Pages and slots inside them, of as many tokens."""


@dataclass
class Writes:
    """What single new tokens of many sequences change.

    Attributes:
        tokens: rows of the packed batch.
        keys, values: where each goes in the window.
        leaving: which of ``tokens`` push a value out of the window, from the very slot they take.
        left: where those values are packed.
        full: ``(m, window_tokens)`` windows that are complete with this step: keys, and values if they leave too.
        packed_keys, packed_values: pages they are packed into.
    """

    tokens: torch.Tensor
    keys: Spots
    values: Spots
    leaving: torch.Tensor
    left: Spots
    full_keys: Spots
    full_values: Spots
    packed_keys: torch.Tensor
    packed_values: torch.Tensor


@dataclass
class SideWrites:
    """What several new tokens of one sequence change among its keys, or among its values.

    Attributes:
        held: window spots of older tokens that are packed now, together with the first of the new ones.
        packed: how many tokens are packed.
        pages: pages they are packed into, or spots where tokens are packed one by one.
        kept: which of the new tokens go into the window.
        spots: where.
    """

    held: Spots
    packed: int
    pages: Spots
    kept: slice
    spots: Spots


@dataclass
class ChunkWrites:
    """What several new tokens of one sequence change."""

    tokens: slice
    prompt: bool
    keys: SideWrites
    values: SideWrites


@dataclass
class StepWrites:
    """What a step changes: single new tokens of many sequences (None where there are none), and chunks of prompts."""

    singles: Writes | None
    chunks: list[ChunkWrites]


class BlockKernels(KernelSet[Group, Group, StepWrites]):
    """New tokens see themselves and the window exactly, and what was packed before as it is packed.

    A token at position ``p`` of the window is in slot ``p % window_tokens`` of its table. The step's own tokens are
    attended to as they are, and stored, and packed, afterwards.

    Args:
        geometry: shape of the model's keys and values.
        codec: how blocks are packed.
    """

    stores_first = False

    def __init__(self, geometry: CacheGeometry, codec: BlockCodec) -> None:
        super().__init__(geometry)
        self.codec = codec
        self.page_tokens = codec.page_tokens
        shape = PageShape(self.page_tokens, geometry.kv_heads, geometry.head_dim, geometry.dtype)
        self.keys = PageLayout(codec.key_fields(shape))
        self.values = PageLayout(codec.value_fields(shape))
        page_bytes = max(self.keys.page_bytes, self.values.page_bytes)
        token = (geometry.kv_heads, geometry.head_dim)
        self.window_page_tokens = max(1, page_bytes // Field("data", geometry.dtype, token).bytes)
        self.window = PageLayout((Field("data", geometry.dtype, (self.window_page_tokens, *token)),), page_bytes)
        self.page_bytes = self.window.page_bytes
        self._workspace = attention.Workspace()

    def store(self, layer: int, step: Step[Group, Group, StepWrites], key: torch.Tensor, value: torch.Tensor) -> None:
        """Into the windows, and packed what leaves them."""
        if step.writes.singles is not None:
            self._write_singles(layer, step.writes.singles, key, value)
        for chunk in step.writes.chunks:
            self._write_chunk(layer, chunk, key[chunk.tokens], value[chunk.tokens])

    def attend_decode(
        self,
        layer: int,
        group: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """One query of each of several sequences."""
        grouped = query.index_select(0, group.rows).view(-1, *self.grouped)
        own = key.index_select(0, group.rows).unsqueeze(2), value.index_select(0, group.rows).unsqueeze(2)
        return self._attend(layer, group, grouped, own, extras).flatten(1, 3)

    def attend_prefill(
        self,
        layer: int,
        chunk: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Several queries of one sequence."""
        grouped = attention.by_head(query[chunk.tokens], self.geometry.kv_heads)
        own = key[chunk.tokens].transpose(0, 1)[None], value[chunk.tokens].transpose(0, 1)[None]
        return attention.by_token(self._attend(layer, chunk, grouped, own, extras))

    def _attend(
        self,
        layer: int,
        group: Group,
        grouped: torch.Tensor,
        own: tuple[torch.Tensor, torch.Tensor],
        extras: AttentionExtras,
    ) -> torch.Tensor:
        sight = Sight(extras.sliding_window)
        blocks = self._blocks(layer, group, sight, grouped.dtype)
        if not blocks and extras.plain and sight.sees_all(grouped.shape[3]):
            return attention.causal(grouped, *own, extras.scaling)
        masked = *own, _own_mask(group, sight, grouped.dtype)
        blocks.append(lambda: masked)
        return attention.attend(
            grouped,
            blocks,
            scaling=extras.scaling,
            softcap=extras.softcap,
            sinks=extras.grouped_sinks(self.geometry),
            together=self._workspace if group.read_at_once else None,
        )

    def _blocks(self, layer: int, group: Group, sight: Sight, dtype: torch.dtype) -> list[Load]:
        rows = self.storage[layer]
        query = group.query_position
        found: list[Load] = []
        if group.packed is not None:
            for start in range(0, group.packed.keys.shape[1], group.packed.step):
                found.append(partial(self._packed_block, rows, group.packed, start, query, sight, dtype))
        if group.seam is not None:
            found.append(partial(self._seam_block, rows, group.seam, query, sight, dtype))
        if group.window is not None:
            found.append(partial(self._window_block, rows, group.window, query, sight, dtype))
        return found

    def _packed_block(
        self, rows: torch.Tensor, part: Part, start: int, query: torch.Tensor, sight: Sight, dtype: torch.dtype
    ) -> Block:
        keys, values = (pages[:, start : start + part.step] for pages in (part.keys, part.values))
        first = start * self.page_tokens
        mask = part.masks.get((sight, start))
        if mask is None:
            position = part.position[..., first : first + keys.shape[1] * self.page_tokens]
            mask = part.masks[sight, start] = sight.mask(query, position, dtype)
        return self._unpacked_keys(rows, keys), self._unpacked_values(rows, values), mask

    def _unpacked_keys(self, rows: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        decoded = self.codec.decode_keys(self.keys.views(rows.index_select(0, pages.flatten())))
        return decoded.reshape(pages.shape[0], -1, *decoded.shape[2:]).transpose(1, 2)

    def _unpacked_values(self, rows: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        decoded = self.codec.decode_values(self.values.views(rows.index_select(0, pages.flatten())))
        return decoded.reshape(pages.shape[0], -1, *decoded.shape[2:]).transpose(1, 2)

    def _seam_block(
        self, rows: torch.Tensor, seam: Seam, query: torch.Tensor, sight: Sight, dtype: torch.dtype
    ) -> Block:
        values = self.window.view(rows, "data")[seam.values, seam.value_slots]
        return self._unpacked_keys(rows, seam.keys), values.transpose(1, 2), _mask(seam, query, sight, dtype)

    def _window_block(
        self, rows: torch.Tensor, part: Part, query: torch.Tensor, sight: Sight, dtype: torch.dtype
    ) -> Block:
        taken = (self.window.take(rows, "data", pages) for pages in (part.keys, part.values))
        keys, values = (tokens.flatten(1, 2).transpose(1, 2) for tokens in taken)
        return keys, values, _mask(part, query, sight, dtype)

    def _write_singles(self, layer: int, writes: Writes, key: torch.Tensor, value: torch.Tensor) -> None:
        rows = self.storage[layer]
        window = self.window.view(rows, "data")
        if len(writes.leaving):
            pages, slots = (spot[writes.leaving] for spot in writes.values)
            encoded = self.codec.encode_values(window[pages, slots], prompt=False)
            for view, part in zip(self.values.views(rows), encoded, strict=True):
                view.index_put_(writes.left, part)
        window.index_put_(writes.keys, key[writes.tokens])
        window.index_put_(writes.values, value[writes.tokens])
        if len(writes.packed_keys):
            keys = self._paged(window[writes.full_keys])
            self._put(rows, self.keys, writes.packed_keys, self.codec.encode_keys(keys, prompt=False))
            if not self.codec.sliding_values:
                values = self._paged(window[writes.full_values])
                self._put(rows, self.values, writes.packed_values, self.codec.encode_values(values, prompt=False))

    def _write_chunk(self, layer: int, chunk: ChunkWrites, key: torch.Tensor, value: torch.Tensor) -> None:
        rows = self.storage[layer]
        window = self.window.view(rows, "data")
        for writes, new, layout in ((chunk.keys, key, self.keys), (chunk.values, value, self.values)):
            if writes.packed:
                tokens = torch.cat([window[writes.held], new])[: writes.packed]
                if layout is self.values and self.codec.sliding_values:
                    encoded = self.codec.encode_values(tokens, prompt=chunk.prompt)
                    for view, part in zip(layout.views(rows), encoded, strict=True):
                        view.index_put_(writes.pages, part)
                else:
                    encode = self.codec.encode_keys if layout is self.keys else self.codec.encode_values
                    pages = writes.pages[0][:: self.page_tokens]
                    self._put(rows, layout, pages, encode(self._paged(tokens), prompt=chunk.prompt))
            window.index_put_(writes.spots, new[writes.kept])

    def _paged(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.reshape(-1, self.page_tokens, *tokens.shape[-2:])

    def _put(
        self, rows: torch.Tensor, layout: PageLayout, pages: torch.Tensor, parts: tuple[torch.Tensor, ...]
    ) -> None:
        for view, part in zip(layout.views(rows), parts, strict=True):
            view.index_put_((pages,), part)


def _mask(part: Part, query: torch.Tensor, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
    mask = part.masks.get((sight, 0))
    if mask is None:
        mask = part.masks[sight, 0] = sight.mask(query, part.position, dtype)
    return mask


def _own_mask(group: Group, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
    mask = group.own.get((sight, 0))
    if mask is None:
        query = group.query_position
        own = query.transpose(3, 4)
        mask = group.own[sight, 0] = sight.mask(query, own, dtype)
    return mask
