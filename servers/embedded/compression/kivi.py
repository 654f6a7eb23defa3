"""KIVI: keys rounded per channel, values per token, the newest tokens exact."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import BlockMethod
from kvload.servers.kernels.layout import Field, PageShape
from kvload.servers.kernels.quantise import affine, pack, unpack


@dataclass(frozen=True)
class Kivi(BlockMethod):
    """Liu et al. 2024, arXiv 2402.02750, on keys after the rotary embedding.

    A page of keys holds ``group`` tokens of all heads, and every channel of it shares a float16 step and minimum. A
    page of values holds as many tokens, each with a step and a minimum for every ``group`` channels.

    Attributes:
        bits: of a packed number, 2 or 4.
        group: numbers that share a step.
        residual: keys are packed this many at a time; as many newest values are exact.
    """

    bits: int = 4
    group: int = 32
    residual: int = 128

    @property
    def page_tokens(self) -> int:
        return self.group

    @property
    def window_tokens(self) -> int:
        return self.residual

    @property
    def sliding_values(self) -> bool:
        """One value leaves the window with every new token."""
        return True

    def key_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """``data (group * bits / 8, heads, head_dim)``, packed along tokens; ``step`` and ``low (heads, head_dim)``."""
        data = Field("data", torch.uint8, (shape.tokens * self.bits // 8, shape.heads, shape.head_dim))
        return data, *(Field(name, torch.float16, (shape.heads, shape.head_dim)) for name in ("step", "low"))

    def value_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """``data (group, heads, head_dim * bits / 8)``; ``step`` and ``low (group, heads, head_dim / group)``."""
        groups = shape.head_dim // self._channels(shape.head_dim)
        data = Field("data", torch.uint8, (shape.tokens, shape.heads, shape.head_dim * self.bits // 8))
        return data, *(Field(name, torch.float16, (shape.tokens, shape.heads, groups)) for name in ("step", "low"))

    def _channels(self, head_dim: int) -> int:
        channels = min(self.group, head_dim)
        if head_dim % channels:
            raise ValueError(f"group ({self.group}) must divide the head size ({head_dim})")
        return channels

    def encode_keys(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """Groups of consecutive tokens of one channel."""
        del prompt
        codes, step, low = affine(x.permute(0, 2, 3, 1), self.bits)
        return pack(codes.permute(0, 3, 1, 2), self.bits, dim=1), step, low

    def encode_values(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """Groups of consecutive channels of one token."""
        del prompt
        codes, step, low = affine(x.reshape(*x.shape[:-1], -1, self._channels(x.shape[-1])), self.bits)
        return pack(codes.flatten(-2), self.bits), step, low

    def decode_keys(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """``code * step + low``."""
        data, step, low = parts
        return unpack(data, self.bits, dim=1).mul_(step[:, None]).add_(low[:, None])

    def decode_values(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """``code * step + low``."""
        data, step, low = parts
        codes = unpack(data, self.bits)
        grouped = codes.view(*step.shape, -1)
        grouped.mul_(step[..., None]).add_(low[..., None])
        return codes
