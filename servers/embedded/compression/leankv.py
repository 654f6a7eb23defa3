"""LeanKV (DiffKV): two precisions or none, by each token's significance in each head."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvload.servers.kernels.layout import Field, PageLayout, aligned
from kvload.servers.kernels.quantise import affine, pack, unpack

PAGE_ALIGNMENT = 64
VALUE_VECTOR = 4
PAGE_BYTES_PER_CHANNEL = (48, 56)
GROUPS_BY_BITS = {8: 1, 4: 2, 2: 4, 1: 8}


@dataclass(frozen=True)
class Precision:
    """One level: bits of keys and values, and groups of channels with a step and a minimum of their own.

    Attributes:
        key_bits, value_bits: of a number.
        key_groups, value_groups: of a token's head.
    """

    key_bits: int
    value_bits: int
    key_groups: int = 1
    value_groups: int = 1

    def fields(self, tokens: int, head_dim: int) -> tuple[Field, ...]:
        """A page of one head: keys, their scales, values, their scales, score and position.

        Values are laid out for whole vectors of 4 tokens. Scores and positions are float32, which holds positions
        exactly up to 2**24.
        """
        return (
            Field("key", torch.uint8, (tokens, head_dim * self.key_bits // 8)),
            Field("key_scale", torch.float16, (tokens, self.key_groups, 2)),
            Field("value", torch.uint8, (aligned(tokens, VALUE_VECTOR), head_dim * self.value_bits // 8)),
            Field("value_scale", torch.float16, (tokens, self.value_groups, 2)),
            Field("meta", torch.float32, (tokens, 2)),
        )

    def page_tokens(self, page_bytes: int, head_dim: int) -> int:
        """Tokens that fit into a page."""
        tokens = 0
        while PageLayout(self.fields(tokens + 1, head_dim), alignment=PAGE_ALIGNMENT).page_bytes <= page_bytes:
            tokens += 1
        return tokens

    def token_bytes(self, head_dim: int) -> float:
        """Bytes of a token without any padding."""
        scales = 4 * (self.key_groups + self.value_groups)
        return head_dim * (self.key_bits + self.value_bits) / 8 + scales + 8

    def waste(self, page_bytes: int, head_dim: int) -> float:
        """Share of a page that holds no token."""
        return 1 - self.page_tokens(page_bytes, head_dim) * self.token_bytes(head_dim) / page_bytes

    def encode(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values ``(..., head_dim)`` as the first four fields, each ``(..., *)``."""
        return (*self.encode_key(key), *self.encode_value(value))

    def encode_key(self, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of keys ``(..., head_dim)``."""
        return _encoded(key, self.key_bits, self.key_groups)

    def encode_value(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`encode_key`."""
        return _encoded(value, self.value_bits, self.value_groups)

    def decode_key(self, data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Keys ``(..., head_dim)`` float32."""
        return _decoded(data, scale, self.key_bits)

    def decode_value(self, data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Values ``(..., head_dim)`` float32."""
        return _decoded(data, scale, self.value_bits)


def _encoded(x: torch.Tensor, bits: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes, step, low = affine(x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups), bits)
    return pack(codes.flatten(-2), bits), torch.stack([step, low], -1)


def _decoded(data: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    codes = unpack(data, bits)
    grouped = codes.view(*scale.shape[:-1], codes.shape[-1] // scale.shape[-2])
    grouped.mul_(scale[..., :1]).add_(scale[..., 1:])
    return codes


@dataclass(frozen=True)
class LeanKV:
    """Zhang et al., arXiv 2412.03131: LeanKV, in its later version DiffKV.

    A token's significance in a KV head is the mean over the queries that saw it of the attention weight it received,
    the largest among the query heads that share the head. In a prompt the last ``buffer`` queries judge. A token is
    forgotten below ``low / N``, has 4-bit keys and 2-bit values below ``high / N``, and 8-bit keys and 4-bit values
    otherwise and as long as it is among the newest ``buffer``. ``N`` is the prompt's length, and later the position.

    Pages of both precisions have the same bytes, 6784 at head size 128: 32 tokens of high, 52 of low precision.

    Attributes:
        structure: the cache it lives in.
        low, high: thresholds, in multiples of an even share of attention.
        buffer: newest tokens that are always at high precision.
    """

    structure: ClassVar[str] = "heads"
    high_precision: ClassVar[Precision] = Precision(8, 4, GROUPS_BY_BITS[8], GROUPS_BY_BITS[4])
    low_precision: ClassVar[Precision] = Precision(4, 2, GROUPS_BY_BITS[4], GROUPS_BY_BITS[2])

    low: float = 0.02
    high: float = 1.0
    buffer: int = 64

    def page_bytes(self, head_dim: int) -> int:
        """Bytes of the unified page: of those about 50 times the head size, the one that either level fills best."""
        if head_dim % 16:
            raise ValueError(f"leankv needs a head size divisible by 16, not {head_dim}")
        smallest, largest = (aligned(bound * head_dim, PAGE_ALIGNMENT) for bound in PAGE_BYTES_PER_CHANNEL)
        sizes = range(smallest, largest + 1, PAGE_ALIGNMENT)
        return min(sizes, key=lambda size: max(level.waste(size, head_dim) for level in self.precisions))

    @property
    def precisions(self) -> tuple[Precision, Precision]:
        """High and low."""
        return self.high_precision, self.low_precision

    @property
    def page_alignment(self) -> int:
        """Bytes that every field of a page starts at a multiple of."""
        return PAGE_ALIGNMENT
