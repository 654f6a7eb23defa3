"""The storage types of GGUF tensors as float32.

Numbers are stored in blocks, each with its scales. Source: the block layouts of the ggml project (``ggml-common.h``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Storage:
    """How one type stores numbers.

    Attributes:
        name: ggml's.
        elements, bytes: of a block.
        decode: blocks ``(n, bytes)`` as ``(n, elements)`` float32.
    """

    name: str
    elements: int
    bytes: int
    decode: Callable[[Bytes], Floats]


def _half(blocks: Bytes, start: int) -> Floats:
    """A float16 at a place of each block, ``(n, 1)``."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> npt.NDArray[np.int32]:
    """Low halves of all bytes, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int32)


def _fifth_bits(blocks: Bytes, start: int) -> npt.NDArray[np.int32]:
    """32 bits of each block as the fifth bits of 32 codes."""
    return np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little").astype(np.int32) << 4


def _f32(blocks: Bytes) -> Floats:
    return blocks.copy().view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.copy().view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)) + _half(blocks, 2)


def _six_bit_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of six bits each, ``(n, 8)``, out of twelve bytes."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(blocks: Bytes) -> Floats:
    """Eight groups of 32; bytes ``32 j .. 32 j + 32`` hold group ``2 j`` in their low halves and ``2 j + 1`` above."""
    packed = blocks[:, 16:].reshape(-1, 4, 32)
    codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
    return _scaled_groups(blocks, codes)


def _q5_k(blocks: Bytes) -> Floats:
    """As 4 bits; the fifth bit of group ``g``'s number ``i`` is bit ``g`` of byte ``i``."""
    packed = blocks[:, 48:].reshape(-1, 4, 32)
    codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    return _scaled_groups(blocks, codes | (fifth << 4))


def _scaled_groups(blocks: Bytes, codes: Bytes) -> Floats:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scale, least = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    values: Floats = (scale[:, :, None] * codes - least[:, :, None]).reshape(-1, 256).astype(np.float32)
    return values


def _q6_k(blocks: Bytes) -> Floats:
    """Halves of 128 numbers; each has four quarters of 32, two of them in the low halves of the bytes."""
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    upper = (high >> np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]) & 3
    codes = np.concatenate([low & 15, low >> 4], axis=2) | (upper << 4)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    values = (codes.astype(np.float32) - 32).reshape(-1, 16, 16) * scales[:, :, None]
    whole: Floats = (values * _half(blocks, 208)[:, :, None]).reshape(-1, 256).astype(np.float32)
    return whole


STORAGES: Mapping[int, Storage] = MappingProxyType(
    {
        0: Storage("F32", 1, 4, _f32),
        1: Storage("F16", 1, 2, _f16),
        2: Storage("Q4_0", 32, 18, _q4_0),
        3: Storage("Q4_1", 32, 20, _q4_1),
        6: Storage("Q5_0", 32, 22, _q5_0),
        7: Storage("Q5_1", 32, 24, _q5_1),
        8: Storage("Q8_0", 32, 34, _q8_0),
        12: Storage("Q4_K", 256, 144, _q4_k),
        13: Storage("Q5_K", 256, 176, _q5_k),
        14: Storage("Q6_K", 256, 210, _q6_k),
        30: Storage("BF16", 1, 2, _bf16),
    }
)
"""Type number to its layout; others are refused."""


def bfloat16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
