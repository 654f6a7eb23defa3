"""8-bit floating point with one scale per token and head."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import TokenMethod
from kvload.servers.kernels.layout import Field, PageShape
from kvload.servers.kernels.quantise import from_e4m3

E4M3_LARGEST = 448.0


@dataclass(frozen=True)
class Fp8(TokenMethod):
    """e4m3 (arXiv 2209.05433): ``scale = max |x| / 448`` in float32, stored ``x / scale`` rounded to e4m3.

    ``head_dim + 4`` bytes for a key, as many for a value.
    """

    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        """``data (tokens, heads, head_dim)``, the bytes of e4m3, and ``scale (tokens, heads)`` float32."""
        data = Field("data", torch.uint8, (shape.tokens, shape.heads, shape.head_dim))
        return data, Field("scale", torch.float32, (shape.tokens, shape.heads))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A head of zeros gets scale 1: dividing by it changes nothing."""
        wide = x.float()
        scale = wide.abs().amax(-1) / E4M3_LARGEST
        scale = torch.where(scale == 0, 1.0, scale)
        # Rounding of the division may exceed the largest number by a hair, which e4m3 would store as NaN.
        return (wide / scale[..., None]).clamp_(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).view(
            torch.uint8
        ), scale

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """``stored * scale``."""
        data, scale = parts
        return from_e4m3(data.view(torch.float8_e4m3fn)).mul_(scale[..., None]).to(dtype)
