"""How the bytes of a page are divided into typed fields."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheGeometry:
    """The shape of a model's keys and values.

    Attributes:
        scaling: factor on the scores, where all layers share it and add nothing else to plain causal attention; None
            where they do.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    scaling: float | None = None


@dataclass(frozen=True)
class PageShape:
    """What a page holds: the keys or the values of some tokens.

    Attributes:
        tokens, heads, head_dim: of a page.
        dtype: the model's own.
    """

    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype


ALIGNMENT = 16
"""Every field of a page starts at a multiple of this, so that kernels can read it with 16-byte loads."""


@dataclass(frozen=True)
class Field:
    """One typed array inside a page.

    Attributes:
        name: what it holds.
        dtype: its element type.
        shape: its shape within one page, for example ``(page_tokens, kv_heads, head_dim)``.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes the array takes, without padding."""
        return math.prod(self.shape) * self.dtype.itemsize


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of ``alignment``."""
    return -(-size // alignment) * alignment


class PageLayout:
    """Fields one after the other, each aligned; the page is as long as they need.

    Args:
        fields: in the order they lie in the page.
        page_bytes: length of the page where it must be longer than its fields.
        alignment: bytes that every field starts at a multiple of.
    """

    def __init__(self, fields: tuple[Field, ...], page_bytes: int = 0, alignment: int = ALIGNMENT) -> None:
        self.fields = fields
        self._offsets: dict[str, int] = {}
        offset = 0
        for field in fields:
            self._offsets[field.name] = offset
            offset += aligned(field.bytes, alignment)
        self.page_bytes = max(offset, page_bytes)

    def take(self, rows: torch.Tensor, name: str, pages: torch.Tensor) -> torch.Tensor:
        """Copy a field of some pages; several times faster than indexing a view of it.

        Args:
            rows: as in :meth:`view`.
            pages: page ids, of any shape.

        Returns:
            ``(*pages.shape, *shape)``, contiguous.
        """
        field, start = self._found(name)
        taken = rows[:, start : start + field.bytes].index_select(0, pages.flatten())
        return taken.view(field.dtype).view(*pages.shape, *field.shape)

    def view(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        """A field of many pages, without copying.

        Args:
            rows: ``(pages, page_bytes)`` bytes (uint8); each page contiguous.

        Returns:
            ``(pages, *shape)`` of the field's dtype, sharing memory with ``rows``.
        """
        field, start = self._found(name)
        flat = rows[:, start : start + field.bytes].view(field.dtype)
        return flat.view(flat.shape[0], *field.shape)

    def _found(self, name: str) -> tuple[Field, int]:
        return next(field for field in self.fields if field.name == name), self._offsets[name]

    def views(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All fields of many pages, in order; see :meth:`view`."""
        return tuple(self.view(rows, field.name) for field in self.fields)
