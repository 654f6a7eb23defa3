"""What was decided while a trace was read, each thing told once with how often it happened."""

from collections import Counter

_NAMED = 12


class Notes:
    """Collects while a trace is read; complete once it has been read to its end."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}
        self._rows: Counter[str] = Counter()
        self._groups: dict[str, Counter[str]] = {}

    def say(self, text: str) -> None:
        """A sentence about the whole trace; said once however often it is given."""
        self._said[text] = None

    def rows(self, text: str) -> None:
        """Something true of one row: told as ``N rows: TEXT``."""
        self._rows[text] += 1

    def group(self, heading: str, member: str) -> None:
        """One more case of a group: told as ``HEADING: member (N), other (M)``."""
        self._groups.setdefault(heading, Counter())[member] += 1

    def sentences(self) -> list[str]:
        """All that was collected."""
        found = list(self._said)
        found += [f"{count:,} {'row' if count == 1 else 'rows'}: {text}" for text, count in self._rows.items()]
        for heading, members in self._groups.items():
            named = [f"{name} ({count:,})" for name, count in members.most_common(_NAMED)]
            if len(members) > _NAMED:
                named.append(f"and {len(members) - _NAMED} more")
            found.append(f"{heading}: {', '.join(named)}")
        return found
