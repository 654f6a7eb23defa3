"""Date-times of traces as whole ticks of 100 ns: a float of the year 2024 cannot hold their seven digits."""

import re
from datetime import UTC, datetime

from kvload.workloads.traces.survey import TICKS_PER_S

_DIGITS = 7
_PATTERN = re.compile(
    r"(?P<second>\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?|\d{8}T\d{6})(?:[.,](?P<fraction>\d{1,9}))?"
    r"(?:\s?(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?))?",
    re.ASCII | re.IGNORECASE,
)
_ZONES = {"Z": "+00:00", "UTC": "+00:00", "GMT": "+00:00"}


class TickParser:
    """Parses ISO-8601-like date-times of one file; remembers the last second, since neighbours mostly share it."""

    def __init__(self) -> None:
        self._second = ""
        self._ticks = 0

    def ticks(self, text: str) -> int | None:
        """Ticks of 100 ns since 1970; a date-time without a zone counts as UTC; None where the text is none.

        Digits beyond the seventh are cut off.
        """
        match = _PATTERN.fullmatch(text.strip())
        if not match:
            return None
        second, fraction, zone = match.groups()
        if fraction is not None and second.count(":") == 1:
            return None  # a fraction of a minute
        key = second.upper() + _ZONES.get((zone or "").upper(), zone or "")
        if key != self._second:
            try:
                moment = datetime.fromisoformat(key)
            except ValueError:
                return None
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            self._second, self._ticks = key, int(moment.timestamp()) * TICKS_PER_S
        return self._ticks + (int(fraction[:_DIGITS].ljust(_DIGITS, "0")) if fraction else 0)
