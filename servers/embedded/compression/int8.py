"""int8 with one scale per token and head."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import TokenMethod
from kvload.servers.kernels.layout import Field, PageShape


@dataclass(frozen=True)
class Int8(TokenMethod):
    """Symmetric rounding to -127 .. 127 by the largest magnitude of the token's head (vLLM's int8 per-token-head).

    ``scale = max |x| / 127`` in float32, ``q = round(x / scale)``: ``head_dim + 4`` bytes for a key, as many
    for a value.
    """

    @property
    def packed_format(self) -> str | None:
        """Its own."""
        return "int8"

    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        """``data (tokens, heads, head_dim)`` int8 and ``scale (tokens, heads)`` float32."""
        data = Field("data", torch.int8, (shape.tokens, shape.heads, shape.head_dim))
        return data, Field("scale", torch.float32, (shape.tokens, shape.heads))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A head of zeros gets scale 1: dividing by it changes nothing."""
        wide = x.float()
        scale = wide.abs().amax(-1) / 127.0
        scale = torch.where(scale == 0, 1.0, scale)
        return (wide / scale[..., None]).round_().to(torch.int8), scale

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """``q * scale``."""
        data, scale = parts
        return data.float().mul_(scale[..., None]).to(dtype)
