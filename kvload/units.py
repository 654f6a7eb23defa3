"""Durations, sizes, rates, token counts and limits as people write them: the one place that reads and writes them.

Where a unit decides what a number means, a bare number is refused: ``500`` may be half a second or eight minutes. 0 is
the same in every unit, and a rate is in requests per second unless it says otherwise, as load generators have it.
"""

import math
import re
from collections.abc import Mapping

from kvload.errors import UsageError

SECONDS: Mapping[str, float] = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
"""Units of time, in seconds."""

BYTES: Mapping[str, int] = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
"""Units of memory, in bytes, in lower case; a bare ``G`` is binary, as engines read it."""

LIMIT_METRICS = ("ttft", "tpot", "e2e")
"""Metrics of a request on which a limit can be set."""

_NUMBER = r"(?:[0-9]{1,18}(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?"
_QUANTITY = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>[^\W\d_]*)\s*", re.IGNORECASE)
_RATE = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?:/\s*(?P<unit>s|min|h))?\s*", re.IGNORECASE)
_TOKENS = re.compile(r"\s*([0-9]{1,12})(k?)\s*", re.IGNORECASE)
_PERCENTILE = re.compile(r"p(?P<percent>[0-9]{1,2}(?:_[0-9]{1,3})?)_(?P<metric>[a-z0-9]+)")
_ALIASES = {"e2el": "e2e", "latency": "e2e"}


def parse_duration(text: str, *, where: str, bare_unit: str | None = None) -> float:
    """Seconds from ``500ms``, ``1.5s``, ``2min`` or ``1h``.

    Args:
        where: the option it came from, for the message.
        bare_unit: what a number without a unit means; where None, only 0 may stand without one.

    Raises:
        UsageError: it is not a duration, or not a finite one, or has no unit.
    """
    match = _QUANTITY.fullmatch(text)
    value = float(match["number"]) if match else math.nan
    if match is None or (match["unit"] and match["unit"].lower() not in SECONDS):
        raise UsageError(f"'{text}' is not a duration", where=where, hint="write 500ms, 1.5s or 2min")
    unit = match["unit"].lower() or bare_unit
    if unit is None and value != 0:
        number = text.strip()
        raise UsageError(f"'{number}' has no unit", where=where, hint=f"write {number}ms or {number}s")
    value *= SECONDS[unit or "s"]
    if not math.isfinite(value):
        raise UsageError(f"'{text}' is too long", where=where)
    return value


def parse_bytes(text: str, *, where: str | None = None) -> int:
    """Bytes from ``512MiB``, ``1.5GiB`` or ``2GB``.

    Raises:
        UsageError: the text is no size, has no unit, or is below one byte.
    """
    match = _QUANTITY.fullmatch(text)
    if match is not None and not match["unit"]:
        number = text.strip()
        raise UsageError(f"'{number}' has no unit", where=where, hint=f"write {number}MiB or {number}B")
    factor = BYTES.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"'{text}' is not a size", where=where, hint="write 512MiB, 1.5GiB or 2GB")
    size = float(match["number"]) * factor
    if not 1 <= size < 2**63:
        raise UsageError(f"'{text}' is {'less than one byte' if size < 1 else 'too much'}", where=where)
    return int(size)


def parse_rate(text: str, *, where: str, may_be_zero: bool = False) -> float:
    """Events per second from ``4``, ``4/s``, ``240/min``, or ``inf`` for as many as there are at once.

    Args:
        where: the option it came from, for the message.
        may_be_zero: 0 is a rate, too.

    Raises:
        UsageError: it is not a rate above 0.
    """
    if text.strip().lower() == "inf":
        return math.inf
    match = _RATE.fullmatch(text)
    value = float(match["number"]) / SECONDS[(match["unit"] or "s").lower()] if match else math.nan
    if not (0 < value < math.inf or (value == 0 and may_be_zero)):
        raise UsageError(f"'{text}' is not a rate above 0", where=where, hint="write 4 (a second), 240/min or inf")
    return value


def parse_tokens(text: str, *, where: str) -> int:
    """A whole number of tokens of 1 or more from ``512`` or ``2k`` (``k`` is 1024).

    Raises:
        UsageError: it is none.
    """
    match = _TOKENS.fullmatch(text)
    count = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if count < 1:
        raise UsageError(f"'{text}' is not a length in tokens", where=where, hint="write 512 or 2k")
    return count


def parse_limits(text: str, *, where: str, bare_unit: str | None = None) -> dict[str, float]:
    """Limits from ``ttft=500ms,tpot=50ms`` or ``ttft:200ms tpot:50ms``; ``p99_ttft=1s`` limits a run's percentile.

    Args:
        where: the option it came from, for the message.
        bare_unit: what a number without a unit means (``ms`` for ``--goodput``, as vLLM has it); refused where None.

    Returns:
        limits in seconds by name, in the order given; none for an empty text.

    Raises:
        UsageError: an unknown metric, the same one twice, or a limit that is not a duration above 0.
    """
    limits: dict[str, float] = {}
    for part in filter(None, re.split(r"[,\s]+", re.sub(r"\s*([=:])\s*", r"\1", text.strip()))):
        name, separator, value = part.replace(":", "=", 1).partition("=")
        name = _limit_name(name)
        if name is None or not separator:
            raise UsageError(
                f"'{part}' is not a limit",
                where=where,
                hint=f"write METRIC=TIME with a metric of {', '.join(LIMIT_METRICS)}, or pNN_METRIC: ttft=500ms",
            )
        if name in limits:
            raise UsageError(f"two limits on {name}", where=where)
        limits[name] = parse_duration(value, where=where, bare_unit=bare_unit)
        if limits[name] <= 0:
            raise UsageError(f"the limit on {name} must be above 0", where=where)
    return limits


def request_limits(limits: Mapping[str, float]) -> dict[str, float]:
    """Those of the limits that every single request is held to."""
    return {name: limit for name, limit in limits.items() if name in LIMIT_METRICS}


def percentile_of(name: str) -> tuple[float, str] | None:
    """Percentile (0 to 100) and metric of a limit such as ``p99_ttft`` or ``p99_9_e2e``; None for any other name."""
    match = _PERCENTILE.fullmatch(name)
    return (float(match["percent"].replace("_", ".")), match["metric"]) if match else None


def format_bytes(size: float) -> str:
    """``536870912`` as ``512 MiB``: three digits at most, binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def format_duration(value_s: float) -> str:
    """``0.5`` as ``500ms``: what :func:`parse_duration` reads, in the unit that suits it, without loss of digits."""
    if value_s < 0:
        return f"-{format_duration(-value_s)}"
    for unit, factor in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        shown = round(value_s / factor, 9)
        if shown >= 1 and (unit in {"s", "ms"} or shown.is_integer()):
            return f"{shown:.12g}{unit}"
    return f"{round(value_s * 1e6, 6):.12g}us" if value_s else "0s"


def format_limits(limits: Mapping[str, float]) -> str:
    """``{"ttft": 0.5}`` as ``ttft=500ms``: what :func:`parse_limits` reads."""
    return ",".join(f"{name}={format_duration(limit)}" for name, limit in limits.items())


def _limit_name(text: str) -> str | None:
    name = text.lower()
    percentile = _PERCENTILE.fullmatch(name)
    metric = percentile["metric"] if percentile else name
    metric = _ALIASES.get(metric, metric)
    if metric not in LIMIT_METRICS:
        return None
    return f"p{percentile['percent']}_{metric}" if percentile else metric
