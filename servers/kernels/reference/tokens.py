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
        """The arrays of one page for the keys (or the values)."""

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys or values as one array for each field."""

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """The reverse."""


@dataclass
class Group:
    """Some sequences' queries of one step, with the pages they read.

    Attributes:
        tokens: rows of the packed batch, ``(b,)``: one query of each sequence, or all of one sequence's.
        key_rows: ``(b, blocks)`` half pages of the keys; the values' follow each directly.
        lengths: ``(b,)`` tokens each sequence stores, the step's own included where they are stored first.
        key_position: ``(b, 1, 1, 1, slots)`` logical positions, -1 where there is no token.
        query_position: ``(b, 1, 1, t, 1)``.
        step: blocks read at once.
        masks: masks of this step, by what the layer lets a query see and the first block they cover.
    """

    tokens: torch.Tensor
    key_rows: torch.Tensor
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
        masks: masks of the chunk over itself, by what the layer lets a query see.
    """

    tokens: slice
    position: torch.Tensor
    context: Group | None
    masks: dict[Sight, torch.Tensor] = field(default_factory=dict)


@dataclass
class Slots:
    """Where each token of a step is written: half page of its key and slot in it, ``(tokens,)`` each."""

    rows: torch.Tensor
    slots: torch.Tensor


class TokenKernels(KernelSet[Group, Chunk, Slots]):
    """Within a page the keys' fields come first and the values' fields, laid out the same, after them.

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
        self.layout = PageLayout(codec.fields(shape))
        self.page_bytes = 2 * self.layout.page_bytes
        self.rotation = None
        if codec.rotation_seed is not None:
            self.rotation = random_hadamard(geometry.head_dim, codec.rotation_seed).to(geometry.device)

    def bind(self, storage: torch.Tensor) -> None:
        """See the base class; each page is two halves."""
        super().bind(storage)
        planes, pages, _ = storage.shape
        self._halves = storage.view(planes, 2 * pages, self.layout.page_bytes)

    def limit_scratch(self, blocks: int) -> None:
        """One buffer for all reads: fresh memory of this size costs more in page faults than the copy itself."""
        self._scratch = torch.empty((2, blocks, self.layout.page_bytes), dtype=torch.uint8, device=self.geometry.device)

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
        rows, slots = step.writes.rows, step.writes.slots
        both = zip(self.codec.encode(key), self.codec.encode(value), strict=True)
        for view, (keys, values) in zip(self.layout.views(self._halves[layer]), both, strict=True):
            view.index_put_((rows, slots), keys)
            view.index_put_((rows + 1, slots), values)

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
            grouped, blocks, scaling=extras.scaling, softcap=extras.softcap, sinks=extras.grouped_sinks(self.geometry)
        )
        return attention.by_token(attended)

    def _blocks(self, layer: int, group: Group, sight: Sight, dtype: torch.dtype) -> list[Load]:
        """The stored keys and values of a group, a bounded number of pages at a time."""
        starts = range(0, group.key_rows.shape[1], group.step)
        return [partial(self._block, layer, group, start, sight, dtype) for start in starts]

    def _block(self, layer: int, group: Group, start: int, sight: Sight, dtype: torch.dtype) -> Block:
        rows = group.key_rows[:, start : start + group.step]
        mask = group.masks.get((sight, start))
        if mask is None:
            first = start * self.page_tokens
            positions = group.key_position[..., first : first + rows.shape[1] * self.page_tokens]
            mask = group.masks[sight, start] = sight.mask(group.query_position, positions, dtype)
        return self._read(layer, rows, dtype, 0), self._read(layer, rows + 1, dtype, 1), mask

    def _read(self, layer: int, rows: torch.Tensor, dtype: torch.dtype, side: int) -> torch.Tensor:
        """Half pages ``(b, blocks)`` as ``(b, kv_heads, blocks * page_tokens, head_dim)``."""
        taken = self._scratch[side, : rows.numel()]
        torch.index_select(self._halves[layer], 0, rows.flatten(), out=taken)
        decoded = self.codec.decode(self.layout.views(taken), dtype)
        return decoded.reshape(rows.shape[0], -1, *decoded.shape[2:]).transpose(1, 2)


def _own_mask(chunk: Chunk, sight: Sight, dtype: torch.dtype) -> torch.Tensor:
    mask = chunk.masks.get(sight)
    if mask is None:
        mask = sight.mask(chunk.position[:, None], chunk.position, dtype)[None, None, None]
        chunk.masks[sight] = mask
    return mask
