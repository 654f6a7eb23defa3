"""No compression: keys and values as the model makes them."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import TokenMethod
from kvload.servers.kernels.layout import Field, PageShape


@dataclass(frozen=True)
class Uncompressed(TokenMethod):
    """``(tokens, heads, head_dim)`` in the model's dtype, in the pages of PagedAttention (arXiv 2309.06180)."""

    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        return (Field("data", shape.dtype, (shape.tokens, shape.heads, shape.head_dim)),)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x,)

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        return parts[0].to(dtype)
