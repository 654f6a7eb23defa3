"""How busy this machine was while a run went on: the share of its processors' time in use, and the share stolen."""

from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
_STOLEN = 7


class MachineUse:
    """Measures from its making on; see proc(5) for ``/proc/stat``."""

    def __init__(self) -> None:
        self._start = _ticks()

    def shares(self) -> dict[str, float]:
        """``machine_busy_share`` and ``stolen_share`` of all processors' time since then; empty where not known."""
        now = _ticks()
        if not self._start or len(now) != len(self._start):
            return {}
        spent = [end - start for start, end in zip(self._start, now, strict=True)]
        # guests' time is part of the user's
        total = sum(spent[:8])
        if total <= 0:
            return {}
        idle = sum(spent[place] for place in _IDLE)
        stolen = spent[_STOLEN]
        return {
            "machine_busy_share": round((total - idle - stolen) / total, 4),
            "stolen_share": round(stolen / total, 4),
        }


def _ticks() -> list[int]:
    """The processors' time by what it went into, in ticks since boot; empty where the system does not tell."""
    try:
        first = _STAT.read_text(encoding="ascii").splitlines()[0].split()
        return [int(word) for word in first[1:]] if first[0] == "cpu" and len(first) > _STOLEN + 1 else []
    except (OSError, ValueError, IndexError):
        return []
