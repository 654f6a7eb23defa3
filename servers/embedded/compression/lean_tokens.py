"""LeanKV's two precisions, each for every token: nothing is judged and nothing forgotten."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import TokenMethod
from kvload.servers.embedded.compression.leankv import LeanKV, Precision
from kvload.servers.kernels.layout import Field, PageShape


@dataclass(frozen=True)
class LeanTokens(TokenMethod):
    """One level of Zhang et al. 2024, arXiv 2412.03131: steps and minima per token, head and group of channels.

    Attributes:
        high: 1 for 8-bit keys and 4-bit values, 0 for 4-bit keys and 2-bit values.
    """

    high: int = 1

    @property
    def precision(self) -> Precision:
        """The level."""
        return LeanKV.high_precision if self.high else LeanKV.low_precision

    @property
    def packed_format(self) -> str | None:
        """Its own."""
        return "k8v4" if self.high else "k4v2"

    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        """``data (tokens, heads, head_dim * bits / 8)`` and ``scale (tokens, heads, groups, 2)``."""
        return _fields(shape, self.precision.key_bits, self.precision.key_groups)

    def value_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """Likewise, with the values' bits and groups."""
        return _fields(shape, self.precision.value_bits, self.precision.value_groups)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys."""
        return self.precision.encode_key(x)

    def encode_value(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Values."""
        return self.precision.encode_value(x)

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """Keys."""
        data, scale = parts
        return self.precision.decode_key(data, scale).to(dtype)

    def decode_value(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """Values."""
        data, scale = parts
        return self.precision.decode_value(data, scale).to(dtype)


def _fields(shape: PageShape, bits: int, groups: int) -> tuple[Field, ...]:
    if shape.head_dim % (8 // bits * groups):
        raise ValueError(f"{groups} groups of {bits}-bit numbers need a head size divisible by {8 // bits * groups}")
    data = Field("data", torch.uint8, (shape.tokens, shape.heads, shape.head_dim * bits // 8))
    return data, Field("scale", torch.float16, (shape.tokens, shape.heads, groups, 2))
