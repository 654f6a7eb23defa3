"""What is kept of runs that were made side by side: where each was made and how long its parts took."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvload.errors import KvloadError
from kvload.experiment.forecast import time_text
from kvload.experiment.slots import Slot
from kvload.private import write_bytes
from kvload.servers.lifecycle.starting import StartFailedError

PLACEMENT_NAME = "placement.json"

CARD_FAULTS = frozenset({"driver", "gpu_lost", "node_lost"})
"""Causes of a failed start that speak of the GPU, or of its node, and not of what was started on it."""


class PlacedRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a run was made, and how long its parts took.

    Attributes:
        arm, repeat: which run; of a sweep, which walk.
        slot: name of its place (``GPU 0``).
        began_at: Unix seconds.
        launch_s, replay_s, stop_s: None for parts it did not come to.
        failed: why, where it did.
    """

    arm: str
    repeat: int
    slot: str
    began_at: float
    launch_s: float | None = None
    replay_s: float | None = None
    stop_s: float | None = None
    failed: str | None = None


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment's folder keeps of where its runs were made.

    Attributes:
        slots: names of the places.
        cpus: processors of each place's server and client, where they were told apart.
        runs: all that were begun, in the order they ended.
        wall_s: seconds that all sessions of the experiment took together.
    """

    slots: list[str]
    cpus: list[tuple[list[int], list[int]]]
    runs: list[PlacedRun] = []
    wall_s: float = 0.0

    @property
    def serial_s(self) -> float:
        """What the same parts come to one after the other."""
        return sum(part for run in self.runs for part in (run.launch_s, run.replay_s, run.stop_s) if part is not None)

    def time_note(self) -> str | None:
        """Wall time against that of the same parts one after the other; None where there is nothing to say."""
        if self.wall_s <= 0 or self.serial_s <= 0:
            return None
        return (
            f"{len(self.runs)} runs side by side on {', '.join(self.slots)} took {time_text(self.wall_s)};"
            f" one after the other the same parts come to {time_text(self.serial_s)}"
            f" ({self.serial_s / self.wall_s:.2f} times as long)"
        )


def read_placement(out: Path) -> Placement | None:
    """What an experiment's folder says of it; None where its runs were made one after the other."""
    try:
        return msgspec.json.decode((out / PLACEMENT_NAME).read_bytes(), type=Placement)
    except (OSError, msgspec.MsgspecError):
        return None


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
        self._wall_before_s = before.wall_s if before else 0.0
        self._began = time.monotonic()
        self._failures = dict.fromkeys((slot.number for slot in slots), 0)
        self._lock = threading.Lock()

    def add(self, run: PlacedRun | None, slot: Slot | None = None) -> None:
        """Keep a run that ended, or only the time that has passed."""
        with self._lock:
            if run is not None:
                self._runs.append(run)
                if slot is not None and run.failed is None:
                    self._failures[slot.number] = 0
            placement = Placement(
                slots=[slot.name for slot in self._slots],
                cpus=[(list(slot.server_cpus), list(slot.client_cpus)) for slot in self._slots if slot.client_cpus],
                runs=self._runs,
                wall_s=self._wall_before_s + time.monotonic() - self._began,
            )
            path = self._out / PLACEMENT_NAME
            write_bytes(path.with_suffix(".tmp"), msgspec.json.encode(placement))
            path.with_suffix(".tmp").replace(path)

    def useless(self, slot: Slot, error: KvloadError) -> str | None:
        """Why nothing more is to be run in a slot after a failure there; None where it may."""
        with self._lock:
            self._failures[slot.number] += 1
            if is_cards(error):
                return "its node is gone" if slot.room is not None else "its GPU is at fault"
            return "two arms failed there one after the other" if self._failures[slot.number] >= 2 else None


def is_gone(error: KvloadError) -> bool:
    """Whether a server could not be started since its node is gone: nothing was tried, and others can."""
    return isinstance(error, StartFailedError) and error.cause.kind == "node_lost"


def is_cards(error: KvloadError) -> bool:
    """Whether a failure is the GPU's and not that of what was started on it."""
    return isinstance(error, StartFailedError) and error.cause.kind in CARD_FAULTS
