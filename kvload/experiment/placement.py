"""What is kept of an experiment's runs, side by side or in a row: where each was made and how long its parts took."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvload.errors import KvloadError
from kvload.experiment.slots import THIS_MACHINE, Slot
from kvload.private import write_bytes
from kvload.servers.lifecycle.starting import ServerDiedError, StartFailedError

PLACEMENT_NAME = "placement.json"

CARD_FAULTS = frozenset({"driver", "gpu_lost", "node_lost"})
"""Causes of a failed start, or a death, that speak of the GPU or of its node, and not of what was started on it."""

INTERRUPTED = "interrupted"


class PlacedRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a run was made, and how long its parts took.

    Attributes:
        arm, repeat: which run; of a sweep, which walk.
        slot: name of its place (``GPU 0``).
        began_at: Unix seconds.
        launch_s, replay_s, stop_s: None for parts it did not come to; of a sweep's walk ``replay_s`` is all of it.
        failed: why, where it did.
        lost_s: what a run took that failed or was interrupted.
        alone: the baseline with nothing beside it, after all others.
    """

    arm: str
    repeat: int
    slot: str
    began_at: float
    launch_s: float | None = None
    replay_s: float | None = None
    stop_s: float | None = None
    failed: str | None = None
    lost_s: float | None = None
    alone: bool = False

    def with_parts(self, launch_s: float | None, replay_s: float | None, stop_s: float | None) -> "PlacedRun":
        """The run once its parts are known, in seconds."""
        return msgspec.structs.replace(self, launch_s=launch_s, replay_s=replay_s, stop_s=stop_s)

    @property
    def parts_s(self) -> float:
        """Launch, replay and stop together."""
        return sum(part for part in (self.launch_s, self.replay_s, self.stop_s) if part is not None)


@dataclass(frozen=True)
class NextDoor:
    """What went on in other places while a run's load was sent.

    Attributes:
        anything: the share of that time in which another run went on, 0 to 1.
        launches: in which a server was being launched.
    """

    anything: float
    launches: float


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One go at an experiment, from its beginning to its end or an interruption.

    Attributes:
        began_at: Unix seconds.
        wall_s: how long it took.
        slots: names of the places; one where runs followed each other.
    """

    began_at: float
    wall_s: float
    slots: list[str]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment's folder keeps of where its runs were made.

    Attributes:
        slots: names of the places of the last session.
        cpus: processors of each place's server and client, where they were told apart.
        runs: all that were begun, in the order they ended.
        wall_s: seconds that all sessions of the experiment took together.
        sessions: each of them.
    """

    slots: list[str]
    cpus: list[tuple[list[int], list[int]]]
    runs: list[PlacedRun] = []
    wall_s: float = 0.0
    sessions: list[Session] = []

    @property
    def serial_s(self) -> float:
        """What the same parts come to one after the other, without the baseline's run alone, which that needs not."""
        return sum(run.parts_s for run in self.runs if not run.alone)

    def session_of(self, run: PlacedRun) -> Session:
        """The one in which a run was made."""
        return next((one for one in reversed(self.sessions) if one.began_at <= run.began_at), self.sessions[0])

    def time_notes(self, unit: str = "run") -> list[str]:
        """How long the runs took side by side and how long the same parts are in a row, or how long they took in a row.

        A sentence for each set of places that was used.

        Args:
            unit: what they are called.
        """
        by_places: dict[tuple[str, ...], list[Session]] = {}
        for session in self.sessions:
            by_places.setdefault(tuple(session.slots), []).append(session)
        found = []
        for places, sessions in by_places.items():
            runs = [run for run in self.runs if self.session_of(run) in sessions]
            if (note := _time_note(unit, places, sessions, runs)) is not None:
                found.append(note)
        return found

    def finished(self, arm: str, repeat: int) -> PlacedRun | None:
        """The run of an arm beside others, as it came to its end."""
        own = [run for run in self.runs if (run.arm, run.repeat) == (arm, repeat) and not run.alone and not run.failed]
        return own[-1] if own else None

    def next_door(self, run: PlacedRun) -> "NextDoor":
        """What went on elsewhere while a run's load was sent."""
        if run.launch_s is None or run.replay_s is None:
            return NextDoor(0.0, 0.0)
        since = run.began_at + run.launch_s
        window = (since, since + run.replay_s)
        others = [other for other in self.runs if other is not run and other.slot != run.slot]
        anything = [(other.began_at, other.began_at + (other.lost_s or other.parts_s)) for other in others]
        launches = [(other.began_at, other.began_at + other.launch_s) for other in others if other.launch_s is not None]
        return NextDoor(_share(window, anything), _share(window, launches))


def _time_note(
    unit: str, places: tuple[str, ...], sessions: Sequence[Session], runs: Sequence[PlacedRun]
) -> str | None:
    wall_s = sum(session.wall_s for session in sessions)
    done = [run for run in runs if run.failed is None]
    counted = [run for run in done if not run.alone]
    serial_s = sum(run.parts_s for run in runs if not run.alone)
    if wall_s <= 0 or serial_s <= 0:
        return None
    where = "" if places == (THIS_MACHINE,) else f" on {', '.join(places)}"
    also = " and the baseline alone" if len(done) > len(counted) else ""
    how = "side by side" if len(places) > 1 else "one after the other"
    said = f"{len(counted)} {unit}{'s' if len(counted) > 1 else ''} {how}{where}{also} took {_seconds(wall_s)}"
    if len(sessions) > 1:
        said += f" in {len(sessions)} sessions ({' + '.join(_seconds(session.wall_s) for session in sessions)})"
    if len(places) > 1:
        said += f"; in a row the same {unit}s come to {_seconds(serial_s)} ({serial_s / wall_s:.2f} times as long)"
    elif any(run.launch_s is not None for run in counted):
        parts = {
            "launches": sum(run.launch_s or 0.0 for run in counted),
            "replays": sum(run.replay_s or 0.0 for run in counted),
            "stops": sum(run.stop_s or 0.0 for run in counted),
        }
        said += ": " + ", ".join(f"{name} {_seconds(part_s)}" for name, part_s in parts.items())
    lost = [run for run in runs if run.lost_s is not None]
    if lost:
        lost_s = sum(run.lost_s or 0.0 for run in lost)
        which = f"a {unit} that was" if len(lost) == 1 else f"{len(lost)} {unit}s that were"
        said += f"; {_seconds(lost_s)} went into {which} interrupted or failed"
    return said


def _seconds(value_s: float) -> str:
    return f"{value_s:,.0f} s"


def _share(window: tuple[float, float], spans: Sequence[tuple[float, float]]) -> float:
    """How much of a window is covered by spans that may overlap, 0 to 1."""
    covered, reached = 0.0, window[0]
    for began, ended in sorted(spans):
        first, last = max(began, reached), min(ended, window[1])
        if last > first:
            covered, reached = covered + last - first, last
    return covered / (window[1] - window[0]) if window[1] > window[0] else 0.0


def read_placement(out: Path) -> Placement | None:
    """What an experiment's folder says of it; None where it says nothing."""
    try:
        found = msgspec.json.decode((out / PLACEMENT_NAME).read_bytes(), type=Placement)
    except (OSError, msgspec.MsgspecError):
        return None
    if found.sessions:
        return found
    # of version 0.1.0, which kept the sum of all sessions only
    began_at = min((run.began_at for run in found.runs), default=0.0)
    return msgspec.structs.replace(found, sessions=[Session(began_at=began_at, wall_s=found.wall_s, slots=found.slots)])


class PlacementLog:
    """Keeps the placement of an experiment on disk while it goes on, from any thread; goes on with what is there.

    It also tells when a slot is of no more use: where its GPU is at fault, or two arms failed in it one after the
    other.
    """

    def __init__(self, out: Path, slots: Sequence[Slot]) -> None:
        before = read_placement(out)
        self._out = out
        self._slots = slots
        self._runs = list(before.runs) if before else []
        self._sessions_before = before.sessions if before else []
        self._began, self._began_at = time.monotonic(), time.time()
        self._failures = dict.fromkeys((slot.number for slot in slots), 0)
        self._useless: set[int] = set()
        self._lock = threading.Lock()

    def begin(self, arm: str, repeat: int, slot: Slot, *, alone: bool = False) -> PlacedRun:
        """A run that begins now."""
        self.save()
        return PlacedRun(arm=arm, repeat=repeat, slot=slot.name, began_at=time.time(), alone=alone)

    def add(self, run: PlacedRun, slot: Slot) -> None:
        """Keep a run that came to its end."""
        with self._lock:
            self._runs.append(run)
            self._failures[slot.number] = 0
        self.save()

    def add_lost(self, run: PlacedRun, why: str) -> None:
        """Keep a run that began and did not come to its end."""
        taken_s = max(time.time() - run.began_at, 0.0)
        with self._lock:
            self._runs.append(msgspec.structs.replace(run, failed=why, lost_s=taken_s))
        self.save()

    def add_cut(self, run: PlacedRun, why: str) -> None:
        """Keep a walk that did not come to its end, and whose levels until then are kept."""
        with self._lock:
            self._runs.append(msgspec.structs.replace(run, failed=why))
        self.save()

    def save(self) -> None:
        """Keep what there is, and the time that has passed."""
        with self._lock:
            names = [slot.name for slot in self._slots]
            wall_s = time.monotonic() - self._began
            sessions = [*self._sessions_before, Session(began_at=self._began_at, wall_s=wall_s, slots=names)]
            placement = Placement(
                slots=names,
                cpus=[(list(slot.server_cpus), list(slot.client_cpus)) for slot in self._slots if slot.client_cpus],
                runs=self._runs,
                wall_s=sum(session.wall_s for session in sessions),
                sessions=sessions,
            )
            path = self._out / PLACEMENT_NAME
            write_bytes(path.with_suffix(".tmp"), msgspec.json.encode(placement))
            path.with_suffix(".tmp").replace(path)

    def useless(self, slot: Slot, error: KvloadError) -> str | None:
        """Why nothing more is to be run in a slot after a failure there; None where it may.

        The last slot is kept where arms failed that may be at fault themselves: nothing else would run the others.
        """
        with self._lock:
            self._failures[slot.number] += 1
            why = None
            if is_cards(error):
                why = "its node is gone" if slot.room is not None else "its GPU is at fault"
            elif self._failures[slot.number] >= 2 and len(self._slots) - len(self._useless) > 1:
                why = "two arms failed there one after the other"
            if why is not None:
                self._useless.add(slot.number)
            return why


def is_gone(error: KvloadError) -> bool:
    """Whether a server could not be started since its node is gone: nothing was tried, and others can."""
    return isinstance(error, StartFailedError) and error.cause.kind == "node_lost"


def is_cards(error: KvloadError) -> bool:
    """Whether a failure is the GPU's, or its node's, and not that of what was started on it."""
    return isinstance(error, StartFailedError | ServerDiedError) and error.cause.kind in CARD_FAULTS
