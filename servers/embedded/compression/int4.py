"""int4 with one scale and minimum per token and head, after a random rotation."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import TokenMethod
from kvload.servers.kernels.layout import Field, PageShape
from kvload.servers.kernels.quantise import affine, pack, unpack


@dataclass(frozen=True)
class Int4(TokenMethod):
    """16 levels between the minimum and the maximum of a token's head, as vLLM's int4 per-token-head.

    ``head_dim / 2`` bytes and a float16 step and minimum each for key and value. The rotation (QuaRot, arXiv
    2404.00456) is applied to queries, keys and values alike and undone on the output.

    Attributes:
        rotate: 1 to rotate, 0 not to.
        seed: of the rotation's signs.
    """

    rotate: int = 1
    seed: int = 0

    @property
    def rotation_seed(self) -> int | None:
        """The seed, if it rotates."""
        return self.seed if self.rotate else None

    @property
    def packed_format(self) -> str | None:
        """Its own."""
        return "int4"

    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        """``data (tokens, heads, head_dim / 2)``, ``step`` and ``low (tokens, heads)``."""
        if shape.head_dim % 2:
            raise ValueError(f"int4 needs an even head size, not {shape.head_dim}")
        data = Field("data", torch.uint8, (shape.tokens, shape.heads, shape.head_dim // 2))
        return data, *(Field(name, torch.float16, (shape.tokens, shape.heads)) for name in ("step", "low"))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Codes, two a byte."""
        codes, step, low = affine(x, 4)
        return pack(codes, 4), step, low

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """``code * step + low``."""
        data, step, low = parts
        return unpack(data, 4).mul_(step[..., None]).add_(low[..., None]).to(dtype)
