"""GEAR: few-bit numbers, exact outliers, and a low-rank repair of the rounding error."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from kvload.servers.embedded.compression.base import BlockMethod
from kvload.servers.kernels.layout import Field, PageShape
from kvload.servers.kernels.quantise import affine, pack, unpack

POWER_ITERATIONS = 3
LARGEST_INDEX = 256


@dataclass(frozen=True)
class Gear(BlockMethod):
    """Kang et al. 2024, arXiv 2403.05527: ``X ~ Q(X - S) + A B^T + S`` for blocks of tokens of one head.

    ``S`` are the largest and smallest numbers of a vector, in float16 with one byte of index; where they stood, the
    vector's mean is rounded in their place. Vectors are the channels of the keys and the tokens of the values. ``Q``
    rounds groups of consecutive tokens of a channel for the keys, of consecutive channels of a token for the values.
    ``A (block, rank)`` and ``B (head_dim, rank)`` are found by power iteration on the error of ``Q``.

    The paper factors a whole prompt at once; here every block has factors of its own, since prompts come in chunks.

    Attributes:
        bits: of a rounded number, 2 or 4.
        group: numbers that share a step.
        block: tokens compressed together; the newest ones wait in full precision until a block is full.
        rank, decode_rank: of the repair, for blocks of the prompt and for generated ones.
        outliers: share of each vector that is kept exactly, half of it at either end, rounded up.
        seed: of the power iteration's first guess.
    """

    bits: int = 4
    group: int = 64
    block: int = 64
    rank: int = 4
    decode_rank: int = 2
    outliers: float = 0.02
    seed: int = 0

    @property
    def page_tokens(self) -> int:
        return self.block

    @property
    def window_tokens(self) -> int:
        return self.block

    @property
    def sliding_values(self) -> bool:
        """Keys and values are compressed together."""
        return False

    def _outliers_of(self, size: int) -> int:
        return math.ceil(self.outliers / 2 * size)

    def _shared(self, shape: PageShape) -> tuple[Field, ...]:
        if shape.head_dim > LARGEST_INDEX:
            raise ValueError(f"gear serves head sizes up to {LARGEST_INDEX}, not {shape.head_dim}")
        return (
            Field("left", torch.float16, (shape.heads, shape.tokens, self.rank)),
            Field("right", torch.float16, (shape.heads, shape.head_dim, self.rank)),
        )

    def key_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """Codes packed along tokens, steps and lows of each channel, outliers of each channel, factors."""
        grouped = (shape.tokens // self.group, shape.heads, shape.head_dim)
        outliers = (2 * self._outliers_of(shape.tokens), shape.heads, shape.head_dim)
        return (
            Field("data", torch.uint8, (shape.tokens * self.bits // 8, shape.heads, shape.head_dim)),
            Field("step", torch.float16, grouped),
            Field("low", torch.float16, grouped),
            Field("outlier", torch.float16, outliers),
            Field("index", torch.uint8, outliers),
            *self._shared(shape),
        )

    def value_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """Codes packed along channels, steps and lows of each token, outliers of each token, factors."""
        channels = min(self.group, shape.head_dim)
        if shape.head_dim % channels:
            raise ValueError(f"group ({channels}) must divide the head size ({shape.head_dim})")
        grouped = (shape.tokens, shape.heads, shape.head_dim // channels)
        outliers = (shape.tokens, shape.heads, 2 * self._outliers_of(shape.head_dim))
        return (
            Field("data", torch.uint8, (shape.tokens, shape.heads, shape.head_dim * self.bits // 8)),
            Field("step", torch.float16, grouped),
            Field("low", torch.float16, grouped),
            Field("outlier", torch.float16, outliers),
            Field("index", torch.uint8, outliers),
            *self._shared(shape),
        )

    def encode_keys(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """Vectors are channels: along dimension 1."""
        outlier, index, filled = self._split(x.float(), 1)
        pages, tokens, heads, size = x.shape
        grouped = filled.view(pages, tokens // self.group, self.group, heads, size).movedim(2, -1)
        codes, step, low = affine(grouped, self.bits)
        codes = codes.movedim(-1, 2).reshape(x.shape)
        packed = pack(codes, self.bits, dim=1)
        error = filled - self._unpacked_keys(packed, step, low)
        return packed, step, low, outlier, index, *self._factors(error, prompt)

    def encode_values(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """Vectors are tokens: along the last dimension."""
        outlier, index, filled = self._split(x.float(), -1)
        grouped = filled.view(*x.shape[:-1], -1, min(self.group, x.shape[-1]))
        codes, step, low = affine(grouped, self.bits)
        packed = pack(codes.flatten(-2), self.bits)
        error = filled - self._unpacked_values(packed, step, low)
        return packed, step, low, outlier, index, *self._factors(error, prompt)

    def decode_keys(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """``Q + A B^T``, outliers put back."""
        data, step, low, outlier, index, left, right = parts
        return self._restored(self._unpacked_keys(data, step, low), left, right, outlier, index, 1)

    def decode_values(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """``Q + A B^T``, outliers put back."""
        data, step, low, outlier, index, left, right = parts
        return self._restored(self._unpacked_values(data, step, low), left, right, outlier, index, -1)

    def _split(self, x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Outliers, their indices, and ``x`` with the mean in their place."""
        count = self._outliers_of(x.shape[dim])
        ends = [x.topk(count, dim, largest=largest).indices for largest in (True, False)]
        index = torch.cat(ends, dim)
        mean = x.mean(dim, keepdim=True).expand(index.shape)
        return x.gather(dim, index).half(), index.to(torch.uint8), x.scatter(dim, index, mean)

    def _unpacked_keys(self, data: torch.Tensor, step: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        codes = unpack(data, self.bits, dim=1)
        grouped = codes.view(codes.shape[0], -1, self.group, *codes.shape[2:])
        grouped.mul_(step[:, :, None]).add_(low[:, :, None])
        return codes

    def _unpacked_values(self, data: torch.Tensor, step: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        codes = unpack(data, self.bits)
        codes.view(*step.shape, -1).mul_(step[..., None]).add_(low[..., None])
        return codes

    def _factors(self, error: torch.Tensor, prompt: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-rank factors of ``(pages, tokens, heads, head_dim)`` errors, padded with zeros to ``rank``."""
        rank = self.rank if prompt else min(self.rank, self.decode_rank)
        matrices = error.transpose(1, 2)
        guess = np.random.default_rng(self.seed).standard_normal((error.shape[-1], rank))
        right = torch.from_numpy(guess).to(error).expand(*matrices.shape[:2], -1, -1)
        left = torch.empty(0)
        for iteration in range(POWER_ITERATIONS):
            last = iteration == POWER_ITERATIONS - 1
            left = matrices @ (torch.linalg.qr(right).Q if last else right)
            left = torch.linalg.qr(left).Q if last else left
            right = matrices.transpose(-1, -2) @ left
        padding = (0, self.rank - rank)
        return tuple(torch.nn.functional.pad(side, padding).half() for side in (left, right))  # type: ignore[return-value]

    @staticmethod
    def _restored(
        x: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        outlier: torch.Tensor,
        index: torch.Tensor,
        dim: int,
    ) -> torch.Tensor:
        x += (left.float() @ right.float().transpose(-1, -2)).transpose(1, 2)
        return x.scatter_(dim, index.long(), outlier.float())
