"""Where runs that are made side by side take place: GPUs and processors of their own, and which run goes where."""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kvload.errors import UsageError
from kvload.records import ServerInfo

if TYPE_CHECKING:
    from kvload.servers.lifecycle.places import Room

CLIENT_SHARE = 4
"""At most one processor in so many goes to the load generator: servers are what is measured."""

THIS_MACHINE = "this machine"

Run = TypeVar("Run")


@dataclass(frozen=True)
class Slot:
    """Room for one run at a time.

    Attributes:
        number: from 0.
        gpus: of its server, by number or UUID.
        server_cpus, client_cpus: processors of the server and of what sends to it; any where empty.
        room: of a cluster, which gives its GPUs itself; None on this machine.
        kind: what its GPUs are, where that is known.
    """

    number: int
    gpus: tuple[str, ...]
    server_cpus: tuple[int, ...] = ()
    client_cpus: tuple[int, ...] = ()
    room: "Room | None" = None
    kind: str | None = None

    @property
    def key(self) -> tuple[str | None, tuple[str, ...]]:
        """What tells it from others, in a manifest as well: :func:`key_of`."""
        return (self.room.name if self.room else None, self.gpus)

    @property
    def name(self) -> str:
        """What users are told."""
        return name_of(*self.key)


def key_of(server: ServerInfo) -> tuple[str | None, tuple[str, ...]]:
    """Node and GPUs that a run's server had; the node alone where a cluster gave it GPUs."""
    return (server.node, ()) if server.node is not None else (None, tuple(server.gpus))


def name_of(node: str | None, gpus: Sequence[str]) -> str:
    """``GPU 0``, ``GPUs 2,3``, a node's name, or that of this machine where no GPU was named."""
    if node is None and not gpus:
        return THIS_MACHINE
    return node if node is not None else f"GPU{'s' if len(gpus) > 1 else ''} {','.join(gpus)}"


def room_slots(rooms: "Sequence[Room]") -> tuple[Slot, ...]:
    """A slot for each room of a cluster."""
    return tuple(Slot(number, (), room=room, kind=room.kind) for number, room in enumerate(rooms))


def make_slots(
    gpus: Sequence[str],
    per_arm: int,
    cpus: Sequence[int],
    workers: int,
    kinds: Mapping[str, str] | None = None,
) -> tuple[Slot, ...]:
    """As many slots as there are GPUs for, each with its part of the processors.

    Args:
        gpus: all of them, by number or UUID.
        per_arm: of one server.
        cpus: processors to be shared out; servers and clients get none of their own where they are too few.
        workers: processes that send, in each slot.
        kinds: what GPUs are, as far as that is known.

    Raises:
        UsageError: there are too few GPUs for one server.
    """
    if len(gpus) < per_arm:
        raise UsageError(
            f"an arm takes {per_arm} GPUs, and {len(gpus)} are named",
            where=f"--gpus {','.join(gpus)}",
            hint="name more, or lower --per-arm",
        )
    count = len(gpus) // per_arm
    parts = split_cpus(cpus, count, workers) or [((), ())] * count
    rooms = [tuple(gpus[number * per_arm : (number + 1) * per_arm]) for number in range(count)]
    return tuple(
        Slot(number, mine, *parts[number], kind=kind_of(mine, kinds or {})) for number, mine in enumerate(rooms)
    )


def kind_of(gpus: Sequence[str], kinds: Mapping[str, str]) -> str | None:
    """What GPUs are together; None where that is not known of all."""
    found = list(dict.fromkeys(kinds[gpu] for gpu in gpus if gpu in kinds))
    return " and ".join(found) if found and all(gpu in kinds for gpu in gpus) else None


def remarks(slots: Sequence[Slot], gpus: Sequence[str], per_arm: int) -> list[str]:
    """What a user should know of the slots that were made of GPUs, or of a cluster's rooms.

    Args:
        gpus: all that were named.
        per_arm: of one server, as it was asked for.
    """
    from kvload.servers.host.devices import are_there, lost

    if not slots:
        return []
    said = _unlike(slots)
    if slots[0].room is not None:
        return [*said, *_of_rooms([slot.room for slot in slots if slot.room is not None], per_arm)]
    said += [f"GPU {gpu} of this machine does not answer ({why})" for gpu, why in lost().items()]
    used = {gpu for slot in slots for gpu in slot.gpus}
    if left := [gpu for gpu in gpus if gpu not in used]:
        said.append(f"{name_of(None, left)} stay{'s' * (len(left) == 1)} unused: a server takes {len(slots[0].gpus)}")
    if not are_there():
        said.append("this machine has no GPU: what is named says how many servers run at a time, on its processors")
    if not slots[0].client_cpus:
        said.append("too few processors to keep servers and clients apart: they share them")
    return said


def _unlike(slots: Sequence[Slot]) -> list[str]:
    """That places have GPUs of different kinds, which an A/A pair would take for noise."""
    kinds: dict[str, list[str]] = {}
    for slot in slots:
        if slot.kind is not None:
            kinds.setdefault(slot.kind, []).append(slot.name)
    if len(kinds) < 2:
        return []
    told = "; ".join(f"{', '.join(names)}: {kind}" for kind, names in kinds.items())
    return [
        f"the GPUs are not of one kind ({told}): what arms differ by is partly the GPUs', and equal runs differ by all"
        f" of that. {len(slots)} repeats (or 2, 3 ... times as many) put each arm on each as often"
    ]


def _of_rooms(rooms: "Sequence[Room]", per_arm: int) -> list[str]:
    """What a cluster cannot be used for, or is not."""
    said = []
    if not rooms[0].gpus and per_arm > 1:
        said.append(
            f"the cluster's nodes have no GPUs: each takes one server at a time, and --per-arm {per_arm} says nothing"
        )
    for room in rooms:
        if room.left:
            where = room.name.partition(" place ")[0]
            count = "1 GPU stays" if room.left == 1 else f"{room.left} GPUs stay"
            said.append(f"{count} unused on {where}: a server takes {room.gpus}")
    return said


def usable_cpus() -> list[int]:
    """Processors that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def split_cpus(cpus: Sequence[int], slots: int, workers: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Processors of each slot's server and client, none of them shared; None where there are too few.

    Neighbours in number, which mostly share caches and memory, stay together. A slot's client gets one processor for
    each worker and one for the master of several, though no more than a quarter of the slot's.

    >>> split_cpus(range(8), 2, 1)
    [((0, 1, 2), (3,)), ((4, 5, 6), (7,))]
    """
    each = len(cpus) // slots
    if each < 2:
        return None
    ordered = sorted(cpus)
    clients = min(workers + (workers > 1), max(1, each // CLIENT_SHARE))
    parts = [ordered[slot * each : (slot + 1) * each] for slot in range(slots)]
    return [(tuple(part[:-clients]), tuple(part[-clients:])) for part in parts]


def may_move(run: Run, source: int, target: int, *, at: Mapping[Run, int], arm_of: Mapping[Run, Hashable]) -> bool:
    """Whether a run may be made in another slot than it was meant for: where its arm has been there less often.

    Args:
        source, target: the slots.
        at: the slot of each run, made or meant.
        arm_of: each run's arm.
    """
    mine = [slot for other, slot in at.items() if arm_of[other] == arm_of[run]]
    return mine.count(target) < mine.count(source)


def spread(
    runs: Sequence[Run],
    slots: int,
    *,
    arm_of: Mapping[Run, Hashable],
    apart: Mapping[Run, Run] | None = None,
    before: Mapping[tuple[Hashable, int], int] | None = None,
) -> list[list[Run]]:
    """Which runs each slot makes, in their order.

    No arm shall always have the same GPU: a run goes where its arm has been least often, then, if it is one of an A/A
    pair, where the other is not, and then to the slot with the fewest runs.

    Args:
        runs: in the order they are made.
        slots: how many there are.
        arm_of: each run's arm.
        apart: the run of the same repeat that another must not share a slot with.
        before: how often an arm has been on a slot already.
    """
    counts = dict(before or {})
    place: dict[Run, int] = {}
    queues: list[list[Run]] = [[] for _ in range(slots)]
    for run in runs:
        arm = arm_of[run]
        other = place.get((apart or {}).get(run, run))
        chosen = min(
            range(slots), key=lambda slot: (counts.get((arm, slot), 0), slot == other, len(queues[slot]), slot)
        )
        place[run] = chosen
        counts[arm, chosen] = counts.get((arm, chosen), 0) + 1
        queues[chosen].append(run)
    return queues
