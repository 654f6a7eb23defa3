"""Sizes of memory as people write them."""

import re

from kvload.errors import UsageError

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
"""Factor of each unit, in upper case; a bare ``G`` is binary, as engines read it."""


def parse_bytes(text: str, *, where: str | None = None) -> int:
    """Bytes of ``512MiB``, ``1.5GiB``, ``2GB`` or a plain number.

    Raises:
        UsageError: the text is no size, or is below one byte.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})\s*", text)
    factor = UNITS.get(match.group(2).upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"'{text}' is not a size", where=where, hint="as in 512MiB, 1.5GiB or 2GB")
    size = int(float(match.group(1)) * factor)
    if size < 1:
        raise UsageError(f"'{text}' is less than one byte", where=where)
    return size


def format_bytes(size: float) -> str:
    """``536870912`` as ``512 MiB``: three digits at most, binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
