"""Decides what a trace's own rows say about units that its format leaves open: the clock's, and the size of a block.

A format's reader is run over the first rows once, only to see the raw values it asks the cursor about. What they allow
is decided from them; what they leave open is asked of the user, since a trace replayed a thousand times too fast says
nothing about any server.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvload.errors import TraceError, UsageError

SURVEYED_ROWS = 20_000

TICKS_PER_S = 10_000_000
UNITS = {"s": TICKS_PER_S, "ms": 10_000, "us": 10, "ns": 0.01}
"""Ticks of 100 ns in one unit of time, by the unit's name."""

_EPOCH_S = (1e9, 4e9)
"""Seconds since 1970 of the years 2001 to 2096."""

_SLOW, _FAST = 20.0, 500.0
"""Requests a second: a trace in milliseconds is believed up to the one, and taken for seconds from the other on."""

_FEW = 0.002
"""Requests a second at or below which a trace that may be in seconds is taken for milliseconds."""

_ENOUGH = 3
"""Times from which on a low rate is one: two requests may be any time apart."""

_BLOCK_SIZES = (512, 16, 32, 64, 128, 256, 1024, 2048, 4096, 8, 4, 2, 1)


@dataclass
class Survey:
    """Raw values of the first rows.

    Attributes:
        times: numbers given as times, in rows' order.
        unit: the unit that the format states for them.
        is_open: whether the format leaves room for another one.
        blocks: number of block ids and tokens of each prompt that has ids.
        block_tokens: the block size that the format states.
    """

    times: list[float] = field(default_factory=list)
    unit: str | None = None
    is_open: bool = False
    blocks: list[tuple[int, int]] = field(default_factory=list)
    block_tokens: int | None = None


def parse_unit(text: str) -> str:
    """A unit of time from its name.

    Raises:
        UsageError: there is no such unit.
    """
    if text not in UNITS:
        raise UsageError(f"no such unit of time: '{text}'", where="--time-unit", hint=f"known: {', '.join(UNITS)}")
    return text


def time_unit(found: Survey, path: Path) -> tuple[str, str | None]:
    """The unit that a survey's times are in, and what to tell the user about it (None where it is the format's own).

    Times since 1970 tell their unit by their size. Others tell it by the rate they make: read in milliseconds, a trace
    of fewer than 20 requests a second is in milliseconds; beyond that, fractions or a rate of 500 and more show
    seconds.

    Raises:
        TraceError: both readings are possible.
    """
    stated = found.unit or "s"
    if not found.times:
        return stated, None
    epoch = _epoch_unit(found.times)
    if epoch is not None:
        return epoch, None if epoch == stated else f"times are read as {_WORDS[epoch]} since 1970"
    first, last = min(found.times), max(found.times)
    if last == first:
        return stated, None
    rate = (len(found.times) - 1) / (last - first)
    if not found.is_open:
        is_odd = stated == "s" and len(found.times) >= _ENOUGH and rate < _SLOW / 1000
        told = f"times are read as seconds: they make {rate:.2g} requests a second (--time-unit ms if they do not)"
        return stated, told if is_odd else None
    if stated == "ms":
        return _milliseconds(found.times, rate, path)
    if stated == "s" and rate < _SLOW / 1000:
        if rate <= _FEW:
            return "ms", f"times are read as milliseconds: as seconds they make {rate:.2g} requests a second"
        raise _unclear(rate, "seconds", rate * 1000, "milliseconds", path)
    return stated, None


def block_tokens(found: Survey) -> tuple[int | None, str | None]:
    """The block size that all surveyed prompts show, and what to tell about it; None where the format's own fits.

    Ids stand for every begun block, or for whole blocks only. A prompt of at least two blocks bounds their size from
    both sides; where there is none, nothing is shown.
    """
    stated = found.block_tokens
    counts = [count for count, _ in found.blocks]
    if stated is None or max(counts, default=0) < 2 or _fits(found.blocks, stated, whole=False):
        return None, None
    for whole in (False, True):
        for size in (stated, *_BLOCK_SIZES):
            if _fits(found.blocks, size, whole=whole):
                what = "whole blocks only have ids" if whole else "every begun block has an id"
                return size, f"blocks are read as {size} tokens, as the lengths show: {what}"
    return None, None


def block_count(length: int, size: int, *, whole: bool) -> int:
    """Blocks of ``size`` tokens that a prompt of ``length`` tokens fills, or else begins."""
    return length // size if whole else -(-length // size)


_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def _milliseconds(times: Sequence[float], rate_per_ms: float, path: Path) -> tuple[str, str | None]:
    rate = rate_per_ms * 1000
    if rate <= _FEW and len(times) >= _ENOUGH:
        raise _unclear(rate, "milliseconds", rate * 1000, "microseconds", path)
    if rate <= _SLOW:
        return "ms", None
    fractional = any(value != int(value) for value in times)
    if fractional or rate >= _FAST:
        why = "they have fractions, and " if fractional else ""
        return "s", (
            f"times are read as seconds: {why}as milliseconds they make {rate:,.0f} requests a second "
            "(--time-unit ms if they do)"
        )
    raise _unclear(rate_per_ms, "seconds", rate, "milliseconds", path)


def _unclear(slow: float, slow_unit: str, fast: float, fast_unit: str, path: Path) -> TraceError:
    names = {word: unit for unit, word in _WORDS.items()}
    return TraceError(
        f"times may be {slow_unit} ({slow:.2g} requests a second) or {fast_unit} ({fast:.3g})",
        where=str(path),
        hint=f"say which: --time-unit {names[slow_unit]} or --time-unit {names[fast_unit]}",
    )


def _epoch_unit(times: Sequence[float]) -> str | None:
    low, high = _EPOCH_S
    for unit, ticks in UNITS.items():
        scale = TICKS_PER_S / ticks
        if all(low * scale <= value <= high * scale for value in times):
            return unit
    return None


def _fits(blocks: Sequence[tuple[int, int]], size: int, *, whole: bool) -> bool:
    return all(count == block_count(length, size, whole=whole) for count, length in blocks)
