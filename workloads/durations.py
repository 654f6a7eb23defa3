"""Times as people write them: ``500ms``, ``1.5s``, ``2min``, and limits such as ``ttft=500ms,tpot=50ms``."""

import math
import re

from kvload.errors import UsageError

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
METRICS = ("ttft", "tpot", "e2e")
"""Metrics a limit can be set on."""


def parse_duration(text: str, *, flag: str, default_unit: str = "s") -> float:
    """Seconds from ``500ms``, ``1.5s``, ``2min``, ``1h`` or a bare number.

    Args:
        flag: the option it came from, for the message.
        default_unit: what a bare number means.

    Raises:
        UsageError: it is not a duration, or not a finite one.
    """
    match = _DURATION.fullmatch(text)
    unit = (match.group(2).lower() or default_unit) if match else ""
    if match is None or unit not in _UNITS_S:
        raise UsageError(f"'{text}' is not a duration", where=flag, hint="write 500ms, 1.5s or 2min")
    value = float(match.group(1)) * _UNITS_S[unit]
    if not math.isfinite(value):
        raise UsageError(f"'{text}' is too long", where=flag)
    return value


def parse_limits(text: str, *, flag: str, default_unit: str = "s") -> dict[str, float]:
    """Limits in seconds by metric, from ``ttft=500ms,tpot=50ms`` (or with colons: ``ttft:200 tpot:50``).

    Raises:
        UsageError: an unknown metric, the same one twice, or a limit that is not a positive duration.
    """
    limits: dict[str, float] = {}
    for part in filter(None, re.split(r"[,\s]+", text.strip())):
        name, separator, value = part.replace(":", "=", 1).partition("=")
        name = {"e2el": "e2e"}.get(name.lower(), name.lower())
        if name not in METRICS or not separator:
            raise UsageError(f"'{part}' is not a limit", where=flag, hint=f"write METRIC=TIME, of {', '.join(METRICS)}")
        if name in limits:
            raise UsageError(f"two limits on {name}", where=flag)
        limits[name] = parse_duration(value, flag=flag, default_unit=default_unit)
        if limits[name] <= 0:
            raise UsageError(f"the limit on {name} must be above 0", where=flag)
    return limits
