"""What each method claims to hold, in bytes per token, per layer and per KV head, keys and values together.

Arithmetic from the methods' definitions, windows, scales and bookkeeping included, without the unused end of a last
page. The tests hold the claims against what the embedded engine's allocator gives out.

Every function returns the mean bytes of a token.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stored:
    """A sequence of which the bytes are asked.

    Attributes:
        tokens: its length.
        head_dim: elements of a key, and of a value.
        element_bytes: bytes of an uncompressed element.
        options: all options of the method.
    """

    tokens: int
    head_dim: int
    element_bytes: int = 2
    options: Mapping[str, int | float] = field(default_factory=dict)


CLAIM_TOKENS = 8192
"""Length of the sequence that a method's bytes per token are stated for: budgets and windows make them depend on it."""
CLAIM_HEAD_DIM = 128
"""Head size they are stated for where no model is given."""

Claim = Callable[[Stored], float]


def uncompressed(stored: Stored) -> float:
    """``2 D`` elements."""
    return 2 * stored.head_dim * stored.element_bytes


def eight_bit(stored: Stored) -> float:
    """A byte an element and a float32 scale each for key and value."""
    return 2 * stored.head_dim + 2 * 4


def four_bit(stored: Stored) -> float:
    """Half a byte an element, and a float16 scale and minimum each for key and value."""
    return stored.head_dim + 2 * 4


def grouped(key_bits: int, value_bits: int, groups: int) -> Claim:
    """Packed numbers, and a float16 step and minimum for each group of channels.

    Args:
        groups: of a key and of a value together.
    """

    def claim(stored: Stored) -> float:
        return stored.head_dim * (key_bits + value_bits) / 8 + 4 * groups

    return claim


def kivi(bits: int) -> Claim:
    """``N // R * R`` packed keys and ``N - R`` packed values; the others in full."""

    def claim(stored: Stored) -> float:
        group, residual = int(stored.options["group"]), int(stored.options["residual"])
        packed_token = stored.head_dim * bits / 8 + stored.head_dim * 4 / group
        packed_keys = stored.tokens // residual * residual
        packed_values = max(0, stored.tokens - residual)
        full = (2 * stored.tokens - packed_keys - packed_values) * stored.head_dim * stored.element_bytes
        return ((packed_keys + packed_values) * packed_token + full) / stored.tokens

    return claim


def gear(bits: int) -> Claim:
    """Blocks of packed numbers with their low-rank factors and outliers; the newest tokens in full."""

    def claim(stored: Stored) -> float:
        group, block, rank = int(stored.options["group"]), int(stored.options["block"]), int(stored.options["rank"])
        share = float(stored.options["outliers"]) / 2
        packed = stored.tokens // block * block
        groups = math.ceil(stored.head_dim / group)
        key = stored.head_dim * bits / 8 + stored.head_dim * 4 / group
        value = stored.head_dim * bits / 8 + groups * 4
        low_rank = 2 * rank * (block + stored.head_dim) * 2 / block
        # A value of float16 and an index of one byte for each side of each vector.
        key_outliers = 2 * math.ceil(share * block) * stored.head_dim * 3 / block
        value_outliers = 2 * math.ceil(share * stored.head_dim) * 3
        full = (stored.tokens - packed) * 2 * stored.head_dim * stored.element_bytes
        return (packed * (key + value + low_rank + key_outliers + value_outliers) + full) / stored.tokens

    return claim


def sink_window(stored: Stored) -> float:
    """``start + recent`` tokens in full."""
    kept = min(stored.tokens, int(stored.options["start"]) + int(stored.options["recent"]))
    return kept * 2 * stored.head_dim * stored.element_bytes / stored.tokens


def scored(spare: int) -> Claim:
    """``budget`` tokens in full, each with a float32 score and an int32 position.

    Args:
        spare: slots beyond the budget that are always held.
    """

    def claim(stored: Stored) -> float:
        kept = min(stored.tokens, int(stored.options["budget"]) + spare)
        return kept * (2 * stored.head_dim * stored.element_bytes + 8) / stored.tokens

    return claim


def leankv(stored: Stored) -> float:
    """Every token at the high precision: what is held before significance is known, and never more than that."""
    return 12 * stored.head_dim / 8 + 4 + 2 * 4 + 8
