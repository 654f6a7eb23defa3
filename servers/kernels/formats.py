"""Packed pages as plain data: what the Triton kernels, the torch reference and the plugins agree on.

A page holds :data:`PAGE_TOKENS` tokens of one layer, head after head; the run of one head is contiguous::

    key words | value words | key side data | value side data

*Words* are 16-bit, little-endian, one row a token. Word ``j`` of a row of ``w`` words holds, lowest bits first, the
codes of channels ``j``, ``j + w``, ``j + 2 w`` ...: one mask over a pair of words yields two neighbouring channels,
where a tensor core wants a pair of float16 numbers.

*Side data* are 32-bit: a float16 step and a float16 low (``x = code * step + low``), or one float32 scale where
codes are symmetric (``x = (code - 128) * scale``). Per token they are ``(groups, PAGE_TOKENS)``, per channel
``(head_size,)``.

Formats with a *window* (KIVI) write a page when its last token arrives and never change it. The newest tokens are in
full precision besides, in a ring of :data:`RING_TOKENS` tokens for each running sequence, position ``p`` in slot
``p % RING_TOKENS``; attention reads the ring for what lies in it, see :func:`packed_tokens`.
"""

from dataclasses import dataclass

PAGE_TOKENS = 64
"""Tokens of a page; also what share a step in a channel of KIVI's keys."""

RING_TOKENS = 2 * PAGE_TOKENS
"""Tokens of a ring: the unfinished page and the full one before it."""

HEAD_SIZES = (64, 96, 128)
"""Head sizes the kernels are tested with."""

KIVI_CHANNELS = 64
"""Channels of one token's value that share a step in KIVI."""


@dataclass(frozen=True)
class Codes:
    """How keys, or values, become integers.

    Attributes:
        bits: of a code: 2, 4 or 8.
        groups: equal ranges of channels that have a step each.
        per_channel: steps belong to a channel of a page instead of a token.
        symmetric: one float32 scale, ``max |x| / 127``, in place of step and low.
    """

    bits: int
    groups: int = 1
    per_channel: bool = False
    symmetric: bool = False

    @property
    def zero(self) -> int:
        """The code that stands for ``low``."""
        return 128 if self.symmetric else 0

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"codes have 2, 4 or 8 bits, not {self.bits}")
        if (16 // self.bits) % self.groups:
            raise ValueError(f"{self.groups} groups do not divide the {16 // self.bits} codes of a word")
        if self.symmetric and (self.bits, self.groups, self.per_channel) != (8, 1, False):
            raise ValueError("symmetric codes have 8 bits and one scale a token")


@dataclass(frozen=True)
class PageFormat:
    """The layout of a page of one method at one head size.

    Attributes:
        method: its name in the catalogue.
        head_size: channels of a head; a multiple of 16.
        key, value: their codes.
        window: whether the newest tokens are kept in a ring as well.
    """

    method: str
    head_size: int
    key: Codes
    value: Codes
    window: bool = False

    @property
    def value_offset(self) -> int:
        """Byte at which the value words of a head's run start."""
        return PAGE_TOKENS * self.head_size * self.key.bits // 8

    @property
    def key_side_offset(self) -> int:
        """Byte at which the key side data start."""
        return self.value_offset + PAGE_TOKENS * self.head_size * self.value.bits // 8

    @property
    def value_side_offset(self) -> int:
        """Byte at which the value side data start."""
        return self.key_side_offset + 4 * self._side_items(self.key)

    @property
    def run_bytes(self) -> int:
        """Bytes of one head's run, keys and values together."""
        return self.value_side_offset + 4 * self._side_items(self.value)

    @property
    def token_bytes(self) -> float:
        """Bytes of a token in one layer and KV head, the ring not counted."""
        return self.run_bytes / PAGE_TOKENS

    def ring_bytes(self, element_bytes: int = 2) -> int:
        """Bytes that each running sequence holds besides its pages, in one layer and KV head."""
        return 2 * RING_TOKENS * self.head_size * element_bytes if self.window else 0

    def _side_items(self, codes: Codes) -> int:
        return self.head_size if codes.per_channel else codes.groups * PAGE_TOKENS


def page_format(method: str, head_size: int) -> PageFormat:
    """The format of a method.

    ``int8`` rounds as vLLM's ``int8_per_token_head`` does, ``int4`` as this engine's (a rotation, where asked for, is
    applied before). ``kivi-4`` and ``kivi-2`` are KIVI with groups of 64 (arXiv 2402.02750 uses 32 by default),
    ``k8v4`` and ``k4v2`` the two precisions of LeanKV (arXiv 2412.03131) with its groups of channels.

    Raises:
        ValueError: unknown method, or a head size that it cannot pack.
    """
    if head_size % 16 or not 32 <= head_size <= 256:
        raise ValueError(f"packed pages need a head size that is a multiple of 16 from 32 to 256, not {head_size}")
    found = _CODES.get(method)
    if found is None:
        raise ValueError(f"no packed page format '{method}'; known: {', '.join(sorted(_CODES))}")
    key, value = found
    window = key.per_channel
    if window:
        if head_size > KIVI_CHANNELS and head_size % KIVI_CHANNELS:
            # 96 channels: two groups of 48.
            value = Codes(value.bits, 2)
        else:
            value = Codes(value.bits, max(1, head_size // KIVI_CHANNELS))
    return PageFormat(method, head_size, key, value, window)


_CODES = {
    "int8": (Codes(8, symmetric=True), Codes(8, symmetric=True)),
    "int4": (Codes(4), Codes(4)),
    "k8v4": (Codes(8), Codes(4, 2)),
    "k4v2": (Codes(4, 2), Codes(2, 4)),
    "kivi-4": (Codes(4, per_channel=True), Codes(4)),
    "kivi-2": (Codes(2, per_channel=True), Codes(2)),
}

PACKED_METHODS = tuple(_CODES)
"""Methods that have a packed page format."""


def packed_tokens(length: int, ring_from: int = 0) -> int:
    """How many of a sequence's first tokens attention reads from pages; the rest is read from the ring.

    All but the last 64 to 127 tokens, in whole pages. After a prefix hit the ring lacks what came with it, and full
    pages up to there are read as packed.

    Args:
        length: tokens stored, the newest included.
        ring_from: position of the first token that was written to the ring; whole pages.
    """
    full = length // PAGE_TOKENS * PAGE_TOKENS
    return max(0, full - PAGE_TOKENS, min(full, ring_from))
